"""The kit itself: files, certificates, keys, and what a site or `nvflare deploy prepare` changed in it."""

import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from checked_site import check, edit, fill_in, found, prepared
from fedseg.deployment.kits.installed_kit import read_kit
from fedseg.deployment.operation.checks import kit as site_checks_kit
from fedseg.deployment.operation.checks.result import CheckOptions, Colour
from fedseg.errors import DataError, UsageError


def test_commands_to_copy_hold_for_folders_with_spaces(kit, server, tmp_path):
    folder = tmp_path / "our kits" / "alpha"
    shutil.copytree(kit, folder)
    (folder / "startup" / "client.key").chmod(0o644)
    reds = found(check(folder))
    assert f"chmod 600 '{folder}/startup/client.key'" in reds["key file"]


def test_dates_are_yellow_from_thirty_days_before_the_end_and_red_after(kit, server):
    end = x509.load_pem_x509_certificate((kit / "startup" / "client.crt").read_bytes()).not_valid_after_utc
    colours = {}
    for days in (31, 30, 1, 0, -1):
        page = check(kit, now=lambda days=days: end - timedelta(days=days))
        (colours[days],) = [r.colour.value for r in page.results if r.check == "certificate: dates"]
    assert colours == {31: "green", 30: "yellow", 1: "yellow", 0: "red", -1: "red"}
    page = check(kit, now=lambda: end + timedelta(days=1))
    assert re.search(r"Expired on .*Ask the coordinator for a new kit", found(page)["certificate: dates"])
    early = check(kit, now=lambda: datetime.now(UTC) - timedelta(days=2))
    assert "Is the clock of this machine right?" in found(early)["certificate: dates"]


def test_what_the_site_changed_by_itself_is_a_remark(kit, server):
    edit(kit / "local" / "resources.json", lambda c: {**c, "client": {**c["client"], "retry_timeout": 60}})
    page = check(kit)
    assert found(page) == {}
    assert "Changed since the kit was made: local/resources.json" in found(page, Colour.YELLOW)["files"]
    (kit / "fedseg_kit.json").unlink()
    assert "Compare the SHA-256" in found(check(kit), Colour.YELLOW)["files"]


def test_a_changed_file_in_a_kit_that_flare_signed_is_found(other, data, tmp_path):
    folder = tmp_path / "alpha"
    shutil.copytree(other / "kits" / "alpha", folder)
    fill_in(folder, data)
    assert set(found(check(folder))) == {"server: port"}
    (folder / "startup" / "client_context.tenseal").chmod(0o644)
    (folder / "startup" / "start.sh").write_text("true\n")
    reds = found(check(folder))
    assert "A file in startup is not the one that was signed" in reds["files"]
    assert "client_context.tenseal is open to other users" in reds["key file"]


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"servers": []}', '{"servers": [{"name": "x", "service": {"target": "h"}}]}']
)
def test_a_kit_whose_description_is_damaged_is_refused(text, kit):
    (kit / "startup" / "fed_client.json").write_text(text)
    with pytest.raises(DataError, match=r"fed_client\.json is damaged .*Unpack the kit again"):
        read_kit(kit)
    with pytest.raises(UsageError, match="is no kit"):
        read_kit(kit / "startup")


def test_a_kit_of_another_user_is_said_with_what_to_do(kit, server, monkeypatch):
    monkeypatch.setattr(site_checks_kit.os, "geteuid", lambda: (kit / "startup" / "client.key").stat().st_uid + 1)
    page = check(kit)
    assert found(page) == {}
    owner = (kit / "startup" / "client.key").owner()
    assert f"startup/client.key belongs to {owner}, and you are another user" in found(page, Colour.YELLOW)["key file"]
    monkeypatch.undo()
    real = Path.read_bytes

    def closed(path):
        if path.name == "client.key":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", closed)
    key = next(
        result for result in site_checks_kit.check_certificates(read_kit(kit), CheckOptions()) if result.check == "key"
    )
    assert (key.colour, "belongs to another user" in key.found) == (Colour.RED, True)
    assert f"Work as its owner ({owner})" in key.remedy, "and not: unpack the archive once more"


def test_a_prepared_kit_is_not_taken_for_a_damaged_one(kit, server):
    edit(kit / "local" / "fedseg.json", lambda c: {**c, "datasets": {"tiny": "/data/default/tiny"}, "state": "/proc/x"})
    prepared(kit)
    page = check(kit)
    assert found(page) == {}
    remarks = found(page, Colour.YELLOW)
    assert re.search(
        r"for Docker by `nvflare deploy prepare`: local/resources\.json\.default changed", remarks["files"]
    )
    assert "started by startup/start_docker.sh" in remarks["files"]
    assert "is a path where Docker mounts it: not checked" in remarks["data: tiny"]
    assert "not checked from here" in remarks["folders"]
    # What it does not change is compared as ever, and the start script is taken away, not replaced.
    (kit / "startup" / "sub_start.sh").write_text("true\n")
    assert "startup/sub_start.sh" in found(check(kit))["files"]
    (kit / "local" / "resources.json").unlink()
    text = found(check(kit))["files"]
    assert "Missing in the kit: local/resources.json" in text
    assert f"fedseg equip {kit}" in text, "the archive would not help"


def test_a_prepared_kit_of_a_federation_with_encryption_is_not_taken_for_a_changed_one(other, data, tmp_path):
    """FLARE has signed the scripts that `nvflare deploy prepare` takes away."""
    folder = tmp_path / "alpha"
    shutil.copytree(other / "kits" / "alpha", folder)
    fill_in(folder, data)
    prepared(folder)
    (folder / "startup" / "start_docker.sh").touch()
    assert set(found(check(folder))) == {"server: port"}
    (folder / "startup" / "client_context.tenseal").write_bytes(b"x")
    assert "startup/client_context.tenseal" in found(check(folder))["files"]

"""The folders in which a participant keeps things."""

import re
import shutil
import subprocess

import pytest

from checked_site import GIB, SLEEP, Usage, check, fill_in, found
from fedseg.deployment.kits.storage_folders import place_server
from fedseg.deployment.operation.checks import folders as site_checks_folders
from fedseg.deployment.operation.checks.result import Colour


@pytest.mark.parametrize(("free", "colour"), [(1, Colour.RED), (10, Colour.YELLOW)])
def test_a_full_disk_is_found(free, colour, kit, server, monkeypatch):
    monkeypatch.setattr(site_checks_folders.shutil, "disk_usage", lambda path: Usage(200 * GIB, 0, free * GIB))
    page = check(kit)
    assert set(found(page, colour)) == {"disk"}
    assert f"{free}.0 GiB free" in found(page, colour)["disk"]


def test_a_file_system_without_locks_is_found(kit, server, monkeypatch):
    monkeypatch.setattr(site_checks_folders.fcntl, "flock", lambda file, how: None)
    reds = found(check(kit))
    assert set(reds) == {"ledger"}
    assert "two jobs could spend the same privacy budget" in reds["ledger"]


def test_a_state_folder_that_has_vanished_is_a_remark(kit, server):
    """A share that is not mounted looks like a site that never trained, with its whole privacy budget left."""
    assert found(check(kit), Colour.YELLOW) == {}, "a new site has none yet"
    (kit / "log.txt").touch()
    assert re.search(r"is not there, though FLARE has run.*mounted\?", found(check(kit), Colour.YELLOW)["folders"])
    (kit.parent / "state").mkdir(mode=0o700)
    assert found(check(kit), Colour.YELLOW) == {}


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o704])
def test_a_state_folder_that_others_may_enter_is_a_remark(kit, server, mode):
    state = kit.parent / "state"
    state.mkdir()
    state.chmod(mode)
    said = found(check(kit), Colour.YELLOW)["folders"]
    assert f"{state} is open to other users of this machine (mode {mode:04o})." in said
    assert f"chmod 700 {state}" in said


def test_two_sites_on_one_machine_may_not_share_a_state_folder(kit, server, data):
    second = kit.parent / "beta"
    shutil.copytree(kit, second)
    process = subprocess.Popen([*SLEEP, "nvflare.private.fed.app.client.client_train", "-m", str(second), "-s", "x"])
    try:
        reds = found(check(kit))
        assert f"is used by the site at {second}, too" in reds["folders"]
        fill_in(second, data, state=str(kit.parent / "state-of-beta"))
        assert found(check(kit)) == {}
    finally:
        process.kill()
        process.wait()


def test_all_folders_of_a_server_are_looked_at(federation, tmp_path):
    folder = tmp_path / "localhost"
    shutil.copytree(federation / "kits" / "localhost", folder)
    place_server(folder, tmp_path / "storage")
    resources = folder / "local" / "resources.json"
    resources.write_text(resources.read_text("utf-8").replace(f"{tmp_path}/storage/jobs", "/proc/jobs"))
    assert re.search(r"jobs: /proc/jobs cannot be written", found(check(folder))["folders"])

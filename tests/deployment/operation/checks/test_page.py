"""The page of a site's checks: every fault is found, and nothing else."""

import re
import shutil
import socket
import subprocess

import pytest

from checked_site import SLEEP, check, command, edit, found, spend, without_an_image
from fedseg.deployment.kits.installed_kit import read_kit
from fedseg.deployment.kits.storage_folders import place_server
from fedseg.deployment.operation.checks import page as site_check
from fedseg.deployment.operation.checks.result import Colour
from fedseg.provenance.run_log import RECORD_FILE, SITE_SIDE, RunLog


def test_a_site_that_is_ready_is_green_and_nothing_was_changed(kit, server):
    before = {path: path.read_bytes() for path in kit.rglob("*") if path.is_file()}
    page = check(kit)
    assert (found(page), found(page, Colour.YELLOW)) == ({}, {})
    assert page.verdict == "GREEN: alpha is ready."
    texts = " ".join(f"{result.check}: {result.found}" for result in page.results)
    assert "Patients: 10 for training, 3 for validation; files and headers against the task tiny: 0 errors" in texts
    assert "TLSv1.3 with the kit's certificate and root" in texts
    assert server.asked == ["GET /f3 HTTP/1.1"]
    assert {path: path.read_bytes() for path in kit.rglob("*") if path.is_file()} == before
    assert not (kit.parent / "state").exists()


def foreign(name):
    return lambda kit, other: shutil.copyfile(other / "kits" / "alpha" / "startup" / name, kit / "startup" / name)


def keep_together(kit, other):
    """Root, certificate and key of another federation, which fit one another."""
    for name in ("rootCA.pem", "client.crt", "client.key"):
        foreign(name)(kit, other)
    (kit / "fedseg_kit.json").unlink()


FAULTS = {
    "a file is missing": (
        lambda kit, other: (kit / "local" / "privacy.json").unlink(),
        {"files": r"Missing in the kit: local/privacy\.json", "guard": "privacy.json"},
    ),
    "a start-up file was changed": (
        lambda kit, other: (kit / "startup" / "sub_start.sh").write_text("true\n"),
        {"files": r"Missing or changed since the kit was made: startup/sub_start\.sh.*Unpack the archive"},
    ),
    "the list of files was changed": (
        lambda kit, other: edit(kit / "fedseg_kit.json", lambda c: {**c, "files": {}}),
        {"files": r"is not signed by the kit's root certificate"},
    ),
    "the list of files is damaged": (
        lambda kit, other: (kit / "fedseg_kit.json").write_text("{"),
        {"files": r"fedseg_kit\.json is damaged"},
    ),
    "the root is another federation's": (
        foreign("rootCA.pem"),
        {
            "files": "not signed by the kit's root",
            "certificate": r"not issued by the root certificate in the kit",
            "TLS": r"The server's certificate is not accepted: .*Is the kit of this federation\?.*firewall",
        },
    ),
    "the whole kit is of another federation": (
        keep_together,
        {"TLS": r"The server's certificate is not accepted: .*Is the kit of this federation\?"},
    ),
    "the key is another's": (
        foreign("client.key"),
        {
            "files": r"startup/client\.key",
            "key": r"startup/client\.key does not belong to the certificate",
            "TLS": r"certificate and key cannot be used",
        },
    ),
    "the certificate is another site's": (
        lambda kit, other: [
            shutil.copyfile(kit.parent / "beta" / "startup" / name, kit / "startup" / name)
            for name in ("client.crt", "client.key")
        ],
        {"files": r"startup/client\.crt", "certificate": "The certificate is of beta, the kit of alpha"},
    ),
    "others may read the key": (
        lambda kit, other: (kit / "startup" / "client.key").chmod(0o640),
        {"key file": r"startup/client\.key is open to other users \(mode 0640\).*chmod 600"},
    ),
    "the profile is damaged": (
        lambda kit, other: (kit / "local" / "fedseg.json").write_text('{"datasets": '),
        {"profile": r"local/fedseg\.json: .*a readable JSON file.*Mend local/fedseg\.json"},
    ),
    "the profile has an unknown key": (
        lambda kit, other: edit(kit / "local" / "fedseg.json", lambda c: {**c, "dataset": {}}),
        {"profile": r"fedseg\.json: dataset is not known"},
    ),
    "the policy has an unknown rule": (
        lambda kit, other: edit(kit / "local" / "fedseg.json", lambda c: {**c, "policy": {"min_case": 3}}),
        {"profile": r"min_case is not known"},
    ),
    "the data are missing": (
        lambda kit, other: edit(kit / "local" / "fedseg.json", lambda c: {**c, "datasets": {"tiny": "/no/where"}}),
        {"data: tiny": r"/no/where does not exist"},
    ),
    "an image is missing": (
        lambda kit, other: without_an_image(kit),
        {"data: tiny": r"missing-file \(1\).*fedseg check-data JOB_FOLDER_OR_FILE"},
    ),
    "the list of classes is longer": (
        lambda kit, other: edit(
            kit / "local" / "resources.json", lambda c: {**c, "class_allow_list": [*c["class_allow_list"], "os."]}
        ),
        {"classes": r"lets jobs load more than fedseg's components: os\..*Take the file from the archive"},
    ),
    "the list of classes is shorter": (
        lambda kit, other: edit(
            kit / "local" / "resources.json", lambda c: {**c, "class_allow_list": c["class_allow_list"][1:]}
        ),
        {"classes": r"lacks fedseg\.aggregators"},
    ),
    "the list of classes is no list": (
        lambda kit, other: edit(kit / "local" / "resources.json", lambda c: {**c, "class_allow_list": "fedseg."}),
        {"classes": r"has no class_allow_list"},
    ),
    "the list of classes is not enforced": (
        lambda kit, other: edit(
            kit / "local" / "resources.json", lambda c: {**c, "class_list_enforcement_mode": "warn"}
        ),
        {"classes": r"does not enforce"},
    ),
    "the resources are damaged": (
        lambda kit, other: (kit / "local" / "resources.json").write_text("["),
        {"classes": r"resources\.json.*a readable JSON file"},
    ),
    "jobs are not looked at": (
        lambda kit, other: edit(
            kit / "local" / "resources.json",
            lambda c: {**c, "components": [p for p in c["components"] if p["id"] != "app_deployer"]},
        ),
        {"jobs": r"lacks fedseg\.screening\.deployer\.ScreeningDeployer: jobs are read unseen.*fedseg equip"},
    ),
    "logs may leave": (
        lambda kit, other: edit(kit / "local" / "resources.json", lambda c: {**c, "allow_log_streaming": True}),
        {"logs": r"lets logs leave"},
    ),
    "FLARE's own resources are in place": (
        lambda kit, other: shutil.copyfile(kit / "local" / "resources.json.default", kit / "local" / "resources.json"),
        {"classes": "", "jobs": r"lacks .*json_only\.JsonOnly", "logs": r"lets logs leave"},
    ),
    "jobs may bring code": (
        lambda kit, other: edit(
            kit / "local" / "authorization.json",
            lambda c: {**c, "permissions": {**c["permissions"], "lead": {"byoc": "any"}}},
        ),
        {"rights": r"lets lead bring code in a job"},
    ),
    "a role may everything": (
        lambda kit, other: edit(kit / "local" / "authorization.json", lambda c: {"permissions": {"lead": "any"}}),
        {"rights": r"lets lead bring code in a job"},
    ),
    "there are no rights": (
        lambda kit, other: (kit / "local" / "authorization.json").write_text("{}"),
        {"rights": r"has no permissions"},
    ),
    "the guard is not in place": (
        lambda kit, other: edit(kit / "local" / "privacy.json", lambda c: {**c, "components": []}),
        {"guard": r"does not put the guard in place"},
    ),
    "the guard has no scope": (
        lambda kit, other: edit(kit / "local" / "privacy.json", lambda c: {**c, "scopes": []}),
        {"guard": r"does not put the guard in place"},
    ),
    "the GPU is not there": (
        lambda kit, other: edit(kit / "local" / "fedseg.json", lambda c: {**c, "device": "cuda:63"}),
        {"GPU": r"wants cuda:63, but PyTorch sees \d+ GPU.*nvidia-smi"},
    ),
    "the name of the server does not resolve": (
        lambda kit, other: (
            address(kit, "no-such-host.invalid:8002"),
            (kit / "fedseg_kit.json").unlink(),
        ),
        {"server: name": r"no-such-host\.invalid does not resolve"},
    ),
    "the address is another server's": (
        lambda kit, other: (
            edit(
                kit / "startup" / "fed_client.json",
                lambda c: {**c, "servers": [{**c["servers"][0], "identity": "server.example.org"}]},
            ),
            (kit / "fedseg_kit.json").unlink(),
        ),
        {"server: certificate": r"is localhost, but the kit wants server\.example\.org\. FLARE would refuse it"},
    ),
    "the state cannot be written": (
        lambda kit, other: edit(kit / "local" / "fedseg.json", lambda c: {**c, "state": "/proc/state"}),
        {"folders": r"state: /proc/state cannot be written", "ledger": r"cannot lock files"},
    ),
    "the ledger is an older copy": (
        lambda kit, other: go_back(kit),
        {"ledger": r"lacks 1 release\(s\) that the records of runs have: run run, round 2"},
    ),
    "the ledger was changed": (
        lambda kit, other: spend_and_change(kit),
        {"privacy budget: tiny": r"not what was written"},
    ),
}


def address(kit, target):
    edit(
        kit / "startup" / "fed_client.json",
        lambda c: {**c, "servers": [{**c["servers"][0], "service": {"target": target, "scheme": "http"}}]},
    )


def go_back(kit):
    """A ledger that was put back with all that lies beside it: it knows of one round, and the run's record of two."""
    spend(kit, 1)
    log = RunLog(kit.parent / "state" / "run" / RECORD_FILE, SITE_SIDE, "alpha", "run")
    for number in range(2):
        log.append("sent", task="train", round=number, epsilon=0.5)


def spend_and_change(kit):
    spend(kit, 1)
    path = kit.parent / "state" / "ledger" / "ledger.jsonl"
    path.write_text(path.read_text().replace('"job":"job"', '"job":"jab"'))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_and_nothing_else(fault, kit, federation, other, server):
    damage, expected = FAULTS[fault]
    shutil.copytree(federation / "kits" / "beta", kit.parent / "beta")
    damage(kit, other)
    reds = found(check(kit))
    assert set(reds) == set(expected), reds
    for name, pattern in expected.items():
        assert re.search(pattern, reds[name]), reds[name]
        assert (
            reds[name].strip().endswith((".", "?", "FILE", "--quick", "client.key")) or "To" in reds[name] or reds[name]
        )


def test_the_servers_kit_is_checked_too(federation, tmp_path):
    folder = tmp_path / "localhost"
    shutil.copytree(federation / "kits" / "localhost", folder)
    place_server(folder, tmp_path / "storage")
    page = check(folder)
    assert found(page) == {}
    assert {r.check for r in page.results} >= {"certificate", "port", "profile", "classes", "rights"}
    assert f"Port {read_kit(folder).port} is free" in " ".join(r.found for r in page.results)
    with socket.create_server(("localhost", read_kit(folder).port)):
        assert "cannot be used (Address already in use)" in found(check(folder))["port"]
    process = subprocess.Popen([*SLEEP, "nvflare.private.fed.app.server.server_train", "-m", str(folder)])
    try:
        assert "The server of this kit runs" in " ".join(r.found for r in check(folder).results)
    finally:
        process.kill()
        process.wait()
    # There is no table without a line.
    code, out, _ = command("site", "check", "--kit", folder)
    assert (code, "the data" in out) == (0, False)


def test_a_check_that_stumbles_is_red_and_hides_nothing(kit, server, monkeypatch):
    def check_moon(kit, options):
        raise ZeroDivisionError("phase")

    checks = (("the moon", (check_moon,)), *site_check.CHECKS)
    monkeypatch.setattr(site_check, "CHECKS", checks)
    page = check(kit)
    assert found(page).keys() == {"moon"}
    assert "Could not be checked: ZeroDivisionError: phase" in found(page)["moon"]
    assert len(list(page.results)) > 15

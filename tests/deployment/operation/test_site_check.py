"""Every fault that a hospital's engineer meets is found by the check of the site, and named, and nothing else is."""

import base64
import contextlib
import io
import json
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections import namedtuple
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from importlib import metadata
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from nvflare.lighter.utils import Identity, generate_cert, generate_keys, serialize_cert, serialize_pri_key

from fedseg.cli import main
from fedseg.commands import site
from fedseg.deployment.kits.authority import authority_of
from fedseg.deployment.kits.installed_kit import read_kit
from fedseg.deployment.kits.manifest import read_manifest
from fedseg.deployment.kits.project_file import on_this_machine, read_project
from fedseg.deployment.kits.provisioning import provision
from fedseg.deployment.kits.storage_folders import place_server
from fedseg.deployment.local.processes import free_port
from fedseg.deployment.operation.checks import connection as site_checks_connection
from fedseg.deployment.operation.checks import flare as site_checks_flare
from fedseg.deployment.operation.checks import folders as site_checks_folders
from fedseg.deployment.operation.checks import kit as site_checks_kit
from fedseg.deployment.operation.checks import machine as site_checks_machine
from fedseg.deployment.operation.checks import page as site_check
from fedseg.deployment.operation.checks.page import CheckPage, check_site
from fedseg.deployment.operation.checks.policy import policy_sentences
from fedseg.deployment.operation.checks.result import CheckOptions, Colour, green, red
from fedseg.errors import DataError, UsageError
from fedseg.jobs.allowed_components import site_resources
from fedseg.privacy.accounting.epsilon import SITE_UPDATE, Release
from fedseg.privacy.accounting.ledger import Ledger
from fedseg.site.policy import parse_policy
from fedseg.tasks.registry import resolve_task
from tiny import TASK, make_sites

ROOT = Path(__file__).parents[3]
TEMPLATES = ROOT / "workspace_templates"
POLICY = TEMPLATES / "site_policy" / "local"
GIB = 2**30
SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
Usage = namedtuple("Usage", ["total", "used", "free"])


class Server(threading.Thread):
    """Answers as FLARE's server does: mutual TLS, then HTTP with the time, and a channel at /f3."""

    def __init__(self, startup, port):
        super().__init__(daemon=True)
        self.startup, self.port = startup, port
        self.ahead, self.status, self.tell_time = timedelta(0), "101 Switching Protocols", True
        self.certificate = startup / "server.crt", startup / "server.key"
        self.asked, self._end = [], threading.Event()
        self._listener = socket.create_server(("localhost", port))
        self._listener.settimeout(0.1)
        self.start()

    def run(self):
        while not self._end.is_set():
            with contextlib.suppress(OSError):
                plain, _ = self._listener.accept()
                plain.settimeout(5)
                with plain:
                    self._serve(plain)

    def _serve(self, plain):
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(self.startup / "rootCA.pem"))
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(*map(str, self.certificate))
        with context.wrap_socket(plain, server_side=True) as tls:
            request, *fields = tls.recv(4096).decode("ascii").split("\r\n")
            self.asked.append(request)
            key = next(field.partition(": ")[2] for field in fields if field.startswith("Sec-WebSocket-Key"))
            assert len(base64.b64decode(key)) == 16, "FLARE's server takes no other"
            date = f"Date: {format_datetime(datetime.now(UTC) + self.ahead, usegmt=True)}\r\n" if self.tell_time else ""
            tls.sendall(f"HTTP/1.1 {self.status}\r\n{date}\r\n".encode())

    def close(self):
        self._end.set()
        self.join(10)
        self._listener.close()


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    project = on_this_machine(read_project(TEMPLATES / "three_hospitals"), ["alpha", "beta"], free_port())
    return provision(project, POLICY, tmp_path_factory.mktemp("kits") / "out", with_wheel=False).folder


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another federation with the same names, and encryption."""
    project = on_this_machine(read_project(TEMPLATES / "three_hospitals_he"), ["alpha"], free_port())
    return provision(project, POLICY, tmp_path_factory.mktemp("other") / "out", with_wheel=False).folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_sites(tmp_path_factory.mktemp("data"), {"alpha": (10, 3)})


@pytest.fixture
def kit(federation, data, tmp_path):
    """The kit of alpha, filled in as the page for site engineers says, in a folder of its own."""
    folder = tmp_path / "alpha"
    shutil.copytree(federation / "kits" / "alpha", folder)
    fill_in(folder, data)
    return folder


def fill_in(folder, data, **more):
    profile = {"datasets": {"tiny": str(data / "alpha")}, "state": str(folder.parent / "state"), "device": "cpu"}
    policy = {"tasks": ["tiny"], "scores": True}
    (folder / "local" / "fedseg.json").write_text(json.dumps({**profile, "policy": policy, **more}))


@pytest.fixture
def server(federation):
    """The federation's server, as long as a test runs."""
    kit = federation / "kits" / "localhost"
    running = Server(kit / "startup", read_kit(kit).port)
    yield running
    running.close()


@pytest.fixture(autouse=True)
def room(monkeypatch):
    """The same free disk on every machine, and no more rights for whom the tests run."""
    monkeypatch.setattr(site_checks_machine, "is_root", lambda: False)
    monkeypatch.setattr(site_checks_folders.shutil, "disk_usage", lambda path: Usage(200 * GIB, 0, 100 * GIB))


def check(folder, **more):
    return check_site(read_kit(folder), CheckOptions(tasks={"tiny": resolve_task(TASK)}, timeout=5, **more))


def found(page, colour=Colour.RED):
    texts = {}
    for result in page.results:
        if result.colour is colour:
            texts[result.check] = f"{texts.get(result.check, '')} {result.found} {result.remedy}".strip()
    return texts


def edit(path, change):
    content = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(change(content)))


# ----------------------------------------------------------- all is well


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


def test_full_data_reads_the_voxels(kit, server, tmp_path):
    copied = tmp_path / "copy"
    shutil.copytree(Path(json.loads((kit / "local" / "fedseg.json").read_text())["datasets"]["tiny"]), copied)
    edit(kit / "local" / "fedseg.json", lambda c: {**c, "datasets": {"tiny": str(copied)}})
    label = copied / "images" / "alpha-0.nii.gz"
    # A header that promises voxels, and none behind it.
    label.write_bytes(label.read_bytes()[:-40])
    assert found(check(kit)) == {}
    assert "unreadable (1)" in found(check(kit, full_data=True))["data: tiny"]


# ---------------------------------------------------------------- faults


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
        {"data: tiny": r"missing-file \(1\).*fedseg check-data tiny"},
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
    "logs may leave": (
        lambda kit, other: edit(kit / "local" / "resources.json", lambda c: {**c, "allow_log_streaming": True}),
        {"logs": r"lets logs leave"},
    ),
    "FLARE's own resources are in place": (
        lambda kit, other: shutil.copyfile(kit / "local" / "resources.json.default", kit / "local" / "resources.json"),
        {"classes": "", "logs": r"lets logs leave"},
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


def without_an_image(kit):
    copied = kit.parent / "copy"
    shutil.copytree(Path(json.loads((kit / "local" / "fedseg.json").read_text())["datasets"]["tiny"]), copied)
    next((copied / "images").glob("*_image.nii.gz")).unlink()
    edit(kit / "local" / "fedseg.json", lambda c: {**c, "datasets": {"tiny": str(copied)}})


def spend(kit, times):
    """Charge the site's ledger, and give the site a budget of 8."""
    budget = {"epsilon_budget": {"tiny": {"epsilon": 8.0, "delta": 1e-5}}}
    edit(kit / "local" / "fedseg.json", lambda c: {**c, "policy": budget})
    ledger = Ledger(kit.parent / "state" / "ledger")
    place = {"job": "job", "run_id": "run", "delta": 1e-5, "budget": 8.0}
    for number in range(times):
        ledger.charge("tiny", ["p"], Release("gaussian", 1.0, unit=SITE_UPDATE), round_number=number, **place)
    return ledger


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


# ---------------------------------------------------------- the server


def test_a_closed_port_is_named_with_what_the_firewall_must_let_out(kit):
    reds = found(check(kit))
    port = read_kit(kit).port
    assert set(reds) == {"server: port"}
    assert f"localhost:{port} cannot be reached (Connection refused)" in reds["server: port"]
    assert f"outgoing TCP connections to localhost:{port} to be allowed; nothing incoming" in reds["server: port"]


def test_a_port_that_swallows_everything_is_called_blocked(kit, monkeypatch):
    def silent(address, timeout):
        raise TimeoutError

    monkeypatch.setattr(site_checks_connection.socket, "create_connection", silent)
    assert "does not answer within 5 s: blocked" in found(check(kit))["server: port"]


def test_a_server_without_tls_is_found(kit):
    port = read_kit(kit).port

    def answer(listener):
        plain, _ = listener.accept()
        with plain:
            plain.recv(4096)
            plain.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socket.create_server(("localhost", port)) as listener:
        thread = threading.Thread(target=answer, args=[listener])
        thread.start()
        reds = found(check(kit))
        thread.join(10)
    assert set(reds) == {"TLS"}
    assert "does not speak TLS" in reds["TLS"]


@pytest.mark.parametrize(("hours", "colour"), [(-1, Colour.RED), (1, Colour.RED)])
def test_a_clock_that_is_off_is_found(hours, colour, kit, server):
    server.ahead = timedelta(hours=hours)
    text = found(check(kit), colour)["clock"]
    assert f"3600 s {'ahead of' if hours < 0 else 'behind'} the server" in text or "3599 s" in text or "3601 s" in text
    assert "time server" in text


def test_a_clock_that_is_a_little_off_is_yellow_and_one_that_is_not_told_too(kit, server):
    server.ahead = timedelta(seconds=120)
    assert re.search(r"1(19|20|21) s behind the server", found(check(kit), Colour.YELLOW)["clock"])
    server.tell_time = False
    page = check(kit)
    assert "Not checked: the server told no time" in found(page, Colour.YELLOW)["clock"]
    assert found(page) == {}


def test_a_server_that_accepts_and_then_is_silent_does_not_refuse_the_kit(kit, server, monkeypatch):
    def silent(tls):
        raise TimeoutError("The read operation timed out")

    monkeypatch.setattr(site_checks_flare, "_answer", silent)
    text = found(check(kit))["FLARE"]
    assert "accepts TLS, but does not answer within 5 s" in text
    assert "refuses" not in text


def test_commands_to_copy_hold_for_folders_with_spaces(kit, server, tmp_path):
    folder = tmp_path / "our kits" / "alpha"
    shutil.copytree(kit, folder)
    (folder / "startup" / "client.key").chmod(0o644)
    reds = found(check(folder))
    assert f"chmod 600 '{folder}/startup/client.key'" in reds["key file"]


def test_another_program_at_the_port_is_found(kit, server):
    server.status = "404 Not Found"
    reds = found(check(kit))
    assert set(reds) == {"FLARE"}
    assert "not as FLARE does (HTTP/1.1 404 Not Found)" in reds["FLARE"]


def issued(federation, name, folder, not_after):
    """A certificate of the federation for a server of this name, that ends at a moment."""
    authority = authority_of(federation / "authority")
    root = x509.load_pem_x509_certificate(authority.root)
    key, public = generate_keys()
    issuer = root.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value
    certificate = generate_cert(
        Identity(name),
        Identity(issuer),
        authority.key,
        public,
        server_default_host=name,
        not_valid_before=not_after - timedelta(days=30),
        not_valid_after=not_after,
    )
    folder.mkdir()
    (folder / "server.crt").write_bytes(serialize_cert(certificate))
    (folder / "server.key").write_bytes(serialize_pri_key(key))
    return folder / "server.crt", folder / "server.key"


def test_a_server_whose_certificate_has_expired_is_found(kit, server, federation, tmp_path):
    server.certificate = issued(federation, "localhost", tmp_path / "old", datetime.now(UTC) - timedelta(days=1))
    reds = found(check(kit))
    assert set(reds) == {"TLS"}
    assert re.search(r"certificate has expired.*clock.*needs a new certificate", reds["TLS"])


def test_a_server_whose_certificate_ends_soon_is_yellow(kit, server, federation, tmp_path):
    server.certificate = issued(federation, "localhost", tmp_path / "old", datetime.now(UTC) + timedelta(days=20))
    page = check(kit)
    assert found(page) == {}
    assert "Tell the coordinator" in found(page, Colour.YELLOW)["server: certificate"]


def test_a_server_that_refuses_the_kit_is_found(kit, server, other):
    """It knows another root: with TLS 1.3 a site hears of that only after its own side of the handshake."""
    trusted = kit.parent / "trusted"
    trusted.mkdir()
    shutil.copyfile(other / "kits" / "alpha" / "startup" / "rootCA.pem", trusted / "rootCA.pem")
    server.startup = trusted
    reds = found(check(kit))
    assert set(reds) == {"FLARE"}
    assert "it refuses this kit" in reds["FLARE"]


# ------------------------------------------------------- dates, versions


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


def test_another_version_of_fedseg_is_found(kit, server, monkeypatch):
    monkeypatch.setattr(site_checks_machine, "__version__", "0.0.1")
    reds = found(check(kit))
    assert set(reds) == {"fedseg"}
    wanted = read_manifest(kit).fedseg_version
    assert f"Version 0.0.1 is installed, but the federation uses {wanted}" in reds["fedseg"]
    # Without the list of files the wheel says which version is wanted.
    (kit / "fedseg-9.9.9-py3-none-any.whl").touch()
    (kit / "fedseg_kit.json").unlink()
    assert "the federation uses 9.9.9" in found(check(kit))["fedseg"]
    (kit / "fedseg-9.9.9-py3-none-any.whl").unlink()
    assert "does not say which one it needs" in found(check(kit), Colour.YELLOW)["fedseg"]


def test_packages_of_another_version_missing_ones_and_broken_ones_are_found(kit, server, monkeypatch):
    real = metadata.version
    monkeypatch.setattr(metadata, "requires", lambda name: ["torch==2.13.0", "no-such==1.0", "nibabel==0.1", "x>=2"])
    monkeypatch.setattr(metadata, "version", lambda name: "2.13.0+cu130" if name == "torch" else real(name))
    text = found(check(kit))["packages"]
    assert re.search(r"no-such 1\.0 \(missing\), nibabel 0\.1 \(found [\d.]+\)", text)
    assert "torch" not in text
    monkeypatch.setattr(metadata, "requires", lambda name: ["torch==2.13.0"])

    def broken(name):
        raise ImportError("libcudart.so is missing")

    monkeypatch.setattr(site_checks_machine.importlib, "import_module", broken)
    assert "torch (ImportError: libcudart.so is missing)" in found(check(kit))["packages"]
    monkeypatch.setattr(metadata, "requires", lambda name: None)
    assert "its requirements are not known" in found(check(kit))["packages"]


def test_the_requirements_are_those_of_the_installed_package():
    pinned = site_checks_machine.pinned_packages()
    assert pinned["nvflare"] == "2.9.0"
    assert {"torch", "monai", "numpy"} <= set(pinned)


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


def test_no_gpu_is_yellow_unless_the_cpu_is_meant(kit, server, monkeypatch):
    monkeypatch.setattr(site_checks_machine.torch.cuda, "is_available", lambda: False)
    assert "GPU" not in found(check(kit), Colour.YELLOW)
    edit(kit / "local" / "fedseg.json", lambda c: {k: v for k, v in c.items() if k != "device"})
    assert "trains on the CPU" in found(check(kit), Colour.YELLOW)["GPU"]


# --------------------------------------------------- remarks, policy, HE


def test_what_the_site_changed_by_itself_is_a_remark(kit, server):
    edit(kit / "local" / "resources.json", lambda c: {**c, "client": {**c["client"], "retry_timeout": 60}})
    page = check(kit)
    assert found(page) == {}
    assert "Changed since the kit was made: local/resources.json" in found(page, Colour.YELLOW)["files"]
    (kit / "fedseg_kit.json").unlink()
    assert "Compare the SHA-256" in found(check(kit), Colour.YELLOW)["files"]


def test_shell_commands_and_no_policy_are_remarks(kit, server):
    shell = {"lead": {"byoc": "none", "shell_commands": "any"}}
    edit(kit / "local" / "authorization.json", lambda c: {"permissions": shell})
    edit(kit / "local" / "fedseg.json", lambda c: {k: v for k, v in c.items() if k != "policy"})
    page = check(kit)
    assert found(page) == {}
    assert page.verdict == "YELLOW: alpha is ready. To look at: files, rights, policy."
    yellow = found(page, Colour.YELLOW)
    assert "lets lead run commands on this machine" in yellow["rights"]
    assert "states no limits" in yellow["policy"]


def test_data_of_a_task_that_is_not_built_in_are_looked_at_all_the_same(kit, server):
    page = check_site(read_kit(kit), CheckOptions(timeout=5))
    assert "all 26 files are there. The task tiny is not built in" in found(page, Colour.YELLOW)["data: tiny"]
    without_an_image(kit)
    assert "1 of 26 files are missing" in found(check_site(read_kit(kit), CheckOptions(timeout=5)))["data: tiny"]


def test_few_cases_are_a_remark(kit, server, tmp_path):
    few = make_sites(tmp_path / "few", {"alpha": (2, 1)})
    edit(kit / "local" / "fedseg.json", lambda c: {**c, "datasets": {"tiny": str(few / "alpha")}})
    page = check(kit)
    assert found(page) == {}
    assert "few-cases" in found(page, Colour.YELLOW)["data: tiny"]


def test_what_is_spent_of_a_budget_is_said(kit, server):
    spent = spend(kit, 1).spent(1e-5, dataset="tiny").epsilon
    texts = {r.check: r.found for r in check(kit).results}
    assert texts["privacy budget: tiny"] == f"Epsilon {spent:.3g} of 8 is spent, at delta 1e-05, in 1 releases."
    edit(
        kit / "local" / "fedseg.json",
        lambda c: {**c, "policy": {"epsilon_budget": {"tiny": {"epsilon": spent, "delta": 1e-5}}}},
    )
    assert "No job with a guarantee is taken any more" in found(check(kit), Colour.YELLOW)["privacy budget: tiny"]


def test_a_policy_is_told_in_plain_sentences():
    rules = {
        "tasks": ["brats"],
        "jobs": ["brats_*"],
        "min_cases": 20,
        "max_fraction": 0.1,
        "max_clip_norm": 1.5,
        "min_noise_multiplier": 2.0,
        "require_encryption": True,
        "max_bytes": 5_000_000,
        "scores": False,
        "events": True,
    }
    assert policy_sentences(parse_policy(rules)) == [
        "Takes jobs that segment brats and called brats_*.",
        "Takes part with 20 training cases at least.",
        "An update holds 10.0% of the model's parameters at most.",
        "Updates are clipped to the norm 1.5 at most.",
        "Updates bear noise of 2 clipping norms at least.",
        "Updates are encrypted.",
        "No result is larger than 5 MB.",
        "Beside updates and reports may leave: curves during training.",
        "Never leave: images, labels, names of patients, summaries of scores, statistics of the data, activations in "
        "split training, the site's own model.",
    ]
    assert policy_sentences(parse_policy({"require_clip": True}))[:2] == ["Takes every job.", "Updates are clipped."]


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


# ------------------------------------------------------------ the server


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


# ----------------------------------------------------------- the command


def command(*arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return code, out.getvalue(), " ".join(err.getvalue().split())


def test_the_command_ends_with_the_verdict_and_never_prints_a_key(kit, server, tmp_path):
    (tmp_path / "task.json").write_text(json.dumps(TASK))
    arguments = [
        "site",
        "check",
        "--kit",
        kit,
        "--json",
        tmp_path / "check.json",
        "--task",
        f"tiny={tmp_path}/task.json",
    ]
    code, out, _ = command(*arguments)
    assert code == 0, out
    assert out.rstrip().endswith("GREEN: alpha is ready.")
    (kit / "startup" / "client.key").chmod(0o644)
    (kit / "local" / "resources.json").write_text("{}")
    code, out, _ = command(*arguments)
    assert code == 1
    assert out.rstrip().endswith("RED: alpha is not ready. To mend: key file, classes, logs.")
    content = json.loads((tmp_path / "check.json").read_text())
    assert content["colour"] == "red"
    assert {"about", "check", "colour", "found", "remedy"} == set(content["checks"][0])
    secret = (kit / "startup" / "client.key").read_text("ascii").splitlines()[1]
    number = format(load_pem_private_key((kit / "startup" / "client.key").read_bytes(), None).private_numbers().d, "x")
    for text in (out, (tmp_path / "check.json").read_text()):
        assert secret not in text
        assert number not in text


def test_a_fingerprint_is_printed_as_it_is(kit, monkeypatch):
    """Not as rich would have it, for which :AB: is the name of a picture, and [red] a colour."""
    text = "4E:AB:12:CD [red]x[/] :warning:"
    page = CheckPage(read_kit(kit), {"the kit": (green("certificate", text), red("key", "x.", f"Compare {text}"))})
    monkeypatch.setattr(site, "check_site", lambda kit, options: page)
    _, out, _ = command("site", "check", "--kit", kit)
    assert out.count(text) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kit", "{federation}"], "is no kit of a site or of the server"),
        (["--kit", "{federation}/kits/coordinator@example.org"], "is no kit of a site or of the server"),
        (["--kit", "{federation}/kits/alpha", "--task", "brats"], "write DATA_SET=TASK"),
        (["--kit", "{federation}/kits/alpha", "--json", "/no/where/x.json"], "the folder /no/where does not exist"),
    ],
)
def test_wrong_usage_ends_with_2(arguments, message, federation):
    code, _, err = command("site", "check", *(word.format(federation=federation) for word in arguments))
    assert code == 2
    assert message in err


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"servers": []}', '{"servers": [{"name": "x", "service": {"target": "h"}}]}']
)
def test_a_kit_whose_description_is_damaged_is_refused(text, kit):
    (kit / "startup" / "fed_client.json").write_text(text)
    with pytest.raises(DataError, match=r"fed_client\.json is damaged .*Unpack the kit again"):
        read_kit(kit)
    with pytest.raises(UsageError, match="is no kit"):
        read_kit(kit / "startup")


def test_a_check_that_stumbles_is_red_and_hides_nothing(kit, server, monkeypatch):
    def check_moon(kit, options):
        raise ZeroDivisionError("phase")

    checks = (("the moon", (check_moon,)), *site_check.CHECKS)
    monkeypatch.setattr(site_check, "CHECKS", checks)
    page = check(kit)
    assert found(page).keys() == {"moon"}
    assert "Could not be checked: ZeroDivisionError: phase" in found(page)["moon"]
    assert len(list(page.results)) > 15


def test_the_list_of_classes_is_the_packages(kit):
    assert (
        json.loads((kit / "local" / "resources.json").read_text())["class_allow_list"]
        == (site_resources()["class_allow_list"])
    )


# -------------------------------------------- users, folders, prepared kits


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


def test_root_is_a_remark(kit, server, monkeypatch):
    monkeypatch.setattr(site_checks_machine, "is_root", lambda: True)
    assert "You are root" in found(check(kit), Colour.YELLOW)["user"]


def test_a_state_folder_that_has_vanished_is_a_remark(kit, server):
    """A share that is not mounted looks like a site that never trained, with its whole privacy budget left."""
    assert found(check(kit), Colour.YELLOW) == {}, "a new site has none yet"
    (kit / "log.txt").touch()
    assert re.search(r"is not there, though FLARE has run.*mounted\?", found(check(kit), Colour.YELLOW)["folders"])
    (kit.parent / "state").mkdir()
    assert found(check(kit), Colour.YELLOW) == {}


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


def test_a_device_that_is_none_is_found(kit, server):
    edit(kit / "local" / "fedseg.json", lambda c: {**c, "device": "gpu"})
    assert "wants 'gpu', which is no device" in found(check(kit))["GPU"]


def test_all_folders_of_a_server_are_looked_at(federation, tmp_path):
    folder = tmp_path / "localhost"
    shutil.copytree(federation / "kits" / "localhost", folder)
    place_server(folder, tmp_path / "storage")
    resources = folder / "local" / "resources.json"
    resources.write_text(resources.read_text("utf-8").replace(f"{tmp_path}/storage/jobs", "/proc/jobs"))
    assert re.search(r"jobs: /proc/jobs cannot be written", found(check(folder))["folders"])


def test_a_wheel_that_came_later_counts_in_place_of_the_kits_version(kit, server, monkeypatch):
    """So a federation is upgraded: the new wheel into the kit, and into the environment."""
    (kit / "fedseg-99.0-py3-none-any.whl").touch()
    text = found(check(kit))["fedseg"]
    assert "but the federation uses 99.0" in text
    assert text.endswith(f"pip install {kit}/fedseg-99.0-py3-none-any.whl")
    monkeypatch.setattr(site_checks_machine, "__version__", "99.0")
    page = check(kit)
    assert "fedseg" not in found(page)
    assert "Version 99.0, as the federation." in [result.found for result in page.results]


def prepared(kit, launcher="docker_launcher"):
    """What `nvflare deploy prepare` does to a kit, as test_deployment_templates.py has it from FLARE itself."""
    for name in ("start.sh", "sub_start.sh", "stop_fl.sh"):
        (kit / "startup" / name).unlink()
    edit(
        kit / "local" / "resources.json.default",
        lambda c: {**c, "components": [*c["components"], {"id": launcher, "path": "x", "args": {}}]},
    )


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


@pytest.mark.parametrize("action", ["start", "status"])
def test_a_prepared_kit_says_how_it_is_started_and_seen(action, kit):
    prepared(kit)
    code, out, err = command("site", action, "--kit", kit)
    assert code == 1
    if action == "start":
        assert "alpha was made ready for Docker: start it by startup/start_docker.sh." in err
    else:
        assert "its processes are not seen from here: docker ps" in out


# ------------------------------------------------- names with two addresses


def test_the_time_of_a_blocked_name_does_not_grow_with_its_addresses(kit, monkeypatch):
    asked = []

    def silent(address, timeout):
        asked.append((address[0], timeout))
        raise TimeoutError if address[0] != "::1" else OSError(101, "Network is unreachable")

    both = [(0, 0, 0, "", (name, 1)) for name in ("192.0.2.1", "::1", "192.0.2.1", "192.0.2.2")]
    monkeypatch.setattr(site_checks_connection.socket, "getaddrinfo", lambda *more, **named: both)
    monkeypatch.setattr(site_checks_connection.socket, "create_connection", silent)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy")
    text = found(check(kit))["server: port"]
    assert [name for name, _ in asked] == ["192.0.2.1", "::1", "192.0.2.2"]
    assert sum(timeout for _, timeout in asked) == pytest.approx(5)
    assert "does not answer within 5 s: blocked" in text, "not the unreachable network of an address that is not used"
    assert "HTTPS_PROXY, which is set here, does not help" in text


def test_one_of_two_addresses_is_enough(kit, server, monkeypatch):
    real = socket.getaddrinfo

    def both(host, port, *more, **named):
        found = real(host, port, *more, **named)
        return [(0, 0, 0, "", ("192.0.2.1.invalid", port)), *found] if host == "localhost" else found

    monkeypatch.setattr(site_checks_connection.socket, "getaddrinfo", both)
    assert found(check(kit)) == {}

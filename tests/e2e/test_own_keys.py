"""The commands of docs/how-to/own-keys.md, each participant in a folder of its own; then a job over mutual TLS.

What differs from the page: the server is ``localhost`` with a free port, its storage lies in the test's folder, files
that the page sends are copied, and ``start.sh`` is replaced by what it starts, without the loop that restarts it.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from federation_parts import ROOT, fedseg, tiny_job

from fedseg.deployment.coordination.session import FederationError, connect
from fedseg.deployment.kits.certificates import read_certificate
from fedseg.deployment.kits.installed_kit import certificate_file
from fedseg.deployment.kits.provisioned_kits import Kit
from fedseg.deployment.kits.storage_folders import place_state
from fedseg.deployment.local.processes import free_port, launch, listens
from fedseg.deployment.operation.kit_processes import living_processes
from fedseg.files.documents import read_json
from fedseg.jobs.allowed_components import site_resources
from fedseg.processes import end_processes
from tiny import make_sites

pytestmark = pytest.mark.full

PAGE = ROOT / "docs" / "how-to" / "own-keys.md"
HOST, STORAGE, SECONDS = "server.example.org", "/srv/fedseg", 120
REGISTERED = "Successfully registered client:hospital-a"
PARTIES = ("Coordinator", "Server", "Site", "Person")
NAMES = {"Server": "localhost", "Site": "hospital-a", "Person": "coordinator@example.org"}
KITS, RENEWED = (Path(name) / "three_hospitals" / "prod_00" for name in ("kits", "kits-renewed"))


def steps():
    """The page's blocks of commands in order, each with the participant whom its heading names."""
    sections = re.findall(r"^## (\w+): [^\n]+\n(.*?)(?=^## )", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [(party, block) for party, text in sections for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)]


def run_step(folder, block, fingerprint):
    """One block as its participant types it; returns what it printed."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.replace(HOST, "localhost").replace(STORAGE, str(folder / "storage"))],
        cwd=folder,
        env={**os.environ, "HOME": str(folder / "home"), "PATH": path, "ROOT_FINGERPRINT": fingerprint},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def make_party(folder, port):
    """A participant's folder with the text files that the page asks for, moved to this machine."""
    (folder / "home").mkdir(parents=True)
    templates = folder / "workspace_templates"
    for name in ("own_keys", "site_policy"):
        shutil.copytree(ROOT / "workspace_templates" / name, templates / name)
    for path in (templates / "own_keys").iterdir():
        path.write_text(path.read_text("utf-8").replace(HOST, "localhost").replace("8002", str(port)), "utf-8")


def send(folder):
    """What the page says is sent after a step: requests to the coordinator, signed answers back."""
    for party, name in NAMES.items():
        for asked in (name, "renewed"):
            request = folder / party / asked / f"{name}.request.zip"
            if request.exists():
                shutil.copy2(request, folder / "Coordinator")
        for answer in (folder / "Coordinator").glob(f"{name}.*signed.zip"):
            shutil.copy2(answer, folder / party)


def contents(folder):
    """Content of every file below a folder, and of every file in every zip archive."""
    for path in (each for each in folder.rglob("*") if each.is_file() and not each.is_symlink()):
        yield path.read_bytes()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                yield from (archive.read(name) for name in archive.namelist())


def holders(folder, key):
    """The participants in whose folders a private key is found: a line from the middle of its text."""
    lines = key.read_bytes().splitlines()
    assert b"PRIVATE KEY" in lines[0]
    needle = lines[len(lines) // 2]
    assert len(needle) == 64
    return {party for party in PARTIES if any(needle in content for content in contents(folder / party))}


def as_kit(folder, party, kits=KITS):
    path = folder / party / kits / NAMES[party]
    role = {"Server": "server", "Site": "client", "Person": "lead"}[party]
    return Kit(NAMES[party], role, path, path, "", read_certificate(certificate_file(path, role)))


def wait_for(what, happens):
    end = time.monotonic() + SECONDS
    while not happens():
        if time.monotonic() > end:
            raise AssertionError(f"{what} within {SECONDS} s")
        time.sleep(0.5)


@contextlib.contextmanager
def running(folder, kits, port):
    """Server and site as processes; all are ended whatever happens. Gives what the site can be changed over with."""
    (folder / "logs").mkdir()
    started = []
    try:
        started.append(launch(kits["Server"], folder / "logs"))
        wait_for("the server listens", lambda: listens(port))
        started.append(launch(kits["Site"], folder / "logs"))

        def change_over():
            end_all([kits["Site"]], [started.pop()])
            started.append(launch(kits["Renewed"], folder / "logs"))

        yield change_over
    finally:
        end_all(kits.values(), started)


def end_all(kits, started):
    """End every process of some kits."""
    for _ in range(5):
        end_processes(living_processes([kit.folder for kit in kits], [each.process.pid for each in started]), 5.0)
        for each in started:
            each.process.poll()


@contextlib.contextmanager
def session(kit):
    """A session of the person; a server that has just opened its port may not be ready."""
    end = time.monotonic() + SECONDS
    with contextlib.ExitStack() as stack:
        while True:
            try:
                coordinator = stack.enter_context(connect(kit.folder))
                break
            except FederationError:
                if time.monotonic() > end:
                    raise
                time.sleep(1)
        yield coordinator


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Everything that happened, written down while it ran."""
    folder, port = tmp_path_factory.mktemp("own_keys"), free_port()
    for party in PARTIES:
        make_party(folder / party, port)
    fingerprint = ""
    for party, block in steps():
        printed = run_step(folder / party, block, fingerprint)
        found = re.search(r"rootca_fingerprint_sha256: (\S+)", printed)
        fingerprint = found.group(1) if found and party == "Coordinator" else fingerprint
        send(folder)
    kits = {party: as_kit(folder, party) for party in NAMES}
    data = make_sites(folder / "Site" / "data", {"hospital-a": (3, 1)})
    datasets = {"*": str(data / "hospital-a" / "datalist.json")}
    place_state(kits["Site"].folder, folder / "Site" / "state", datasets=datasets, policy={})
    kits["Renewed"] = as_kit(folder, "Site", RENEWED)
    (folder / "job").mkdir()
    seen = SimpleNamespace(folder=folder, kits=kits, sites=[], status="", fingerprint=fingerprint)
    with running(folder, kits, port) as change_over:
        with session(kits["Person"]) as coordinator:
            wait_for("the site registers", coordinator.sites)
            seen.sites = coordinator.sites()
        job = tiny_job("hippocampus_fedavg", folder / "job", 1)
        seen.submit = fedseg("submit", job.folder, "--kit", kits["Person"].folder, "--wait")
        change_over()
        with session(kits["Person"]) as coordinator:
            log = folder / "logs" / "hospital-a.log"
            wait_for("the renewed kit registers", lambda: log.read_text("utf-8").count(REGISTERED) == 2)
            seen.renewed = coordinator.sites()
    seen.left = living_processes([kit.folder for kit in kits.values()])
    return seen


def test_the_page_has_a_step_for_everybody():
    assert [party for party, _ in steps()] == [
        "Coordinator", "Server", "Site", "Person", "Coordinator", "Server", "Site", "Person",
        "Site", "Coordinator", "Site",
    ]  # fmt: skip


def test_the_site_registers_and_trains(seen):
    assert seen.sites == ["hospital-a"]
    assert seen.submit.code == 0, seen.submit.err
    assert "finished:completed" in seen.submit.err


def test_a_renewed_kit_takes_the_old_ones_place(seen):
    old, new = seen.kits["Site"], seen.kits["Renewed"]
    assert seen.renewed == ["hospital-a"]
    assert new.certificate.fingerprint != old.certificate.fingerprint
    assert new.certificate.subject == old.certificate.subject
    for name in ("fedseg.json", "privacy.json", "authorization.json"):
        assert (new.folder / "local" / name).exists()
    assert holders(seen.folder, new.folder / "startup" / "client.key") == {"Site"}


@pytest.mark.parametrize(
    ("party", "name"), [("Server", "server.key"), ("Site", "client.key"), ("Person", "client.key")]
)
def test_a_private_key_is_in_its_owners_folder_only(seen, party, name):
    assert holders(seen.folder, seen.kits[party].folder / "startup" / name) == {party}


def test_the_root_key_is_the_coordinators(seen):
    assert holders(seen.folder, seen.folder / "Coordinator" / "authority" / "rootCA.key") == {"Coordinator"}


def test_the_kits_have_the_policy(seen):
    for party in ("Server", "Site"):
        resources = read_json(seen.kits[party].folder / "local" / "resources.json", "resources")
        assert resources["class_allow_list"] == site_resources()["class_allow_list"]
    assert resources["allow_log_streaming"] is False
    assert (seen.kits["Site"].folder / "local" / "privacy.json").is_file()
    for party, name in (("Server", "fed_server.json"), ("Site", "fed_client.json")):
        assert read_json(seen.kits[party].folder / "startup" / name, "a file of a kit")["require_signed_jobs"] is True


def test_certificates_last_as_long_as_the_page_says(seen):
    root = read_certificate(seen.folder / "Coordinator" / "authority" / "rootCA.pem")
    assert seen.fingerprint.removeprefix("SHA256:") == root.fingerprint
    assert (root.not_after - root.not_before).days == 720
    for kit in seen.kits.values():
        assert (kit.certificate.not_after - kit.certificate.not_before).days == 360


def test_nothing_is_left_running(seen):
    assert seen.left == []

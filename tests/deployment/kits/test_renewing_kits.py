"""A renewed kit is of the same federation under a new key, and everybody else's stays as it is, byte for byte."""

import contextlib
import shutil
import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest
import yaml
from cryptography import x509

from fedseg.cli import main
from fedseg.deployment.kits.add_or_renew import renew_kit
from fedseg.deployment.kits.authority import authority_of
from fedseg.deployment.kits.manifest import changed_files, read_manifest
from fedseg.deployment.kits.project_file import read_project
from fedseg.deployment.kits.provisioned_kits import sha256_of
from fedseg.deployment.kits.provisioning import provision
from fedseg.errors import UsageError

TEMPLATES = Path(__file__).parents[3] / "workspace_templates"
POLICY = TEMPLATES / "site_policy" / "local"
SERVER, SITE, PERSON = "server.example.org", "hospital-a", "coordinator@example.org"
STORE = "authority/three_hospitals_he/state/cert.json"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A federation with encryption, so that there is a shared key to keep."""
    folder = tmp_path_factory.mktemp("kits") / "out"
    provision(project(), POLICY, folder, with_wheel=False)
    return folder


@pytest.fixture
def federation(made, tmp_path):
    return shutil.copytree(made, tmp_path / "out")


def project():
    return read_project(TEMPLATES / "three_hospitals_he")


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def renew(federation, name):
    (kit,) = renew_kit(project(), name, POLICY, federation, with_wheel=False).kits
    return kit


@pytest.mark.parametrize(("name", "file"), [(SITE, "client"), (SERVER, "server"), (PERSON, "client")])
def test_key_and_certificate_are_new_and_nobody_elses_change(name, file, federation):
    before = files(federation)
    kit = renew(federation, name)
    after = files(federation)
    startup = f"kits/{name}/startup"
    assert after[f"{startup}/rootCA.pem"] == before[f"{startup}/rootCA.pem"]
    for ending in ("key", "crt"):
        assert after[f"{startup}/{file}.{ending}"] != before[f"{startup}/{file}.{ending}"]
    old, new = (x509.load_pem_x509_certificate(each[f"{startup}/{file}.crt"]) for each in (before, after))
    assert new.subject == old.subject, "name, organisation and role are those of before"
    new.verify_directly_issued_by(x509.load_pem_x509_certificate(after[f"{startup}/rootCA.pem"]))
    if name == SITE:
        context = f"{startup}/client_context.tenseal"
        assert after[context] == before[context], "the key that the sites share"
    # The same files as before, of which FLARE writes only those with keys and signatures anew.
    assert {n for n in after if n.startswith(f"kits/{name}/")} == {n for n in before if n.startswith(f"kits/{name}/")}
    for path in before:
        if not path.startswith((f"kits/{name}/", f"archives/{name}.tar.gz", "archives/SHA256SUMS", STORE)):
            assert after[path] == before[path], path
    manifest = read_manifest(kit.folder)
    assert (manifest.participant, manifest.role) == (name, kit.role)
    assert changed_files(kit.folder, manifest) == ([], [])


def test_the_old_kit_is_kept_apart_and_the_list_of_sums_is_right(federation):
    old = files(federation / "kits" / SITE)
    fingerprints = {renew(federation, SITE).certificate.fingerprint for _ in range(2)}
    assert len(fingerprints) == 2
    replaced = sorted((federation / "replaced").iterdir())
    assert len(replaced) == 2, "each under a name of its own"
    assert old in [files(path) for path in replaced]
    assert stat.S_IMODE((federation / "replaced").stat().st_mode) == 0o700, "their keys are good for a while"
    lines = (federation / "archives" / "SHA256SUMS").read_text("utf-8").splitlines()
    assert len(lines) == len(project()["participants"])
    for line in lines:
        digest, _, name = line.partition("  ")
        assert sha256_of(federation / "archives" / name) == digest
    assert {path.name for path in federation.iterdir()} == {"kits", "archives", "authority", "replaced"}
    assert stat.S_IMODE(authority_of(federation / "authority").file.stat().st_mode) == 0o600


def meet(server, client):
    """Mutual TLS between two kits; the name that each sees in the other's certificate."""
    seen = []
    with socket.create_server(("localhost", 0)) as listener:

        def answer():
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=server / "rootCA.pem")
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_cert_chain(server / "server.crt", server / "server.key")
            plain, _ = listener.accept()
            with contextlib.suppress(OSError), plain, context.wrap_socket(plain, server_side=True) as tls:
                seen.append(dict(item[0] for item in tls.getpeercert()["subject"])["commonName"])
                tls.sendall(b"x")

        thread = threading.Thread(target=answer)
        thread.start()
        context = ssl.create_default_context(cafile=client / "rootCA.pem")
        context.check_hostname = False
        context.load_cert_chain(client / "client.crt", client / "client.key")
        with socket.create_connection(listener.getsockname()) as plain, context.wrap_socket(plain) as tls:
            assert tls.recv(1) == b"x"
            seen.append(dict(item[0] for item in tls.getpeercert()["subject"])["commonName"])
        thread.join(10)
    return seen


def test_old_and_new_kits_accept_each_other(federation):
    startup = {name: federation / "kits" / name / "startup" for name in (SERVER, SITE, "hospital-b")}
    renew(federation, SITE)
    assert meet(startup[SERVER], startup[SITE]) == [SITE, SERVER]
    renew(federation, SERVER)
    assert meet(startup[SERVER], startup[SITE]) == [SITE, SERVER]
    assert meet(startup[SERVER], startup["hospital-b"]) == ["hospital-b", SERVER]


def test_who_is_not_in_the_federation_is_refused(federation):
    before = files(federation)
    with pytest.raises(UsageError, match=r"--renew hospital-z: project\.yml does not name it"):
        renew(federation, "hospital-z")
    entry = {"name": "hospital-z", "type": "client", "org": "z"}
    more = {**project(), "participants": [*project()["participants"], entry]}
    with pytest.raises(UsageError, match=r"never had a kit .* For a site take --add-site"):
        renew_kit(more, "hospital-z", POLICY, federation, with_wheel=False)
    assert files(federation) == before


def test_a_kit_that_is_gone_can_be_renewed(federation):
    """Archives and kits are deleted once they were sent."""
    shutil.rmtree(federation / "kits" / SITE)
    (federation / "archives" / f"{SITE}.tar.gz").unlink()
    assert renew(federation, SITE).folder.is_dir()
    assert not (federation / "replaced").exists()


def test_the_command_says_what_to_send_and_what_ends(federation, capsys):
    template = TEMPLATES / "three_hospitals_he"
    assert main(["provision", str(template), "--out", str(federation), "--renew", SITE]) == 0
    text = capsys.readouterr().out
    assert f"  {sha256_of(federation / 'archives' / f'{SITE}.tar.gz')}  {SITE}.tar.gz\n" in text
    assert "hospital-b" not in text
    assert "The old certificate stays good until it ends" in text
    assert "under participants" not in text
    assert "ends with the root" not in text
    with pytest.raises(SystemExit) as wrong:
        main(["provision", str(template), "--out", str(federation), "--renew", SITE, "--add-site", "x"])
    assert wrong.value.code == 2


def test_a_certificate_that_ends_with_the_root_is_said(tmp_path, capsys):
    short = {**project(), "builders": [dict(builder) for builder in project()["builders"]]}
    for builder in short["builders"]:
        if builder["path"].endswith("CertBuilder"):
            builder["args"] = {"root_valid_days": 10}
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "project.yml").write_text(yaml.safe_dump(short))
    provision(short, POLICY, tmp_path / "out", with_wheel=False)
    arguments = ["provision", tmp_path / "short", "--out", tmp_path / "out", "--site-policy", POLICY, "--renew", SITE]
    assert main([str(word) for word in arguments]) == 0
    assert "This certificate ends with the root" in capsys.readouterr().out

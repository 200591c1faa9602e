"""A site that is added later gets a kit of the same federation, and everybody else's stays as it is, byte for byte."""

import json
import shutil
import stat
import tarfile
from pathlib import Path

import pytest
from cryptography import x509

from fedseg.cli import main
from fedseg.deployment.kits import add_or_renew
from fedseg.deployment.kits.add_or_renew import add_site, entry_of
from fedseg.deployment.kits.authority import authority_of
from fedseg.deployment.kits.manifest import changed_files, read_manifest
from fedseg.deployment.kits.project_file import read_project
from fedseg.deployment.kits.provisioned_kits import sha256_of
from fedseg.deployment.kits.provisioning import ProvisioningError, provision
from fedseg.errors import ConfigurationError, UsageError
from fedseg.version import __version__

TEMPLATES = Path(__file__).parents[3] / "workspace_templates"
POLICY = TEMPLATES / "site_policy" / "local"
WHEEL = f"fedseg-{__version__}-py3-none-any.whl"
LISTS = ("archives/SHA256SUMS", "authority/three_hospitals_he/state/cert.json")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A federation with encryption, so that there is a shared key to hand on."""
    folder = tmp_path_factory.mktemp("kits") / "out"
    provision(project(), POLICY, folder, wheel(tmp_path_factory.mktemp("wheel")))
    return folder


@pytest.fixture
def federation(made, tmp_path):
    shutil.copytree(made, tmp_path / "out")
    return tmp_path / "out"


def names(folder):
    return {path.name for path in folder.iterdir()}


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def project():
    return read_project(TEMPLATES / "three_hospitals_he")


def wheel(folder):
    path = folder / WHEEL
    path.write_bytes(b"wheel")
    return path


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_new_kit_is_of_the_same_federation_and_no_other_changes(federation):
    before = files(federation)
    (kit,) = add_site(project(), "hospital-d", POLICY, federation).kits
    after = files(federation)
    new = {name for name in after if name not in before}
    assert {name.split("/")[0] + "/" + name.split("/")[1].split(".")[0] for name in new} == {
        "kits/hospital-d",
        "archives/hospital-d",
    }
    assert {name for name in before if after[name] != before[name]} == set(LISTS)
    root = x509.load_pem_x509_certificate(before["kits/hospital-a/startup/rootCA.pem"])
    certificate = x509.load_pem_x509_certificate((kit.folder / "startup" / "client.crt").read_bytes())
    certificate.verify_directly_issued_by(root)
    assert kit.certificate.subject == "O=hospital_d,CN=hospital-d"
    for name in ("rootCA.pem", "client_context.tenseal"):
        assert after[f"kits/hospital-d/startup/{name}"] == before[f"kits/hospital-a/startup/{name}"]
    # A kit as the others have it, with the same server, policy and wheel.
    assert {n for n in after if n.startswith("kits/hospital-d/")} == {
        n.replace("hospital-a", "hospital-d") for n in before if n.startswith("kits/hospital-a/")
    }
    for name in ("local/resources.json", "local/fedseg.json", WHEEL):
        assert after[f"kits/hospital-d/{name}"] == before[f"kits/hospital-a/{name}"]
    servers = [json.loads(after[f"kits/hospital-{s}/startup/fed_client.json"])["servers"] for s in "ad"]
    assert servers[0] == servers[1]
    manifest = read_manifest(kit.folder)
    assert (manifest.participant, manifest.role, manifest.fedseg_version) == ("hospital-d", "client", __version__)
    assert changed_files(kit.folder, manifest) == ([], [])


def test_archive_and_sums_are_complete_and_private(federation):
    (kit,) = add_site(project(), "hospital-d", POLICY, federation).kits
    lines = (federation / "archives" / "SHA256SUMS").read_text("utf-8").splitlines()
    assert len(lines) == len(project()["participants"]) + 1
    for line in lines:
        digest, _, name = line.partition("  ")
        assert sha256_of(federation / "archives" / name) == digest
    assert mode(kit.archive) == 0o600
    assert mode(authority_of(federation / "authority").file) == 0o600
    assert mode(kit.folder / "startup" / "client.key") == 0o600
    with tarfile.open(kit.archive) as archive:
        assert "hospital-d/fedseg_kit.json" in archive.getnames()
    assert names(federation) == {"kits", "archives", "authority", WHEEL}


def test_one_site_after_the_other_can_be_added_and_a_failed_attempt_repeated(federation, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(add_or_renew, "_note_sum", lambda out, name: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            add_site(project(), "hospital-d", POLICY, federation)
    assert "hospital-d" in authority_of(federation / "authority").names
    assert "hospital-d" not in names(federation / "kits")
    kits = [add_site(project(), name, POLICY, federation).kits[0] for name in ("hospital-d", "hospital-e")]
    assert authority_of(federation / "authority").names >= {"hospital-a", "hospital-d", "hospital-e"}
    assert kits[0].certificate.fingerprint != kits[1].certificate.fingerprint


def test_an_entry_of_the_project_file_counts(federation):
    entry = {"name": "north", "type": "client", "org": "clinics_of_the_north", "allow_log_streaming": False}
    with_entry = {**project(), "participants": [*project()["participants"], entry]}
    (kit,) = add_site(with_entry, "north", POLICY, federation).kits
    assert kit.certificate.subject == "O=clinics_of_the_north,CN=north"
    assert entry_of(project(), "north-2")["org"] == "north_2"


@pytest.mark.parametrize("name", ["", "a b", "../x", "é", "server.example.org", "coordinator@example.org"])
def test_a_name_that_is_not_fit_for_a_site_is_refused(name, federation):
    before = files(federation)
    with pytest.raises(ConfigurationError, match="--add-site"):
        add_site(project(), name, POLICY, federation)
    assert files(federation) == before


def test_a_name_is_used_once(federation):
    before = files(federation)
    with pytest.raises(UsageError, match=r"hospital-a: this name has a kit in .*kits already"):
        add_site(project(), "hospital-a", POLICY, federation)
    assert files(federation) == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda out: shutil.rmtree(out / "kits"), "is no folder of a provisioned federation"),
        (lambda out: shutil.rmtree(out / "authority"), "does not hold the keys"),
        (lambda out: (out / LISTS[1]).write_text("{}"), "does not hold the keys"),
        (
            lambda out: (out / "kits" / "server.example.org" / "startup" / "rootCA.pem").write_text("x"),
            "belongs to another federation",
        ),
    ],
)
def test_what_is_no_federation_is_refused(damage, message, federation):
    damage(federation)
    with pytest.raises(UsageError, match=message):
        add_site(project(), "hospital-d", POLICY, federation)
    assert not (federation / "kits" / "hospital-d").exists()


@pytest.mark.parametrize("change", [{"name": "other"}, {"participants": None}])
def test_another_project_file_is_refused(change, federation):
    other = project()
    if change.get("name"):
        other.update(change)
    else:
        other["participants"][0]["name"] = "elsewhere.example.org"
    with pytest.raises(UsageError, match=r"was made from another project\.yml: it holds 'three_hospitals_he'"):
        add_site(other, "hospital-d", POLICY, federation)


def test_what_flare_refuses_leaves_nothing(federation):
    before = files(federation)
    builders = [b if "cert" not in b["path"] else {**b, "args": {"root_valid_days": 3}} for b in project()["builders"]]
    with pytest.raises(ProvisioningError, match="root_valid_days=3 does not match"):
        add_site({**project(), "builders": builders}, "hospital-d", POLICY, federation)
    assert files(federation) == before


def test_the_command_says_what_to_send_to_whom(federation, capsys):
    template = TEMPLATES / "three_hospitals_he"
    assert main(["provision", str(template), "--out", str(federation), "--add-site", "hospital-d"]) == 0
    text = capsys.readouterr().out
    assert f"  {sha256_of(federation / 'archives' / 'hospital-d.tar.gz')}  hospital-d.tar.gz\n" in text
    assert "hospital-a" not in text
    assert "Everybody else goes on with the kits they have." in text
    assert '  - {name: "hospital-d", type: "client", org: "hospital_d", allow_log_streaming: false}' in text


def test_a_name_whose_kit_was_deleted_gets_a_new_key(federation):
    """The old one may have been stolen, which is why the kit is gone."""
    kit = federation / "kits" / "hospital-a"
    before = [(kit / "startup" / name).read_bytes() for name in ("client.key", "client.crt")]
    shutil.rmtree(kit)
    add_site(project(), "hospital-a", POLICY, federation)
    assert all(
        (kit / "startup" / n).read_bytes() != b for n, b in zip(("client.key", "client.crt"), before, strict=True)
    )


def test_a_kit_has_the_wheel_of_the_version_that_wrote_its_lists(federation, monkeypatch):
    """A coordinator who has upgraded would else send lists of the new version with the wheel of the old one."""
    before = files(federation)
    monkeypatch.setattr(add_or_renew, "__version__", "99.0")
    with pytest.raises(UsageError, match=rf"is fedseg {__version__}, and this is fedseg 99\.0.*by --wheel"):
        add_site(project(), "hospital-d", POLICY, federation)
    assert files(federation) == before
    monkeypatch.undo()
    (federation / "fedseg-0.0.1-py3-none-any.whl").write_bytes(b"old")
    (kit,) = add_site(project(), "hospital-d", POLICY, federation).kits
    assert [path.name for path in kit.folder.glob("*.whl")] == [WHEEL]
    with pytest.raises(UsageError, match=r"is fedseg 0\.0\.1, and this is fedseg"):
        add_site(project(), "hospital-e", POLICY, federation, federation / "fedseg-0.0.1-py3-none-any.whl")

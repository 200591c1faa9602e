"""What provisioning puts into the kits, read as FLARE, fedseg and openssl would read it."""

import hashlib
import json
import os
import re
import ssl
import stat
import tarfile
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from nvflare.lighter.utils import load_yaml

import fedseg
from fedseg.cli import COMMANDS, main
from fedseg.commands.local_federation import TEMPLATE, _of_repository
from fedseg.deployment.kits.certificates import read_certificate
from fedseg.deployment.kits.manifest import MANIFEST_FILE
from fedseg.deployment.kits.project_file import check_project, on_this_machine, read_project
from fedseg.deployment.kits.provisioned_kits import sha256_of
from fedseg.deployment.kits.provisioning import ProvisioningError, provision
from fedseg.deployment.kits.wheel import build_wheel
from fedseg.errors import ConfigurationError, DataError, UsageError
from fedseg.jobs.allowed_components import GUARD, LAUNCHER, site_resources
from fedseg.privacy.encryption.context import KEY_NAME_FILE, public_context, secret_context
from fedseg.site.profile import read_profile, read_state_folder, server_context_file
from fedseg.version import __version__

ROOT = Path(__file__).parents[3]
TEMPLATES = ROOT / "workspace_templates"
WHEEL = f"fedseg-{__version__}-py3-none-any.whl"
POLICY = TEMPLATES / "site_policy" / "local"
SITES = ["hospital-a", "hospital-b", "hospital-c"]
PEOPLE = {
    "coordinator@example.org": "project_admin",
    **{f"admin@{site}.example.org": "org_admin" for site in SITES},
    "auditor@example.org": "member",
}
LOCAL = {"authorization.json", "fedseg.json", "log_config.json", "privacy.json", "resources.json"}
LOCAL_OF_FLARE = {
    "authorization.json.default",
    "log_config.json.default",
    "privacy.json.sample",
    "resources.json.default",
}
STARTUP = {"start.sh", "sub_start.sh", "stop_fl.sh", "rootCA.pem"}


def load(path):
    return json.loads(Path(path).read_text("utf-8"))


def names(folder):
    return {path.name for path in folder.iterdir()}


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def federation(tmp_path_factory, home):
    wheel = tmp_path_factory.mktemp("wheel") / WHEEL
    wheel.write_bytes(b"wheel")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        return provision(
            read_project(TEMPLATES / "three_hospitals"), POLICY, tmp_path_factory.mktemp("kits") / "out", wheel
        )


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory):
    project = read_project(TEMPLATES / "three_hospitals_he")
    return provision(project, POLICY, tmp_path_factory.mktemp("he") / "out", with_wheel=False)


def kit(federation, name):
    return next(kit for kit in federation.kits if kit.name == name)


# ---------------------------------------------------------------- kits


def test_every_participant_of_the_template_gets_a_kit(federation):
    found = {kit.name: kit.role for kit in federation.kits}
    assert found == {"server.example.org": "server", **dict.fromkeys(SITES, "client"), **PEOPLE}
    assert names(federation.folder) == {"kits", "archives", "authority", WHEEL}
    assert names(federation.folder / "kits") == set(found)


@pytest.mark.parametrize("site", SITES)
def test_a_sites_kit_holds_exactly_these_files(federation, site):
    folder = kit(federation, site).folder
    assert names(folder) == {"startup", "local", "readme.txt", WHEEL, MANIFEST_FILE, "transfer"}
    assert names(folder / "local") == LOCAL | LOCAL_OF_FLARE
    assert names(folder / "startup") == STARTUP | {"fed_client.json", "client.crt", "client.key"}
    assert names(folder / "transfer") == set()


def test_the_servers_kit_holds_exactly_these_files(federation):
    folder = kit(federation, "server.example.org").folder
    assert names(folder / "local") == (LOCAL | LOCAL_OF_FLARE) - {"privacy.json"}
    assert names(folder / "startup") == STARTUP | {"fed_server.json", "server.crt", "server.key"}


@pytest.mark.parametrize("name", ["server.example.org", *SITES])
def test_server_and_sites_load_the_listed_classes_only(federation, name):
    folder = kit(federation, name).folder / "local"
    resources, default = load(folder / "resources.json"), load(folder / "resources.json.default")
    assert resources["class_allow_list"] == site_resources()["class_allow_list"]
    assert not any(GUARD.startswith(allowed) for allowed in resources["class_allow_list"])
    assert resources["class_list_enforcement_mode"] == "enforce"
    # resources.json replaces FLARE's default as a whole, so nothing that a process needs may be missing.
    assert set(resources) == set(default)
    launchers = [part["path"] for part in resources["components"] if part["id"] == "process_launcher"]
    flares = [part["path"] for part in default["components"] if part["id"] == "process_launcher"]
    assert launchers == ([LAUNCHER] if name in SITES else flares)
    if name not in SITES:
        (server,) = resources["servers"]
        assert server == {**default["servers"][0], "heart_beat_timeout": 120}


@pytest.mark.parametrize("site", SITES)
def test_a_site_streams_no_log(federation, site):
    resources = load(kit(federation, site).folder / "local" / "resources.json")
    assert resources["allow_log_streaming"] is False
    default = load(kit(federation, site).folder / "local" / "resources.json.default")
    left_out = {part["id"] for part in default["components"]} - {part["id"] for part in resources["components"]}
    assert left_out == {"site_log_streamer"}


@pytest.mark.parametrize("site", SITES)
def test_a_sites_policy_is_the_template_to_fill_in(federation, site, tmp_path):
    folder = kit(federation, site).folder / "local"
    for name in ("authorization.json", "privacy.json", "fedseg.json"):
        assert (folder / name).read_bytes() == (POLICY / name).read_bytes()
    assert read_profile(site, folder, tmp_path).policy is not None


def test_the_server_keeps_jobs_and_checkpoints_outside_of_tmp(federation, tmp_path):
    folder = kit(federation, "server.example.org").folder / "local"
    text = (folder / "resources.json").read_text("utf-8")
    assert "/tmp" in (folder / "resources.json.default").read_text("utf-8")
    assert "/tmp" not in text
    assert read_state_folder("server", folder, tmp_path) == Path("/var/lib/fedseg/state")


def test_jobs_must_be_signed(federation):
    for name, file in (("server.example.org", "fed_server.json"), ("hospital-a", "fed_client.json")):
        assert load(kit(federation, name).folder / "startup" / file)["require_signed_jobs"] is True


def test_archives_are_the_kits_and_private(federation):
    sums = (federation.folder / "archives" / "SHA256SUMS").read_text("utf-8").splitlines()
    assert sorted(sums) == sorted(f"{each.sha256}  {each.archive.name}" for each in federation.kits)
    for each in federation.kits:
        assert sha256_of(each.archive) == each.sha256
        assert mode(each.archive) == 0o600
        with tarfile.open(each.archive) as archive:
            packed = {m.name: (m.mode, m.size) for m in archive.getmembers() if m.isfile()}
        files = [path for path in each.folder.rglob("*") if path.is_file()]
        assert packed == {
            str(path.relative_to(each.folder.parent)): (mode(path), path.stat().st_size) for path in files
        }


def test_keys_are_for_their_owner_only(federation):
    keys = list(federation.folder.rglob("*.key"))
    assert len(keys) == len(federation.kits)
    assert {mode(path) for path in keys} == {0o600}
    authority = federation.folder / "authority"
    assert mode(authority) == 0o700
    assert {mode(path) for path in authority.rglob("*") if path.is_file()} == {0o600}


def test_provisioning_writes_nothing_into_the_home_folder(federation, home):
    assert names(home) == set()


# -------------------------------------------------------- certificates


def test_every_certificate_is_signed_by_the_root_and_names_its_participant(federation):
    root = x509.load_pem_x509_certificate((federation.kits[0].folder / "startup" / "rootCA.pem").read_bytes())
    assert len({(each.folder / "startup" / "rootCA.pem").read_bytes() for each in federation.kits}) == 1
    for each in federation.kits:
        (path,) = (each.folder / "startup").glob("*.crt")
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        certificate.verify_directly_issued_by(root)
        assert f"CN={each.name}" in each.certificate.subject.split(",")


def test_lifetimes_are_those_that_the_template_states(federation):
    now = datetime.now(UTC)
    text = (TEMPLATES / "three_hospitals" / "project.yml").read_text("utf-8")
    assert "root_valid_days: 720" in text
    assert "last 360 days" in text
    assert abs(federation.root.not_after - now - timedelta(days=720)) < timedelta(hours=1)
    for each in federation.kits:
        assert abs(each.certificate.not_after - now - timedelta(days=360)) < timedelta(hours=1)
        assert each.certificate.not_before <= now


def test_two_federations_do_not_know_each_other(federation, encrypted):
    assert federation.root.fingerprint != encrypted.root.fingerprint
    root = x509.load_pem_x509_certificate((encrypted.kits[0].folder / "startup" / "rootCA.pem").read_bytes())
    foreign = x509.load_pem_x509_certificate(
        (kit(federation, "hospital-a").folder / "startup" / "client.crt").read_bytes()
    )
    with pytest.raises((ValueError, InvalidSignature)):
        foreign.verify_directly_issued_by(root)


def test_a_fingerprint_is_the_one_that_openssl_prints(federation):
    # openssl x509 -noout -fingerprint -sha256: SHA-256 over the DER form, pairs of capitals with colons between.
    pem = (federation.kits[0].folder / "startup" / "rootCA.pem").read_text("ascii")
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest().upper()
    assert federation.root.fingerprint == ":".join(digest[i : i + 2] for i in range(0, 64, 2))


def test_a_file_that_is_no_certificate_is_refused(tmp_path):
    (tmp_path / "x.crt").write_text("no certificate")
    with pytest.raises(DataError, match=r"x\.crt cannot be read as a certificate"):
        read_certificate(tmp_path / "x.crt")


# ---------------------------------------------------------- encryption


def test_the_secret_key_is_in_every_sites_kit_and_not_in_the_servers(encrypted, tmp_path):
    folder = kit(encrypted, "server.example.org").folder
    secrets = {path.read_bytes() for path in (encrypted.folder / "kits").rglob("client_context.tenseal")}
    assert len(secrets) == 1, "all sites share one key"
    (secret,) = secrets
    assert secret_context(secret).is_secret
    assert not list(folder.rglob("client_context*"))
    server = server_context_file(folder / "local", tmp_path)
    public_context(server.read_bytes())
    assert server.with_name(KEY_NAME_FILE).read_text() == secret_context(secret).key
    for site in SITES:
        profile = read_profile(site, kit(encrypted, site).folder / "local", tmp_path)
        assert profile.encryption_context.read_bytes() == secret
        assert mode(profile.encryption_context) == 0o600
    for name in PEOPLE:
        assert not list(kit(encrypted, name).folder.rglob("*.tenseal"))


def test_the_start_up_folders_with_keys_are_signed(encrypted):
    for name in ("server.example.org", *SITES):
        folder = kit(encrypted, name).folder / "startup"
        assert set(load(folder / "signature.json")) >= names(folder) - {"signature.json"}


def test_plain_kits_have_no_encryption_context(federation):
    assert not list(federation.folder.rglob("*.tenseal"))


# ------------------------------------------------------------ bad input


def project():
    return read_project(TEMPLATES / "three_hospitals")


def without(content, kind):
    return {**content, "participants": [p for p in content["participants"] if p["type"] != kind]}


def changed(content, kind, **values):
    """The project with other values of the first participant of a kind."""
    first = next(p for p in content["participants"] if p["type"] == kind)
    return {**content, "participants": [{**p, **values} if p is first else p for p in content["participants"]]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: without(p, "server"), "participants server is 0, but must be exactly 1"),
        (lambda p: without(p, "client"), "participants client is 0, but must be at least 1 site"),
        (lambda p: without(p, "admin"), "participants project_admin is 0"),
        (lambda p: {**p, "participants": p["participants"] * 2}, "but must be the name of one participant only"),
        (lambda p: {**p, "participants": [{"name": "x", "type": "relais"}]}, "type of x is 'relais'"),
        (lambda p: {**p, "participants": ["x"]}, "a list of entries with name and type"),
        (lambda p: changed(p, "client", name="server"), "'server', but must be the name of a site"),
        (lambda p: changed(p, "client", name="hospital.a"), "'hospital.a', but must be the name of a site"),
        (lambda p: changed(p, "client", name="HOSPITAL-B"), "'HOSPITAL-B', but must be the name of one participant"),
        (lambda p: changed(p, "client", name=7), "name is 7, but must be the name of a site"),
        (lambda p: changed(p, "client", org="a-b"), "hospital-a: org is 'a-b', but must be the name of an org"),
        (lambda p: changed(p, "server", name="a." * 32 + "de"), "at most 64 letters long. Take a short name"),
        (lambda p: changed(p, "server", name="fl_server"), "'fl_server', but must be the name of a server"),
        (lambda p: changed(p, "server", fed_learn_port=0), "fed_learn_port is 0, but must be a whole number from 1"),
        (lambda p: changed(p, "server", admin_port="8003"), "admin_port is '8003', but must be"),
        (lambda p: changed(p, "server", listening_host={"port": 65536}), "port is 65536, but must be"),
        (lambda p: changed(p, "admin", name="ada"), "'ada', but must be the name of a person: an e-mail address"),
        (
            lambda p: changed(p, "client", evaluate_only="yes"),
            "hospital-a: evaluate_only is 'yes', but must be true or",
        ),
        (lambda p: changed(p, "server", evaluate_only=True), "evaluate_only is True, but must be left out but at a"),
        (lambda p: {**p, "name": "../x"}, "'../x', but must be the name of a project"),
        (lambda p: {**p, "builders": []}, "builders is"),
        (lambda p: [], "a mapping with name, participants and builders"),
    ],
)
def test_a_project_that_could_not_train_is_refused(change, message):
    with pytest.raises(ConfigurationError, match=message):
        check_project(change(project()))


def test_the_kit_of_a_site_that_scores_only_says_so(tmp_path):
    made = provision(changed(project(), "client", evaluate_only=True), POLICY, tmp_path / "out", with_wheel=False)
    profiles = {site: read_profile(site, kit(made, site).folder / "local", tmp_path) for site in SITES}
    assert {site: profile.policy.evaluate_only for site, profile in profiles.items()} == {
        site: site == "hospital-a" for site in SITES
    }
    said = {site: "never trains" in (kit(made, site).folder / "readme.txt").read_text("utf-8") for site in SITES}
    assert said == {site: site == "hospital-a" for site in SITES}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"api_version": 2}, "API version expected 3 or 4 but found 2"),
        ({"builders": [{"path": "nvflare.lighter.impl.no_such.Builder"}]}, "no_such"),
        (
            {"builders": [{"path": "nvflare.lighter.impl.cert.CertBuilder", "args": {"root_valid_days": 0}}]},
            "root_valid_days must be a positive integer",
        ),
    ],
)
def test_what_flare_refuses_is_said_and_leaves_nothing(change, message, tmp_path, capsys):
    with pytest.raises(ProvisioningError, match=message):
        provision({**project(), **change}, POLICY, tmp_path / "out", with_wheel=False)
    assert names(tmp_path) == set()
    assert capsys.readouterr().err == "", "FLARE's traceback is not shown"


def test_folders_and_files_are_looked_at_first(tmp_path, capsys):
    template = TEMPLATES / "three_hospitals"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    old = tmp_path / "fedseg-0.0.1-py3-none-any.whl"
    old.touch()
    cases = {
        "is no template": ["provision", tmp_path, "--out", tmp_path / "a"],
        "is not empty": ["provision", template, "--out", tmp_path / "full", "--wheel", wheel(tmp_path)],
        "is no wheel": ["provision", template, "--out", tmp_path / "a", "--wheel", tmp_path / "none.whl"],
        "is fedseg 0.0.1, and this": ["provision", template, "--out", tmp_path / "a", "--wheel", old],
        "has no authorization.json": ["provision", template, "--out", tmp_path / "a", "--site-policy", tmp_path],
    }
    for message, arguments in cases.items():
        assert main([str(argument) for argument in arguments]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "a").exists()


def test_a_template_is_found_from_any_folder_or_the_user_is_told_where(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert _of_repository(TEMPLATE) == TEMPLATES / "three_hospitals"
    (tmp_path / TEMPLATE).mkdir(parents=True)
    assert _of_repository(TEMPLATE) == TEMPLATE
    monkeypatch.setattr("fedseg.files.shipped._PACKAGE", tmp_path / "site-packages" / "fedseg")
    (tmp_path / TEMPLATE).rmdir()
    assert main(["local-federation", "--out", "out"]) == 2
    assert "`fedseg files --out DIR` writes the templates" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def wheel(folder):
    path = folder / WHEEL
    path.write_bytes(b"wheel")
    return path


def test_a_project_file_that_is_no_yaml_is_refused(tmp_path):
    (tmp_path / "project.yml").write_text("name: [")
    with pytest.raises(ConfigurationError, match=r"must be readable as YAML"):
        read_project(tmp_path)


# ------------------------------------------------------------ the rest


def test_the_templates_differ_in_name_and_encryption_only():
    plain, encrypted = (
        load_yaml(str(TEMPLATES / n / "project.yml")) for n in ("three_hospitals", "three_hospitals_he")
    )
    assert plain["participants"] == encrypted["participants"]
    assert plain["api_version"] == encrypted["api_version"] == 4
    added = [builder for builder in encrypted["builders"] if builder not in plain["builders"]]
    assert [builder["path"].rpartition(".")[2] for builder in added] == ["EncryptionContexts", "SignatureBuilder"]


def test_on_this_machine_replaces_server_and_sites_only():
    moved = on_this_machine(project(), ["a-1"], 1234)
    assert [(p["name"], p["type"], p["org"]) for p in moved["participants"][:2]] == [
        ("localhost", "server", "coordination"),
        ("a-1", "client", "a_1"),
    ]
    assert {p["name"]: p["role"] for p in moved["participants"][2:]} == PEOPLE
    assert (moved["participants"][0]["fed_learn_port"], moved["participants"][0]["admin_port"]) == (1234, 1234)


def test_the_command_says_what_to_send_to_whom(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    out = tmp_path / "out"
    assert (
        main(["provision", str(TEMPLATES / "three_hospitals"), "--out", str(out), "--wheel", str(wheel(tmp_path))]) == 0
    )
    text = capsys.readouterr().out
    for name in ("server.example.org", *SITES, *PEOPLE):
        assert f"  {sha256_of(out / 'archives' / f'{name}.tar.gz')}  {name}.tar.gz\n" in text
    root = read_certificate(out / "kits" / "hospital-a" / "startup" / "rootCA.pem")
    assert f"  {root.fingerprint}\n" in text
    assert f"{root.not_after:%Y-%m-%d}" in text
    assert str(out / "authority") in text
    assert not (tmp_path / "home").exists()


def test_the_wheel_is_this_package(tmp_path):
    before = set(os.listdir(ROOT))
    path = build_wheel(tmp_path)
    assert path.name == f"fedseg-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(path) as archive:
        packed = {name for name in archive.namelist() if name.startswith("fedseg/")}
    sources = ROOT / "custom" / "fedseg"
    wanted = [p for pattern in ("*.py", "*.j2", "py.typed") for p in sources.rglob(pattern)]
    shipped = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE")]
    folders = ("docs", "jobs", "experiments", "workspace_templates")
    shipped += [p for name in folders for p in (ROOT / name).rglob("*") if p.is_file()]
    assert packed == {f"fedseg/{p.relative_to(sources)}" for p in wanted} | {
        f"fedseg/shipped/{p.relative_to(ROOT)}" for p in shipped
    }
    assert set(os.listdir(ROOT)) == before, "nothing is written beside the sources"


def test_without_sources_a_wheel_must_be_named(tmp_path, monkeypatch):
    monkeypatch.setattr(fedseg, "__file__", str(tmp_path / "a" / "b" / "c" / "__init__.py"))
    with pytest.raises(UsageError, match="--wheel is needed"):
        build_wheel(tmp_path)


@pytest.mark.parametrize(("name", "said", "not_said"), [
    (SITES[0], ["pip install ./fedseg-*.whl", "local/fedseg.json", "fedseg site check"], "fedseg submit"),
    ("server.example.org", ["where the server keeps its state", "fedseg site start"], "fedseg submit"),
    (next(iter(PEOPLE)), ["fedseg submit JOB --kit .", "fedseg fetch JOB_ID --kit ."], "fedseg site"),
])  # fmt: skip
def test_a_kits_readme_is_of_fedseg_and_of_its_role(name, said, not_said, federation):
    """It stands in the signed list of files; its commands are those that there are."""
    text = (kit(federation, name).folder / "readme.txt").read_text("utf-8")
    assert all(words in text for words in (name, *said))
    assert not_said not in text
    manifest = json.loads((kit(federation, name).folder / MANIFEST_FILE).read_text("utf-8"))
    assert "readme.txt" in json.dumps(manifest)
    for line in re.findall(r" {3,}fedseg (\S+)", text):
        assert line in COMMANDS

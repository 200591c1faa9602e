"""The files of a job are looked at as bytes, before anything parses them the way FLARE does."""

import io
import json
import os
import shutil
import stat
import zipfile
from pathlib import Path

import pytest

from fedseg.contract import allowed_job_files
from fedseg.contract.allowed_job_files import check_app_archive, check_app_folder, check_job_archive, check_job_folder
from fedseg.errors import ConfigurationError, UsageError
from fedseg.files.archive_limits import Limits
from fedseg.jobs.job import apply_settings, read_job

JOB = Path(__file__).parents[2] / "jobs" / "hippocampus_partial"
APP = JOB / "app"


def contents(folder, prefix=""):
    return {f"{prefix}{p.relative_to(folder).as_posix()}": p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def archive(files):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, data in files.items():
            file.writestr(name, data)
    return content.getvalue()


def with_client(change):
    """The app with another text in the sites' part."""
    text = (APP / "config" / "config_fed_client.json").read_text("utf-8")
    return archive({**contents(APP), "config/config_fed_client.json": change(text).encode()})


def test_a_job_passes_as_folder_and_as_archive(tmp_path):
    check_job_folder(JOB)
    check_app_folder(APP)
    check_app_archive(archive(contents(APP)))
    file = tmp_path / "job.zip"
    file.write_bytes(archive(contents(JOB, "a_job/")))
    check_job_archive(file)
    check_job_archive(file.read_bytes())


def test_what_flare_adds_when_it_signs_passes():
    signed = {f"{folder}.__nvfl_{name}": b"{}" for folder in ("", "config/") for name in ("sig.json", "submitter.crt")}
    check_app_archive(archive({**contents(APP), **signed, "config/initial.safetensors": b"\0" * 9, "custom/x.py": b""}))


OTHERS = (
    "config/config_fed_client.conf",
    "config/config_fed_server.CONF",
    "config/config_fed_client.yml",
    "config/config_fed_client.yaml",
    "config/config_fed_client.json.default",
    "config/config_fed_client.conf.default",
    "config/CONFIG_FED_CLIENT.JSON",
    "config/config_fed_client.json ",
    "config/deep/config_fed_client.json",
    "config/comm_config.json",
    "config/log_config.json",
    "config/environment.json",
    "config/job.xml",
    "config/job.py",
    "config/readme.txt",
    "config_fed_client.json",
    "resources.json",
    "custom/config_fed_client.conf",
    "custom/deep/settings.yaml",
    "cust/x.py",
)


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_of_another_name_is_refused_by_it(name):
    with pytest.raises(ConfigurationError, match=r"is not known: a job holds .*JSON") as raised:
        check_app_archive(archive({**contents(APP), name: b"{}"}))
    assert name in str(raised.value)


@pytest.mark.parametrize("name", ["meta.conf", "meta.yml", "meta.json.default", ".hidden", "notes.md", "a b/config/x"])
def test_so_is_one_beside_the_app(name, tmp_path):
    job = Path(shutil.copytree(JOB, tmp_path / "job"))
    (job / name).parent.mkdir(parents=True, exist_ok=True)
    (job / name).write_text("a = 1")
    with pytest.raises(ConfigurationError) as raised:
        check_job_folder(job)
    assert name in str(raised.value)
    with pytest.raises(ConfigurationError):
        check_job_archive(archive(contents(job, "job/")))
    with pytest.raises(ConfigurationError):
        read_job(job)


SUBSTITUTIONS = (
    "{SITE_NAME}",
    "{$HOME}",
    "${HOME}",
    "${?HOME}",
    "{training[0][patient]}",
    "{@part:n=1}",
    "{WORKSPACE}/startup",
    "@part",
    "somebody@ALL",
    "@all",
    "$HOME",
    "an end}",
)


@pytest.mark.parametrize("text", SUBSTITUTIONS)
@pytest.mark.parametrize("place", ["value", "name", "list"])
def test_a_text_that_flare_would_replace_is_refused_by_its_place(text, place):
    value = {"value": {"x": {"y": text}}, "name": {"x": {text: 1}}, "list": {"x": ["fine", text]}}[place]
    for escaped in (False, True):
        content = json.dumps(value)
        if escaped:
            content = content.replace(json.dumps(text)[1:-1], "".join(f"\\u{ord(c):04x}" for c in text))
            assert text not in content
        with pytest.raises(ConfigurationError, match=r"config_fed_client\.json: .*without \{, \}, \$ and @"):
            check_app_archive(with_client(lambda _, content=content: content))


def test_all_sites_are_named_in_the_meta_file_only():
    for name in ("config_fed_server.json", "fedseg.json"):
        with pytest.raises(ConfigurationError, match="@ALL"):
            check_app_archive(archive({**contents(APP), f"config/{name}": b'{"method": "@ALL"}'}))


NO_JSON = {
    "hocon": 'include file("/etc/hostname")\nformat_version = 2',
    "hocon that looks like JSON": '{"format_version": 2, include url("http://127.0.0.1:9/")}',
    "comment": '{"format_version": 2 // really\n}',
    "unquoted": "{format_version: 2}",
    "yaml": "format_version: 2\n",
    "byte order mark": "\ufeff{}",
    "a list": "[]",
    "a text": '"include"',
    "a name twice": '{"format_version": 1, "format_version": 2}',
    "deep": '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "digits": '{"a": ' + "1" * 10_000 + "}",
    "nothing": "",
}


@pytest.mark.parametrize("kind", NO_JSON)
def test_content_that_is_no_plain_json_is_refused(kind):
    with pytest.raises(ConfigurationError, match=r"config_fed_client\.json .*JSON"):
        check_app_archive(with_client(lambda _: NO_JSON[kind]))


def test_so_are_other_encodings_and_sizes(monkeypatch):
    for encoding in ("utf-16", "utf-32"):
        changed = {**contents(APP), "config/fedseg.json": (APP / "config" / "fedseg.json").read_text().encode(encoding)}
        with pytest.raises(ConfigurationError, match=r"fedseg\.json"):
            check_app_archive(archive(changed))
    monkeypatch.setattr(allowed_job_files, "MOST_BYTES", 100)
    with pytest.raises(ConfigurationError, match=r"must be 100 bytes at most"):
        check_app_archive(archive(contents(APP)))


def test_archives_that_unpack_to_something_else_are_refused():
    twice = io.BytesIO(archive(contents(APP)))
    with zipfile.ZipFile(twice, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("config/config_fed_client.json", "{}")
    with pytest.raises(ConfigurationError, match="there once"):
        check_app_archive(twice.getvalue())
    link = zipfile.ZipInfo("config/initial.safetensors")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    linked = io.BytesIO(archive(contents(APP)))
    with zipfile.ZipFile(linked, "a") as file:
        file.writestr(link, "/etc/hostname")
    with pytest.raises(ConfigurationError, match="a plain file"):
        check_app_archive(linked.getvalue())
    whole = archive(contents(APP))
    for broken in (b"", b"PK", whole[:-30], whole.replace(b"format_version", b"format_VERSION", 1)):
        with pytest.raises(ConfigurationError, match=r"ZIP|can be read"):
            check_app_archive(broken)
    with pytest.raises(ConfigurationError, match="in the one folder"):
        check_job_archive(archive({**contents(JOB, "a/"), **contents(JOB, "b/")}))


def test_a_link_in_a_folder_is_judged_by_what_it_leads_to(tmp_path):
    job = Path(shutil.copytree(JOB, tmp_path / "job"))
    client = job / "app" / "config" / "config_fed_client.json"
    client.unlink()
    (tmp_path / "datalist.json").write_text('{"training": "{x}"}')
    os.symlink(tmp_path / "datalist.json", client)
    with pytest.raises(ConfigurationError, match="config_fed_client"):
        read_job(job)
    client.unlink()
    os.symlink(tmp_path / "nothing", client)
    with pytest.raises(UsageError, match="config_fed_client"):
        read_job(job)


@pytest.mark.parametrize("setting", ["method={$HOME}", "workflow.run_id=${USER}", "task.name=@x"])
def test_a_setting_of_the_command_line_is_judged_as_well(setting):
    job = read_job(JOB)
    apply_settings(job, None, None, None, [setting])
    with pytest.raises(ConfigurationError, match=r"without \{"):
        job.check()


# ------------------------------------------------------------- links, names that lead out, and what would fill a disk


@pytest.mark.parametrize("place", ["app/config/initial.safetensors", "app/custom/key.py", "app/config/fedseg.json"])
def test_a_link_in_a_job_would_send_what_it_points_to(tmp_path, place):
    """A stranger's job with a link to a key of whoever submits it: FLARE packs what the link points to."""
    (tmp_path / "secret").write_text('{"key": "PRIVATE"}')
    job = Path(shutil.copytree(JOB, tmp_path / "job"))
    (job / place).unlink(missing_ok=True)
    (job / place).parent.mkdir(exist_ok=True)
    (job / place).symlink_to(tmp_path / "secret")
    for read in (check_job_folder, read_job):
        with pytest.raises(ConfigurationError, match="no link to another place"):
            read(job)


def test_nor_does_a_folder_lead_elsewhere(tmp_path):
    (tmp_path / "keys").mkdir()
    job = Path(shutil.copytree(JOB, tmp_path / "job"))
    (job / "app" / "custom").symlink_to(tmp_path / "keys")
    with pytest.raises(ConfigurationError, match=r"app/custom.*no link to another place"):
        check_job_folder(job)


LEADING_OUT = (
    "custom/../../../x.py",
    "/custom/x.py",
    "custom/..\\..\\x.py",
    "custom/../x",
    "custom//x.py",
    "../config/fedseg.json",
    "../../folder/",
)


@pytest.mark.parametrize("name", LEADING_OUT)
def test_an_archive_holds_no_name_that_leads_out_of_its_folder(name):
    for check, files in ((check_app_archive, contents(APP)), (check_job_archive, contents(JOB, "job/"))):
        with pytest.raises(ConfigurationError, match="must be that of a place inside of it"):
            check(archive({**files, name: b"x = 1"}))


@pytest.mark.parametrize("folder", ["..", "", "."])
def test_nor_is_the_folder_of_a_job_another_place(folder):
    with pytest.raises(ConfigurationError, match="must be that of a place inside of it"):
        check_job_archive(archive(contents(JOB, f"{folder}/")))


def test_a_job_has_so_many_files_and_bytes_at_most(tmp_path, monkeypatch):
    """As an archive, and as a folder that somebody is about to simulate, package or submit."""
    job = Path(shutil.copytree(JOB, tmp_path / "job"))
    (job / "app" / "custom").mkdir()
    for number in range(30):
        (job / "app" / "custom" / f"m{number}.py").write_bytes(bytes(100))
    content = archive(contents(job, "job/"))
    checks = (lambda: check_job_folder(job), lambda: read_job(job), lambda: check_job_archive(content))
    for check in checks:
        check()
    for limits, why in ((Limits("the job", 30), "30 at most"), (Limits("the job", 99, 3000), "3000 bytes at most")):
        monkeypatch.setattr(allowed_job_files, "LIMITS", limits)
        for check in checks:
            with pytest.raises(ConfigurationError, match=why):
                check()


def test_an_archive_that_would_fill_a_disk_is_refused_before_it_is_unpacked():
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in contents(APP).items():
            file.writestr(name, data)
        file.writestr("config/initial.safetensors", bytes(2**26))
    assert len(content.getvalue()) < 2**17
    with pytest.raises(ConfigurationError, match="67108864, but must be at most 20 times what it takes"):
        check_app_archive(content.getvalue())
    check_app_archive(archive({**contents(APP), "config/initial.safetensors": bytes(2**21)}))
    with pytest.raises(ConfigurationError, match="10000 at most"):
        check_app_archive(archive({f"custom/m{number}.py": b"" for number in range(10_001)}))


@pytest.mark.parametrize(
    "name",
    ["brats_fed\u0430vg", "brats_fedavg\u200b", "a\x1b[2Jb", "a\nb", "..", "a/b", "", "x" * 129, 7, None, ["a"], "-rf"],
)
def test_a_job_is_called_by_plain_letters_or_not_at_all(name):
    """Look-alikes would pass for another job, and other letters act where they are printed."""
    files = {**contents(JOB, "job/"), "job/meta.json": json.dumps({"name": name, "deploy_map": {}}).encode()}
    if name is None:
        check_job_archive(archive(files))
    else:
        with pytest.raises(ConfigurationError, match=r"meta\.json: name is .* but must be the name of a job"):
            check_job_archive(archive(files))

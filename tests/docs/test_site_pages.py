"""The pages for the engineer of a site: their examples are read by the code, and what they state is what it does."""

import configparser
import json
import re
import shlex
import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from fedseg.deployment.kits.installed_kit import read_kit
from fedseg.deployment.kits.project_file import on_this_machine, read_project
from fedseg.deployment.kits.provisioning import provision
from fedseg.deployment.local.processes import free_port
from fedseg.deployment.operation.checks.flare import SKEW_NOTED, SKEW_REFUSED
from fedseg.deployment.operation.checks.folders import ENOUGH_FREE, LEAST_FREE
from fedseg.deployment.operation.checks.kit import ENDS_SOON
from fedseg.deployment.operation.checks.page import check_site
from fedseg.deployment.operation.checks.result import CheckOptions
from fedseg.deployment.operation.start_stop import LOG_FILE
from fedseg.jobs.allowed_components import site_resources
from fedseg.site.profile import read_profile

ROOT = Path(__file__).parents[2]
GUIDES = ROOT / "docs" / "how-to"
INSTALL, ADD = GUIDES / "install-a-site.md", GUIDES / "add-a-site.md"
TEMPLATES = ROOT / "workspace_templates"


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    project = on_this_machine(read_project(TEMPLATES / "three_hospitals"), ["hospital-a"], free_port())
    out = tmp_path_factory.mktemp("kits") / "out"
    provision(project, TEMPLATES / "site_policy" / "local", out, with_wheel=False)
    return out / "kits" / "hospital-a"


@pytest.mark.parametrize("page", [INSTALL, ADD], ids=lambda page: page.stem)
def test_the_profile_that_is_shown_is_valid(page, tmp_path):
    (text,) = blocks(page, "json")
    (tmp_path / "fedseg.json").write_text(text)
    profile = read_profile("site", tmp_path, tmp_path)
    assert profile.datalist("brats") == Path("/data/brats/datalist.json")
    assert profile.policy.min_cases == json.loads(text)["policy"]["min_cases"]


def test_the_service_starts_the_kits_own_script(kit):
    (text,) = blocks(INSTALL, "ini")
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str
    unit.read_string(text)
    shell, script, *options = shlex.split(unit["Service"]["ExecStart"])
    assert Path(shell).name == "bash"
    path = Path(script)
    assert path.parts[-3:-1] == ("hospital-a", "startup")
    content = (kit / "startup" / path.name).read_text("utf-8")
    assert options == ["--once"]
    assert "--once)" in content
    program, *arguments = shlex.split(unit["Service"]["ExecStartPre"])
    assert arguments == ["site", "check", "--kit", str(path.parents[1])]
    assert str(Path(program).parent) in unit["Service"]["Environment"]


def test_every_line_of_the_check_is_explained(kit, tmp_path):
    folder = tmp_path / "hospital-a"
    shutil.copytree(kit, folder)
    page = check_site(read_kit(folder), CheckOptions(timeout=1))
    table = INSTALL.read_text("utf-8").partition("| line |")[2].partition("\n\n")[0]
    explained = {name for row in table.splitlines()[2:] for name in row.split("|")[1].strip().split(", ")}
    shown = {re.sub(r"(root )?certificate: (dates)", r"\2", result.check) for result in page.results}
    shown = {re.sub(r"^(data|least cases|privacy budget): .*", r"\1", name) for name in shown}
    assert shown - explained - {"server: name", "server: port", "server: certificate"} == set()
    assert "server: name" in explained
    # Lines that a site without a server in reach does not come to.
    assert {"TLS", "FLARE", "logs", "ledger", "GPU"} <= explained


def test_the_limits_are_those_of_the_code():
    text = " ".join(INSTALL.read_text("utf-8").split())
    assert (LEAST_FREE, ENOUGH_FREE) == (2 * 2**30, 20 * 2**30)
    assert "20 GiB free" in text
    assert "red below 2 GiB" in text
    assert timedelta(days=30) == ENDS_SOON
    assert [timedelta(minutes=1), timedelta(minutes=5)] == [SKEW_NOTED, SKEW_REFUSED]
    assert "yellow from 30 days before the end" in text
    assert "yellow from one minute off the server's, red from five" in text
    assert f"no answer in {CheckOptions().timeout:g} s" in text
    assert f"`{LOG_FILE}` in the kit" in text
    assert site_resources()["allow_log_streaming"] is False

"""The files that a site starts its policy from, read by those who will read them: FLARE, and fedseg."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.workspace import Workspace
from nvflare.app_common.logging.constants import is_log_streaming_allowed
from nvflare.fuel.sec.authz import AuthzContext, Person, parse_policy_config
from nvflare.private.fed.app.fl_conf import create_privacy_manager
from nvflare.security.security import COMMAND_CATEGORIES

from fedseg.filters.guard.guard import Guard
from fedseg.jobs.allowed_components import GUARD, site_privacy, site_resources
from fedseg.site.policy import SitePolicy, parse_policy
from fedseg.site.profile import read_profile

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "workspace_templates" / "site_policy"
# As FLARE's own processes set their logs up.
LOG = """
import logging, sys
from nvflare.apis.workspace import Workspace
from nvflare.fuel.utils.log_utils import configure_logging
workspace = Workspace(sys.argv[1], site_name="a")
configure_logging(workspace)
logging.getLogger("a").info("fine")
logging.getLogger("a").error("wrong")
"""
RULES = {f.name for f in fields(SitePolicy)}


@pytest.fixture
def workspace(tmp_path):
    shutil.copytree(TEMPLATE / "local", tmp_path / "local")
    (tmp_path / "startup").mkdir()
    return Workspace(str(tmp_path), site_name="a")


def load(path):
    return json.loads(Path(path).read_text("utf-8"))


def test_flare_builds_the_guard_from_the_template(workspace):
    manager = create_privacy_manager(workspace, names_only=False)
    assert manager.is_policy_defined(), "without a scope FLARE would not add the components to a job"
    assert isinstance(manager.components["guard"], Guard)
    assert manager.get_scope("") is not None, "jobs that name no scope get the default one"


def test_the_simulators_file_and_the_template_declare_the_same_guard(workspace, tmp_path):
    template = load(workspace.get_site_privacy_file_path())
    assert template["components"] == site_privacy()["components"]
    assert template["components"][0]["path"] == GUARD == f"{Guard.__module__}.{Guard.__qualname__}"
    (tmp_path / "local" / "privacy.json").write_text(json.dumps(site_privacy()))
    assert isinstance(create_privacy_manager(workspace, names_only=False).components["guard"], Guard)


def test_a_job_cannot_name_the_guard():
    assert not any(GUARD.startswith(allowed) for allowed in site_resources()["class_allow_list"])


def test_fedseg_reads_the_profile_of_the_template(workspace, tmp_path):
    policy = read_profile("a", Path(workspace.get_site_config_dir()), tmp_path).policy
    assert (policy.min_cases, policy.max_fraction, policy.jobs) == (20, None, ("brats_*",))
    assert policy.budget("brats") is None


def test_the_template_shows_every_rule_and_those_in_comments_are_valid_too():
    content = load(TEMPLATE / "local" / "fedseg.json")["policy"]
    shown = {name: value for key, value in content.items() if (name := key.removeprefix("_")) in RULES}
    assert set(shown) == RULES
    parse_policy(shown)


@pytest.mark.parametrize("role", ["project_admin", "org_admin", "lead", "member"])
def test_nobody_reads_files_of_a_site_or_brings_code(role):
    policy, error = parse_policy_config(load(TEMPLATE / "local" / "authorization.json"), COMMAND_CATEGORIES)
    assert error == ""
    person = Person("somebody", "hospital", role)

    def may(right):
        return policy.evaluate("hospital", AuthzContext(right, person, person))[0]

    assert not any(may(right) for right in ("cat", "grep", "head", "tail", "ls", "byoc"))
    assert may("list_jobs")


def test_log_streaming_is_off_in_our_kits(workspace, tmp_path):
    (block,) = re.findall(r"```json\n(.*?)```", (TEMPLATE / "README.md").read_text("utf-8"), re.DOTALL)
    assert json.loads(block) == {"allow_log_streaming": False}
    simulator = load(ROOT / "workspace_templates" / "simulator" / "local" / "resources.json")
    assert simulator["allow_log_streaming"] is site_resources()["allow_log_streaming"] is False
    context = FLContext()
    context.set_prop(FLContextKey.WORKSPACE_ROOT, str(tmp_path), private=True)
    context.set_prop("__identity_name__", "a", private=True)
    assert is_log_streaming_allowed(context), "FLARE's own default"
    (tmp_path / "local" / "resources.json").write_text(json.dumps(site_resources()))
    assert not is_log_streaming_allowed(context)


def test_the_reference_page_names_every_rule():
    page = (ROOT / "docs" / "reference" / "site-policy.md").read_text("utf-8")
    assert [rule for rule in RULES if f"\n| `{rule}` |" not in page] == []


def test_flare_logs_as_the_template_says(workspace, tmp_path):
    path = Path(workspace.get_log_config_file_path())
    assert path.name == "log_config.json"
    handlers = load(path)["handlers"]
    files = {name: each for name, each in handlers.items() if "filename" in each}
    assert {each["filename"] for each in files.values()} == {"log.txt", "error_log.txt"}
    assert all(each["maxBytes"] * (each["backupCount"] + 1) < 250e6 for each in files.values())
    done = subprocess.run([sys.executable, "-c", LOG, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "\033[" not in done.stdout, "colours"
    assert "INFO" in (tmp_path / "log.txt").read_text("utf-8")
    assert (tmp_path / "error_log.txt").read_text("utf-8").count("\n") == 1

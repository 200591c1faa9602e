"""The pages for each role and the walkthrough: numbers, names and limits on them are those of the code and of FLARE."""

import configparser
import dataclasses
import inspect
import json
import re
import shlex
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from nvflare.apis.fl_constant import AdminCommandNames
from nvflare.apis.job_def import job_from_meta
from nvflare.app_common.job_schedulers.job_scheduler import DefaultJobScheduler
from nvflare.fuel.f3.sfm import conn_manager, heartbeat_monitor
from nvflare.fuel.hci.client.cli import AdminClient
from nvflare.lighter.impl.cert import DEFAULT_CERT_VALID_DAYS

from fedseg.deployment.coordination.session import Coordinator
from fedseg.deployment.kits.installed_kit import START_SCRIPT, STARTUP
from fedseg.deployment.kits.policy_files import HEART_BEAT_TIMEOUT
from fedseg.deployment.kits.project_file import read_project
from fedseg.deployment.kits.storage_folders import SERVER_STORAGE
from fedseg.deployment.operation.start_stop import LOG_FILE
from fedseg.errors import RefusalError
from fedseg.filters.chain import is_guaranteed
from fedseg.jobs.allowed_components import site_launcher
from fedseg.jobs.job import read_job
from fedseg.privacy.accounting import ledger
from fedseg.provenance.run_log import RECORD_FILE, REFUSED_FILE
from fedseg.provenance.swarm.ledger import LEDGER_FILE
from fedseg.site import decrypted_model, pending_update
from fedseg.site.policy import SitePolicy, parse_policy
from fedseg.site.profile import read_profile
from fedseg.site.protection_rules import check_protection, planned_fraction
from fedseg.site.state import SiteState
from fedseg.workflows.federated_training import FederatedTraining

ROOT = Path(__file__).parents[2]
START, GUIDES = ROOT / "docs" / "start", ROOT / "docs" / "how-to"
COORDINATOR, OFFICER = START / "coordinator.md", START / "data-protection-officer.md"
RESEARCHER, WALK, TROUBLE = START / "researcher.md", GUIDES / "walkthrough.md", GUIDES / "trouble.md"
TEMPLATE = ROOT / "workspace_templates" / "three_hospitals"
POLICY = ROOT / "workspace_templates" / "site_policy" / "local"
JOBS = sorted(path.name for path in (ROOT / "jobs").iterdir())


def text(page):
    """The page with its lines joined, so that no sentence is cut."""
    return " ".join(page.read_text("utf-8").split())


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def rows(page):
    lines = [line for line in page.read_text("utf-8").splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|")] for line in lines]


def default(function, name):
    return inspect.signature(function).parameters[name].default


def takes(policy, name):
    """Whether a policy takes a job of the repository, as far as its plan and its filters decide."""
    job = read_job(ROOT / "jobs" / name)
    filters = job.build_filters() or job.build_filters("upload")
    steps = [each.step() for each in filters]
    if policy.jobs is not None and not any(fnmatchcase(job.name, pattern) for pattern in policy.jobs):
        return False
    if policy.tasks is not None and job.plan.task.name not in policy.tasks:
        return False
    try:
        check_protection(policy, steps, planned_fraction(steps), is_guaranteed(filters), job.plan.dataset)
    except RefusalError:
        return False
    return True


# ------------------------------------------------------------------ coordinator


def test_the_limits_at_midnight_have_the_workflows_defaults():
    stated = {row[0]: row[2] for row in rows(COORDINATOR) if row[0].startswith("`workflow.")}
    assert stated == {
        f"`workflow.{name}`": f"`{json.dumps(default(FederatedTraining.__init__, name))}`"
        for name in ("min_sites", "round_timeout", "site_silence")
    }
    (clients,) = [row[2] for row in rows(COORDINATOR) if row[0].startswith("`min_clients`")]
    metas = [json.loads((ROOT / "jobs" / name / "meta.json").read_text("utf-8")) for name in JOBS]
    plain = [job_from_meta(meta).min_sites for name, meta in zip(JOBS, metas, strict=True) if "_he" not in name]
    assert {clients} == set(map(str, plain))


def test_flare_gives_a_job_up_after_as_long_as_the_pages_say():
    tries = default(DefaultJobScheduler.__init__, "max_schedule_count")
    first = default(DefaultJobScheduler.__init__, "min_schedule_interval")
    longest = default(DefaultJobScheduler.__init__, "max_schedule_interval")
    waits = [min(longest, first * 2**n) for n in range(tries - 1)]
    assert tries == 10
    assert sum(waits) / 60 == pytest.approx(40, abs=1)
    for page in (COORDINATOR, TROUBLE):
        assert "ten times within about 40 minutes" in text(page)


@pytest.mark.parametrize("page", [COORDINATOR, OFFICER, TROUBLE], ids=lambda page: page.stem)
def test_commands_of_the_admin_console_exist(page):
    known = {value for name, value in vars(AdminCommandNames).items() if name.isupper()}
    known |= {name.removeprefix("do_") for name in dir(AdminClient) if name.startswith("do_")}
    typed = [line[2:].split()[0] for block in blocks(page, "text") for line in block.splitlines() if line[:2] == "> "]
    named = re.findall(r"`((?:abort|delete|list|enable|disable|check)_\w+)[^`]*`", page.read_text("utf-8"))
    assert typed or page is not COORDINATOR
    assert set(typed) | set(named) <= known
    assert named


def test_certificates_last_as_long_as_the_page_says():
    (args,) = [b["args"] for b in read_project(TEMPLATE)["builders"] if "root_valid_days" in b.get("args", {})]
    said = re.search(r"certificates last (\d+) days, the root (\d+)", text(COORDINATOR))
    assert list(map(int, said.groups())) == [DEFAULT_CERT_VALID_DAYS, args["root_valid_days"]]


# ------------------------------------------------------------------ walkthrough


def test_the_firewall_opens_the_templates_port_and_no_other():
    (port,) = [entry["fed_learn_port"] for entry in read_project(TEMPLATE)["participants"] if "fed_learn_port" in entry]
    table = [row for row in rows(WALK) if len(row) == 6]
    assert [row[2] for row in table if row[0] == "in, at the server"] == [str(port)]
    assert [row[2] for row in table if row[0] == "in, at a site"] == [""]
    rules = "\n".join(blocks(WALK, "text"))
    opened = re.findall(r'dport (\d+)|to any port (\d+)|port port="(\d+)"', rules)
    assert {next(filter(None, each)) for each in opened} == {str(port), "22", "53", "123"}
    assert f"{port} in the template" in text(WALK)


def test_a_quiet_connection_shows_life_as_often_as_the_page_says():
    assert heartbeat_monitor.DEFAULT_HEARTBEAT_INTERVAL == 60
    assert "wait longer than 60 seconds" in text(WALK)


def test_the_servers_service_starts_the_kits_own_script():
    (unit,) = blocks(WALK, "ini")
    parsed = configparser.ConfigParser(interpolation=None)
    parsed.optionxform = str
    parsed.read_string(unit)
    shell, script, *options = shlex.split(parsed["Service"]["ExecStart"])
    assert (Path(shell).name, Path(script).name, Path(script).parent.name) == ("bash", START_SCRIPT, STARTUP)
    assert options == ["--once"]
    assert parsed["Service"]["User"] == "fedseg"


def test_the_profile_of_the_first_job_is_valid_and_takes_that_job(tmp_path):
    (profile,) = blocks(WALK, "json")
    (tmp_path / "fedseg.json").write_text(profile)
    read = read_profile("hospital-a", tmp_path, tmp_path)
    assert read.datalist("brats") == Path("/opt/fedseg/phantoms/site-1/datalist.json")
    assert takes(read.policy, "brats_fedcostwavg")
    assert str(SERVER_STORAGE) in text(WALK)


# ------------------------------------------------------- data protection officer


def examples():
    found = [re.match(r"^\| [^|]+ \| `(\{.+\})` \|$", line) for line in OFFICER.read_text("utf-8").splitlines()]
    return [parse_policy(json.loads(match[1]), "example") for match in found if match]


def test_each_policy_of_the_page_takes_the_job_that_it_names():
    policies = examples()
    assert len(policies) == 3
    for policy in policies:
        (name,) = policy.jobs
        assert takes(policy, name), name
    _, encrypted, noisy = policies
    assert encrypted.require_encryption
    assert noisy.epsilon_budget


def test_every_rule_on_the_page_is_a_rule():
    table = OFFICER.read_text("utf-8").partition("## What leaves")[2].partition("\n## ")[0]
    last = [line.strip("|").split("|")[-1] for line in table.splitlines() if line.startswith("|")]
    rules = {word for cell in last for word in re.findall(r"`(\w+)`", cell)}
    assert rules <= {field.name for field in dataclasses.fields(SitePolicy)}
    assert len(rules) > 8


def test_the_limits_in_a_new_kit_take_every_job_that_they_name_as_the_pages_say():
    policy = parse_policy(json.loads((POLICY / "fedseg.json").read_text("utf-8"))["policy"], "template")
    assert [name for name in JOBS if takes(policy, name)] == [name for name in JOBS if name.startswith("brats_")]
    assert policy.min_cases == 20
    assert "Every such job of this repository keeps them" in text(TROUBLE)
    assert "jobs `brats_*` from 20 cases on" in text(COORDINATOR)
    assert "ask for 20 cases" in text(WALK)


def test_the_table_of_what_is_kept_has_the_files_that_there_are(tmp_path):
    table = OFFICER.read_text("utf-8").partition("## Deleting and keeping")[2].partition("\n## ")[0]
    state = SiteState(tmp_path, "run")
    state.bind("0" * 64)
    state.save(3, {})
    files = [path.name for path in state.folder.iterdir()]
    assert sorted(files) == ["job.sha256", "round-00003.pt"]
    for name in ("round-*.pt", "job.sha256", pending_update._FILE, decrypted_model._FILE, RECORD_FILE, REFUSED_FILE):
        assert f"`{name}`" in table, name
    assert f"`{LEDGER_FILE}`" in table
    assert f"`{ledger.FILE}`" in table
    assert f"`{ledger.FOLDER}`" in table
    assert f"`{LOG_FILE}`" in table
    assert f"`{SERVER_STORAGE}/state`" in table


# ------------------------------------------------------------------------- others


def test_every_benchmark_is_listed():
    scripts = {f"benchmarks/{path.name}" for path in (ROOT / "benchmarks").glob("*.py")}
    assert set(re.findall(r"`(benchmarks/\w+\.py)`", RESEARCHER.read_text("utf-8"))) == scripts


def test_numbers_on_the_page_by_symptom():
    said = text(TROUBLE)
    assert default(Coordinator.wait, "patience") == 15 * 60
    assert "tries for 15 minutes" in said
    assert conn_manager.MAX_WAIT == 10
    assert "at last every ten seconds" in said
    assert site_launcher("x")["args"]["restarts"] == 3
    assert "three restarts" in said
    assert HEART_BEAT_TIMEOUT == default(FederatedTraining.__init__, "site_silence") == 2 * 60
    assert "for two minutes more" in said
    assert "after 2 minutes of silence" in text(COORDINATOR)

"""The documentation against the code: links, commands, and reference pages that must name everything there is."""

import argparse
import dataclasses
import inspect
import json
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from evaluation.synthetic_run import write_run
from fedseg.cli import build_parser
from fedseg.contract.plan import Plan, parse_plan
from fedseg.contract.settings import TrainingSettings
from fedseg.data.checks.findings import CODES
from fedseg.data.datalist import read_datalist
from fedseg.jobs.job import read_job
from fedseg.networks.registry import NETWORKS
from fedseg.site.profile import read_profile
from fedseg.tasks.registry import resolve_task
from fedseg.tasks.task import Task
from tiny import PLAN, make_sites

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "workspace_templates").rglob("*.md")])
COMMAND_PAGE, JOB_PAGE = DOCS / "reference" / "commands.md", DOCS / "reference" / "job-folder.md"
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^([ \t]*)```(\w*)\n(.*?)^\1```[ \t]*$", re.MULTILINE | re.DOTALL)


def relative(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str | None = None) -> list[str]:
    """Contents of a page's fenced blocks."""
    found = _FENCE.findall(page.read_text("utf-8"))
    return [content for _, name, content in found if language is None or name == language]


def commands(text: str, program: str) -> list[str]:
    """The command lines in a block that start a program, continued lines joined."""
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines()]
    return [line for line in lines if re.match(rf"(\w+=\S+ )*{re.escape(program)}( |$)", line)]


def anchors(page: Path) -> set[str]:
    """Names of the headings of a page, as GitHub makes them."""
    text = _FENCE.sub("", page.read_text("utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def rows(page: Path) -> list[list[str]]:
    """Cells of every table row of a page."""
    lines = page.read_text("utf-8").splitlines()
    return [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines if line.startswith("|")]


def options_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parser of each subcommand; of one that has subcommands itself those, as ``privacy plan``."""
    found: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        for name, command in action.choices.items() if isinstance(action, argparse._SubParsersAction) else ():
            inner = options_of(command)
            found |= {f"{name} {word}": its for word, its in inner.items()} if inner else {name: command}
    return found


@cache
def parser() -> argparse.ArgumentParser:
    return build_parser()


# ---------------------------------------------------------------- pages


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_and_images_lead_somewhere(page):
    text = _FENCE.sub("", page.read_text("utf-8"))
    broken = []
    for target in _LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_the_index_lists_every_page():
    index = DOCS / "index.md"
    linked = {(DOCS / target).resolve() for target in _LINK.findall(index.read_text("utf-8"))}
    assert set(DOCS.rglob("*.md")) - linked == {index}


# ------------------------------------------------------------- commands


def command_lines() -> list[tuple[str, str]]:
    return [(relative(p), line) for p in PAGES for block in blocks(p) for line in commands(block, "fedseg")]


def test_there_are_command_lines_of_every_command():
    known = set(options_of(parser()))
    words = [shlex.split(line)[1:3] for _, line in command_lines()]
    assert {" ".join(two) if " ".join(two) in known else two[0] for two in words} == known


@pytest.mark.parametrize(("page", "line"), command_lines())
def test_every_command_line_is_valid(page, line, capsys):
    arguments = shlex.split(line, comments=True)[1:]
    try:
        options = parser().parse_args(arguments)
    except SystemExit:
        pytest.fail(f"{page}: {line}\n{capsys.readouterr().err}")
    job = str(getattr(options, "job", ""))
    assert not job.startswith("jobs/") or (ROOT / job / "meta.json").is_file(), line


def test_scripts_and_jobs_that_are_named_exist():
    named = {
        name
        for page in PAGES
        for name in re.findall(r"(?<![\w/])((?:scripts|jobs)/\w+(?:\.(?:sh|py))?)", page.read_text("utf-8"))
    }
    assert named
    # The guide makes jobs of its own; a test adds them to a copy.
    made = set(re.findall(r"`(jobs/\w+)/", (DOCS / "how-to" / "add-a-method.md").read_text("utf-8")))
    assert {name for name in named if not (ROOT / name).exists()} <= made


def test_python_files_that_are_named_exist():
    """From the root or the package. The changelog tells of former ones, and one guide of some that a reader writes."""
    found = 0
    for page in set(PAGES) - {ROOT / "CHANGELOG.md", DOCS / "how-to" / "add-a-method.md"}:
        for name in re.findall(r"`((?:[\w-]+/)+\w+\.py)`", page.read_text("utf-8")):
            found += 1
            places = [base / name for base in (ROOT, ROOT / "custom", ROOT / "custom" / "fedseg")]
            assert any(place.is_file() for place in places), f"{relative(page)}: {name}"
    assert found > 50


def test_the_reference_names_every_command_and_option():
    text = COMMAND_PAGE.read_text("utf-8")
    sections = dict(re.findall(r"^## fedseg ([^\n]+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    assert set(sections) == set(options_of(parser()))
    for name, command in options_of(parser()).items():
        for action in command._actions:
            if not isinstance(action, argparse._HelpAction):
                shown = action.option_strings[-1] if action.option_strings else action.dest
                assert f"| `{shown}` |" in sections[name], f"fedseg {name} {shown}"
        documented = set(re.findall(r"^\| `(--[\w-]+)`", sections[name], re.MULTILINE))
        assert documented <= set(command._option_string_actions), f"fedseg {name}: options that do not exist"


# ------------------------------------------------------------ job folder


def defaults(cls: type) -> dict[str, str]:
    """Default of each field as it would stand in JSON."""
    return {f.name: json.dumps(f.default) for f in dataclasses.fields(cls)}


def test_the_reference_names_every_training_setting_with_its_default():
    documented = {row[0]: row[1] for row in rows(JOB_PAGE)}
    for name, default in defaults(TrainingSettings).items():
        assert documented.get(f"`{name}`") == f"`{default}`", name


def test_the_reference_names_every_network_argument_with_its_default():
    documented = {(row[0], row[1]): row[2] for row in rows(JOB_PAGE) if len(row) > 2}
    for network, arguments in NETWORKS.items():
        for name, default in defaults(arguments).items():
            assert documented.get((f"`{network}`", f"`{name}`")) == f"`{default}`", f"{network}.{name}"


def test_the_reference_names_every_key_of_a_plan():
    plan = JOB_PAGE.read_text("utf-8").partition("## The plan")[2].partition("### training")[0]
    for field in dataclasses.fields(Plan):
        assert f"| `{field.name}` |" in plan, field.name


def test_the_reference_names_every_argument_of_the_workflow():
    from fedseg.workflows.federated_training import FederatedTraining

    section = JOB_PAGE.read_text("utf-8").partition("## The server")[2].partition("\n## ")[0]
    documented = {row[0]: row[1] for line in section.splitlines() if (row := line.strip("| ").split(" | ")) and row[1:]}
    for name, parameter in list(inspect.signature(FederatedTraining.__init__).parameters.items())[1:]:
        empty = parameter.default is inspect.Parameter.empty
        shown = "required" if empty else f"`{json.dumps(parameter.default)}`"
        assert documented.get(f"`{name}`") == shown, name


# ------------------------------------------------------- examples in JSON


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_json_example_is_json(page):
    for block in blocks(page, "json"):
        json.loads(block)


def test_declared_tasks_are_valid():
    examples = [json.loads(block) for block in blocks(DOCS / "how-to" / "own-task.md", "json")]
    plans = [example for example in examples if "task" in example]
    tasks = [example for example in examples if "task" not in example]
    assert len(plans) >= 1
    assert {resolve_task(task).name for task in tasks} >= {"spleen", "liver", "brats"}
    for plan in plans:
        parse_plan(plan)


def test_every_field_of_a_task_is_explained():
    documented = {row[0] for row in rows(DOCS / "how-to" / "own-task.md")}
    assert {f"`{f.name}`" for f in dataclasses.fields(Task)} <= documented


def test_the_other_examples_are_what_the_code_reads(tmp_path):
    plan, client, server = (json.loads(block) for block in blocks(JOB_PAGE, "json"))
    assert parse_plan(plan).task.name == "hippocampus"
    job = read_job(ROOT / "jobs" / "hippocampus_fedavg")
    job.client.update(client)
    job.server.update(server)
    job.check()
    assert [type(f).__name__ for f in job.build_filters()] == ["NormClip", "ShareFraction"]
    (datalist,) = blocks(DOCS / "reference" / "datalist.md", "json")
    (tmp_path / "datalist.json").write_text(datalist, "utf-8")
    assert len(read_datalist(tmp_path).training[0].images) == 4
    (profile,) = blocks(DOCS / "reference" / "site-profile.md", "json")
    (tmp_path / "fedseg.json").write_text(profile, "utf-8")
    assert read_profile("site", tmp_path, tmp_path).device == "cuda:0"


def test_the_method_of_the_guide_works():
    from fedseg.contract.report import SiteReport

    names: dict[str, object] = {}
    for block in blocks(DOCS / "how-to" / "add-a-method.md", "python"):
        if "def test_" not in block:
            exec(compile(block, "add-a-method.md", "exec"), names)
    assert set(names["ProximalTerm"].reports) == {"moved_distance"}
    reports = {site: SiteReport(n, 1, 0.5, None) for site, n in {"a": 1, "b": 4, "c": 9}.items()}
    weights = names["RootAvg"]().site_weights(reports)
    assert weights == pytest.approx({"a": 1 / 6, "b": 2 / 6, "c": 3 / 6})
    assert names["ProximalTerm"](0.1).mu == 0.1


def test_the_python_of_its_page_runs(tmp_path, monkeypatch, capsys):
    """On tiny images and a tiny network in the places that the page names."""
    monkeypatch.chdir(tmp_path)
    job = read_job(ROOT / "jobs" / "hippocampus_fedavg")
    for key in ("task", "network"):
        job.set(key, PLAN[key])
    job.write(tmp_path / "jobs" / "hippocampus_fedavg")
    make_sites(tmp_path / "runs" / "data", {"a": (2, 1), "b": (2, 1)})
    write_run(tmp_path / "runs" / "first")
    names: dict[str, object] = {}
    for block in blocks(DOCS / "how-to" / "python.md", "python"):
        exec(compile(block, "python.md", "exec"), names)
    assert len(names["federation"].rounds) == 2
    assert "hospital-a" in capsys.readouterr().out
    assert (tmp_path / "runs" / "masks" / "a-2.nii.gz").is_file()
    assert (tmp_path / "runs" / "scored" / "evaluation.csv").is_file()


# ------------------------------------------------------------- the rest


def test_every_requirement_has_a_reason():
    pins = [line for line in (ROOT / "requirements.txt").read_text("utf-8").splitlines() if "==" in line]
    reasons = {row[0]: row[1] for row in rows(ROOT / "CONTRIBUTING.md")}
    assert pins
    for pin in pins:
        name = pin.partition("==")[0]
        assert len(reasons.get(f"`{name}`", "")) > 3, name


def test_every_finding_is_explained():
    text = (DOCS / "reference" / "exit-codes-and-refusals.md").read_text("utf-8")
    assert [code for code in CODES if f"`{code}`" not in text] == []

"""What is advised: each rule by a federation made for it, and that jobs, settings and pages exist and agree."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from fedseg.cli import main
from fedseg.errors import ConfigurationError, DataError, UsageError
from fedseg.jobs.job import parse_setting, read_job
from fedseg.planning.advice import BEGIN_WITH, RULES, Subject, advise, rule_table, to_document
from fedseg.statistics.document import FederationStatistics, write_statistics
from fedseg.statistics.histogram import Histogram
from fedseg.tasks.registry import resolve_task
from statistics_of_tiny import TINY, measured, tiny_cases
from tiny import TASK

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return measured(tiny_cases(tmp_path_factory.mktemp("cases"), range(4)))


def subject(one, other=None, run=None, task=TINY):
    return Subject(FederationStatistics(task, {"a": one, "b": other or one}), run or {})


def names(found):
    return [each.rule.name for each in found]


def moved(part, name, bins):
    histogram = part.histograms[name]
    shifted = {(a + bins, b + bins): weight for (a, b), weight in histogram.bins.items()}
    return replace(part, histograms={**part.histograms, name: Histogram(histogram.scale, shifted)})


def with_category(part, name, weights):
    return replace(part, categories={**part.categories, name: weights})


def test_sites_that_are_alike_need_nothing(one):
    assert advise(subject(one)) == []


def test_each_difference_of_sites_has_its_rule_and_its_number(one):
    cases = {
        "scanners": (moved(one, "normalised: a", 50), "differ most between a and b: 1 standard deviations"),
        "labels": (with_category(one, "classes", {"inner": 4.0}), "of another class at a than at b"),
        "volumes": (moved(one, "volume: whole", 200), "Volumes of whole differ"),
        "sizes": (replace(one, cases=16), "b has 16 cases and a has 4"),
        "drawn": (with_category(one, "present: inner", {"yes": 1.0}), "inner is drawn in 1 of 4 cases at b"),
    }
    for name, (other, words) in cases.items():
        found = advise(subject(one, other))
        assert name in names(found), name
        assert words in next(each.reason for each in found if each.rule.name == name)


def test_a_region_that_nobody_drew_at_a_site_is_told_without_a_number(one):
    categories = {name: weights for name, weights in one.categories.items() if name != "present: inner"}
    (reason,) = [e.reason for e in advise(subject(one, replace(one, categories=categories))) if e.rule.name == "drawn"]
    assert reason == "inner is drawn in fewer than 1 of 4 cases at b, and in all or most at a"
    both = Subject(FederationStatistics(TINY, {s: replace(one, categories=categories) for s in "ab"}))
    assert "drawn" not in names(advise(both)), "where nobody draws a region, nobody can teach it"


def test_a_channel_that_cases_lack(one):
    task = resolve_task({**TASK, "channels": ["a", "b"], "optional_channels": ["b"]})
    for share, holds in (({"yes": 3.0, "no": 1.0}, True), ({"yes": 4.0}, False), ({"other": 4.0}, False)):
        found = advise(subject(one, with_category(one, "acquired: b", share), task=task))
        assert ("sequences" in names(found)) == holds
        if holds:
            assert found[0].reason == "75% of the cases at b have b"


def run_of(dice=(0.5, 0.6, 0.7), sites=None, seconds=None):
    rounds = [
        {"val_dice": {"mean": value}, "sites": {s: {"seconds": t} for s, t in (seconds or {}).items()}}
        for value in dice
    ]
    scored = {site: {"dice": {"mean": value}} for site, value in (sites or {}).items()}
    return {"task": "tiny", "run_id": "r", "rounds": rounds, "final": {"sites": scored}}


@pytest.mark.parametrize(
    ("run", "name", "words"),
    [
        (run_of(sites={"a": 0.9, "b": 0.75}), "worst site", "Dice is 0.75 at b and 0.90 at a"),
        (run_of((0.1, 0.2, 0.3, 0.4, 0.5, 0.6)), "unfinished", "last third of 6 rounds, to 0.600"),
        (run_of((0.5, 0.8, 0.7)), "drift", "fell from 0.800 to 0.700"),
        (run_of((0.5,), seconds={"a": 10, "b": 12, "c": 40}), "slow site", "c takes 40 s a round, the others 11 s"),
    ],
)
def test_each_rule_of_a_run(one, run, name, words):
    found = advise(subject(one, run=run))
    assert name in names(found)
    assert words in next(each.reason for each in found if each.rule.name == name)


@pytest.mark.parametrize(
    "run",
    [
        run_of((0.7, 0.8, 0.8, 0.8, 0.805, 0.8)),
        run_of((0.7,), sites={"a": 0.8, "b": 0.75}),
        run_of((0.7,), seconds={"a": 10, "b": 25}),
        run_of(()),
        {"task": "tiny", "rounds": [{"val_dice": None, "sites": {"a": None}}], "final": None},
    ],
)
def test_a_run_in_which_nothing_stands_out_and_one_that_tells_nothing(one, run):
    assert advise(subject(one, run=run)) == []


def test_a_run_of_another_task_is_refused(one):
    with pytest.raises(DataError, match="of the task brats, the statistics are of tiny"):
        advise(subject(one, run={**run_of(), "task": "brats"}))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_what_a_rule_names_exists(rule):
    """Jobs are whole; a setting is one of a job of the rule or of the job to begin with; the page has the section."""
    assert rule.jobs or rule.settings
    for name in rule.jobs:
        read_job(ROOT / "jobs" / name)
    for setting in rule.settings:
        assert any(takes(job, setting) for job in (*rule.jobs, BEGIN_WITH)), setting
    page, _, section = rule.evidence.partition("#")
    headings = re.findall(r"^#+ (.*)$", (ROOT / page).read_text("utf-8"), re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert not section or section in anchors


def takes(name, setting):
    job = read_job(ROOT / "jobs" / name)
    try:
        job.set(*parse_setting(setting))
        job.check()
    except (ConfigurationError, UsageError):
        return False
    return True


def test_a_setting_that_does_not_exist_would_be_found():
    assert not takes(BEGIN_WITH, "workflow.fine_tuned=2")
    assert not takes(BEGIN_WITH, "training.undrawn=never")


def test_the_page_has_the_table_of_the_code():
    page = (ROOT / "docs" / "how-to" / "choose-a-method.md").read_text("utf-8")
    assert "\n".join(rule_table()) in page
    assert len({rule.name for rule in RULES}) == len(RULES)


def test_the_command_says_it_and_writes_it(one, tmp_path, capsys):
    statistics = FederationStatistics(TINY, {"a": one, "b": replace(one, cases=16)})
    write_statistics(statistics, tmp_path / "statistics.json")
    (tmp_path / "run" / "report").mkdir(parents=True)
    run = run_of((0.7,), sites={"a": 0.9, "b": 0.5})
    (tmp_path / "run" / "report" / "summary.json").write_text(json.dumps(run))
    given = ["advise", str(tmp_path / "statistics.json"), "--out", str(tmp_path / "advice.json")]
    assert main(given) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "1. b has 16 cases and a has 4." in said
    assert "jobs/hippocampus_fedcostwavg, --set aggregator.uniform_share=0.5" in said
    content = json.loads((tmp_path / "advice.json").read_text())
    assert content == to_document(Subject(statistics), advise(Subject(statistics)))
    # Made-up cases have no drawn regions, so that is told, too.
    assert [each["rule"] for each in content["advice"]] == ["sizes", "drawn"]
    assert (content["run"], "drift" in content["looked_at"]) == (None, False)
    assert main([*given, "--first-run", str(tmp_path / "run")]) == 0
    content = json.loads((tmp_path / "advice.json").read_text())
    assert ([each["rule"] for each in content["advice"]], content["run"]) == (["sizes", "drawn", "worst site"], "r")
    capsys.readouterr()
    write_statistics(FederationStatistics(TINY, {"a": one, "b": one}), tmp_path / "statistics.json")
    assert main(given[:2]) == 0
    assert "Nothing speaks for another method" in " ".join(capsys.readouterr().out.split())


def test_results_do_not_replace_what_was_read(one, tmp_path, capsys):
    path = write_statistics(FederationStatistics(TINY, {"a": one}), tmp_path / "statistics.json")
    assert main(["advise", str(path), "--out", str(path)]) == 2
    assert "statistics.json" in capsys.readouterr().err

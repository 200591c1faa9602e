"""Kinds of tasks: their scores are summarised alike, and what came from elsewhere is checked."""

import math
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from fedseg.errors import ConfigurationError
from fedseg.tasks.objective import Objective, Score, objective_of
from fedseg.tasks.registry import BRATS, resolve_task
from fedseg.tasks.segmentation.objective import Segmentation
from fedseg.tasks.task import parse_task


@dataclass
class Case:
    error: dict
    worst: dict = field(default_factory=dict)
    kind: dict = field(default_factory=dict)


class Errors(Objective):
    """Two scores and one count, without anything of segmentation."""

    title = "errors"
    scores = (Score("error", "Error", "HU", higher_is_better=False), Score("worst", "Worst", "HU"))
    counts = {"kind": {"low": "too low", "high": "too high"}}  # noqa: RUF012
    needs_label = False
    outputs = ("left", "right")
    output_channels = 2
    reference = loss = activate = decide = score = None


def cases(generator, count):
    def number():
        return None if generator.random() < 0.2 else float(generator.uniform(0, 5))

    return [
        Case(
            {"left": number(), "right": number()},
            {"left": number(), "right": number()},
            {name: str(generator.choice(["low", "high", "neither"])) for name in ("left", "right")},
        )
        for _ in range(count)
    ]


def slow_mean(values):
    known = [value for value in values if value is not None]
    return pytest.approx(sum(known) / len(known)) if known else None


@pytest.mark.parametrize("seed", range(5))
def test_a_summary_equals_slow_loops(seed):
    scored = cases(np.random.default_rng(seed), 7)
    summary = Errors.summarise(scored)
    assert set(summary) == {"cases", "error", "worst", "defined", "scored", "kind"}
    for output in ("left", "right"):
        assert summary["error"][output] == slow_mean([case.error[output] for case in scored])
        assert summary["worst"][output] == slow_mean([case.worst[output] for case in scored])
        assert summary["defined"][output] == sum(case.error[output] is not None for case in scored)
        assert summary["scored"]["worst"][output] == sum(case.worst[output] is not None for case in scored)
        for kind in ("low", "high"):
            assert summary["kind"][output][kind] == sum(case.kind[output] == kind for case in scored)
    assert summary["error"]["mean"] == slow_mean([summary["error"]["left"], summary["error"]["right"]])
    assert "mean" not in summary["worst"]
    assert Errors(BRATS).fault(summary) == ""


@pytest.mark.parametrize("seed", range(5))
def test_pooled_sites_are_the_summary_of_all_their_cases(seed):
    generator = np.random.default_rng(seed)
    # Each score is weighed by the cases that have it, which differ between scores.
    sites = [cases(generator, count) for count in (4, 0, 1, 6)]
    pooled = Errors.pool([Errors.summarise(site) for site in sites])
    together = Errors.summarise([case for site in sites for case in site])
    assert pooled["cases"] == 11
    for name in ("defined", "scored", "kind"):
        assert pooled[name] == together[name]
    for name in ("error", "worst"):
        assert pooled[name] == pytest.approx(together[name])


def test_a_summary_without_counts_of_further_scores_is_weighed_by_the_primary_one():
    one, other = changed(), changed(error={"left": 3.0, "right": None, "mean": 3.0}, defined={"left": 3, "right": 0})
    for each in (one, other):
        del each["scored"]
    assert Errors.pool([one, {**other, "worst": {"left": 5.0, "right": 1.0}}])["worst"]["left"] == (1 + 3 * 5) / 4


def test_a_score_that_not_every_case_has_is_not_summarised():
    scored = cases(np.random.default_rng(0), 3)
    scored[1].worst = {}
    assert Errors.summarise(scored)["worst"] == {}


def changed(**parts):
    summary = Errors.summarise([Case({"left": 1.0, "right": None}, {"left": 1, "right": 1}, {"left": "low"})])
    return {**summary, **parts}


@pytest.mark.parametrize(
    ("summary", "said"),
    [
        (changed(), ""),
        (changed(error={}), "its error lacks numbers"),
        (changed(split="test"), "unknown parts"),
        (changed(error=[1.0]), "numbers by name"),
        (changed(error={"patient-7": 1.0}), "unknown names"),
        (changed(error={"left": math.nan}), "finite numbers"),
        (changed(error={"left": -0.1}), "in their range"),
        (changed(error={"left": True}), "finite numbers"),
        (changed(worst={"left": "1"}), "finite numbers"),
        (changed(defined={"left": 0.5}), "finite numbers"),
        (changed(kind={"patient-7": {"low": 1}}), "unknown names"),
        (changed(kind={"left": {"patient-7": 1}}), "unknown names"),
        (changed(kind={"left": {"low": -1}}), "finite numbers"),
        (changed(kind={"left": 1}), "finite numbers"),
        (changed(kind=1), "numbers by name"),
        (changed(scored=[1]), "numbers by name"),
        (changed(scored={"patient-7": {"left": 1}}), "unknown names"),
        (changed(scored={"worst": {"patient-7": 1}}), "unknown names"),
        (changed(scored={"worst": {"left": 0.5}}), "finite numbers"),
        (changed(scored={"worst": {"left": 1}}), "lacks numbers"),
        (changed(defined={"left": 1}), "lacks numbers"),
    ],
)
def test_what_came_from_elsewhere_is_checked(summary, said):
    found = Errors(BRATS).fault(summary)
    assert (said in found) if said else found == ""


def test_further_keys_are_named_by_who_adds_them():
    assert Errors(BRATS).fault(changed(split="test"), further=("split",)) == ""


def test_which_way_is_up():
    dice, error = Segmentation(BRATS).primary, Errors(BRATS).primary
    assert dice.better(0.8, 0.7)
    assert error.better(0.7, 0.8)
    assert not error.better(0.8, 0.8)
    assert (dice.axis, error.axis) == ("Dice", "Error in HU (smaller is better)")


def test_built_in_tasks_are_of_segmentation():
    found = objective_of(BRATS)
    assert type(found) is Segmentation
    assert (found.outputs, found.output_channels) == (("ET", "TC", "WT"), 3)
    assert "objective" not in BRATS.to_dict(), "digests of plans stay as they were"


@pytest.mark.parametrize("name", ["no_such_kind", "objective", "task", "reconstruction", "../segmentation", "", "os"])
def test_an_unknown_kind_is_refused(name):
    with pytest.raises(ConfigurationError, match=r"task\.objective"):
        resolve_task({"name": "brats", "objective": name})


def test_only_segmentation_needs_classes():
    declaration = {
        "name": "x",
        "modality": "CT",
        "channels": ["ct"],
        "normalisation": "zscore",
        "patch_size": [8, 8, 8],
    }
    with pytest.raises(ConfigurationError, match=r"task\.classes"):
        parse_task(declaration)
    task = parse_task({**declaration, "objective": "other"})
    assert (task.classes, task.regions, task.conventions) == ((), (), ())
    assert parse_task(task.to_dict()) == task
    with pytest.raises(ConfigurationError, match=r"task\.classes"):
        replace(task, objective="segmentation")

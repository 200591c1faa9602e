"""Intervals of a site's means: those of the bootstrap, over patients, and none where they would tell single cases."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from fedseg.contract.scores import FEWEST, INTERVALS, scores_fault
from fedseg.evaluation.case_intervals import score_intervals, summarise_cases, told_bounds
from fedseg.evaluation.intervals import bootstrap_mean, bootstrap_mean_of_means
from fedseg.tasks.objective import ScoredCase, objective_of
from fedseg.tasks.segmentation.metrics import CaseScore
from fedseg.tasks.task import parse_task
from tiny import TASK

KIND = objective_of(parse_task(TASK))
INNER = [0.5, 0.9, None, 0.7, 0.6, 0.1]
WHOLE = [0.6, 0.8, 0.9, 0.5, 0.7, 0.3]


def scores(**more: Any) -> list[CaseScore]:
    cases = [CaseScore(dice={"inner": a, "whole": b}) for a, b in zip(INNER, WHOLE, strict=True)]
    for name, values in more.items():
        for case, value in zip(cases, values, strict=True):
            getattr(case, name).update({"inner": value, "whole": value})
    return cases


def pair(values: list[float | None], patients: list[str]) -> list[float | None]:
    found = bootstrap_mean(values, patients=patients)
    return [found.low, found.high]


def test_each_mean_has_the_interval_of_its_values() -> None:
    patients = [f"p{i}" for i in range(6)]
    found = score_intervals(KIND, scores(hd95=[3.0, 2.0, 5.0, 4.0, 9.0, 1.0]), patients)
    assert set(found) == {"dice", "hd95"}
    assert found["dice"]["inner"] == pair(INNER, patients)
    assert found["hd95"]["whole"] == pair([3.0, 2.0, 5.0, 4.0, 9.0, 1.0], patients)
    assert "mean" not in found["hd95"]


def test_where_every_case_has_every_output_the_mean_has_the_interval_of_the_cases_means() -> None:
    chosen, patients = [0, 1, 3, 4, 5], [f"p{i}" for i in range(5)]
    found = score_intervals(KIND, [scores()[i] for i in chosen], patients)
    assert found["dice"]["mean"] == pytest.approx(pair([0.55, 0.85, 0.6, 0.65, 0.2], patients))


def test_the_interval_of_the_mean_is_of_the_number_beside_it() -> None:
    """All 27 ways to draw three patients, of whom two lack a region; the rarest is likelier than 2.5 %."""
    cases = [CaseScore(dice={"inner": a, "whole": b}) for a, b in ((0.1, 0.9), (None, 0.2), (None, 0.5), (0.3, 0.8))]
    patients = ["a", "b", "c", "a"]
    of_patient = {"a": [cases[0], cases[3]], "b": [cases[1]], "c": [cases[2]]}
    drawn = [
        KIND.summarise([case for patient in each for case in of_patient[patient]])["dice"]["mean"]
        for each in itertools.product("abc", repeat=3)
    ]
    low, high = score_intervals(KIND, cases, patients)["dice"]["mean"] or (None, None)
    assert (low, high) == (pytest.approx(min(drawn)), pytest.approx(max(drawn)))
    summary = summarise_cases(KIND, [ScoredCase("c", 1.0, c, p) for c, p in zip(cases, patients, strict=True)], 2)
    columns = [[case.dice[region] for case in cases] for region in ("inner", "whole")]
    assert bootstrap_mean_of_means(columns, patients).mean == pytest.approx(summary["dice"]["mean"]) == 0.4
    assert bootstrap_mean_of_means([[None], [None]], ["a"]).mean is None
    assert bootstrap_mean_of_means([[0.5], [None]], ["a"]).low is None


def test_a_score_that_not_every_case_has_has_no_interval() -> None:
    some = scores()
    some[0].hd95.update({"inner": 1.0, "whole": 1.0})
    assert set(score_intervals(KIND, some, ["p"] * 6)) == {"dice"}
    assert score_intervals(KIND, [], []) == {}


def test_few_patients_have_no_interval() -> None:
    """The first region has five patients with a value, of whom two are one."""
    patients = ["a", "b", "c", "d", "e", "f"]
    assert score_intervals(KIND, scores(), patients, fewest=5)["dice"]["inner"] is not None
    assert score_intervals(KIND, scores(), patients, fewest=6)["dice"]["inner"] is None
    assert score_intervals(KIND, scores(), patients, fewest=6)["dice"]["whole"] is not None
    assert score_intervals(KIND, scores(), ["a", "a", "c", "d", "e", "f"], fewest=5)["dice"]["inner"] is None


@pytest.mark.parametrize("cases", [1, FEWEST - 1, FEWEST, 6])
def test_what_a_site_says_may_leave(cases: int) -> None:
    scored = [ScoredCase(f"c{i}", 1.0, score, f"p{i}") for i, score in enumerate(scores())][6 - cases :]
    summary = summarise_cases(KIND, scored, FEWEST)
    assert scores_fault(KIND, {"split": "test", "loss": 1.0, **summary}) == ""
    assert (summary[INTERVALS]["dice"]["whole"] is None) is (cases < FEWEST)
    assert summary["dice"]["whole"] == pytest.approx(sum(WHOLE[6 - cases :]) / cases)


def test_told_bounds_are_those_of_the_summary() -> None:
    assert told_bounds({INTERVALS: {"dice": {"inner": [0.1, 0.2], "whole": None}}}, "dice", "inner") == (0.1, 0.2)
    assert told_bounds({INTERVALS: {"dice": {"whole": None}}}, "dice", "whole") is None
    assert told_bounds({}, "dice", "whole") is None


def test_kinds_of_tasks_without_further_scores_have_intervals_too() -> None:
    kind = SimpleNamespace(scores=KIND.scores[:1], primary=KIND.primary, outputs=("x",))
    cases = [SimpleNamespace(dice={"x": value}) for value in (0.1, 0.2, 0.4)]
    found = score_intervals(kind, cases, ["a", "b", "c"])  # type: ignore[arg-type]
    assert found["dice"]["x"] == found["dice"]["mean"] == pair([0.1, 0.2, 0.4], ["a", "b", "c"])

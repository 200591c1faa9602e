"""The fairness line by hand."""

from __future__ import annotations

import math

import pytest

from fedseg.evaluation.fairness import Fairness, fairness, fairness_of_sites
from fedseg.tasks.objective import Score, objective_of
from fedseg.tasks.segmentation.metrics import CaseScore
from fedseg.tasks.task import parse_task
from tiny import TASK

DICE, HD95 = Score("dice", "Dice", highest=1.0), Score("hd95", "HD95", "mm", higher_is_better=False)
ERROR = Score("volume_error", "Volume error", zero_is_best=True, higher_is_better=False, lowest=-1.0)


def test_by_hand() -> None:
    found = fairness(DICE, {"a": 0.9, "b": 0.6, "c": None, "d": 0.6}, {"a": 8, "b": 1, "c": 5, "d": 1})
    assert found == Fairness("b", 0.6, pytest.approx(math.sqrt(0.02)), pytest.approx(0.7), pytest.approx(0.84), 3, 10)


def test_the_worst_is_the_largest_distance_and_the_error_farthest_from_zero() -> None:
    cases = {"a": 1, "b": 1, "c": 1}
    assert fairness(HD95, {"a": 2.0, "b": 9.0, "c": 3.0}, cases).worst == "b"
    assert fairness(ERROR, {"a": 0.2, "b": -0.3, "c": 0.1}, cases).worst == "b"


def test_one_site_has_no_spread_and_no_site_has_nothing() -> None:
    assert fairness(DICE, {"a": 0.5}, {"a": 3}) == Fairness("a", 0.5, 0.0, 0.5, 0.5, 1, 3)
    assert fairness(DICE, {"a": None}, {}) == Fairness(None, None, None, None, None, 0, 0)
    assert fairness(DICE, {}, {}).to_dict()["sites"] == 0


def test_where_cases_lack_an_output_the_pooled_mean_is_that_of_all_cases_together() -> None:
    kind = objective_of(parse_task(TASK))
    sites = {"a": [(0.9, 0.5), (None, 0.7), (None, 0.6)], "b": [(0.2, 0.4)]}
    cases = {s: [CaseScore(dice={"inner": i, "whole": w}) for i, w in pairs] for s, pairs in sites.items()}
    found = fairness_of_sites(kind, {site: kind.summarise(each) for site, each in cases.items()})
    assert found.pooled == pytest.approx(((0.9 + 0.2) / 2 + (0.5 + 0.7 + 0.6 + 0.4) / 4) / 2)
    assert found.macro == pytest.approx(((0.9 + 0.6) / 2 + (0.2 + 0.4) / 2) / 2)
    assert (found.worst, found.sites, found.cases) == ("b", 2, 4)


def test_signed_scores_are_best_at_zero() -> None:
    assert ERROR.best([0.5, -0.1, 0.3, None]) == -0.1
    assert ERROR.worst([0.5, -0.6, 0.3, None]) == -0.6
    assert ERROR.better(-0.1, 0.2)
    assert not ERROR.better(0.2, -0.2)
    assert ERROR.axis == "Volume error (0 is best)"
    assert (DICE.worst([0.2, 0.4]), HD95.worst([2.0, 4.0]), HD95.worst([None])) == (0.2, 4.0, None)

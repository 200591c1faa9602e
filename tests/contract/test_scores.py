"""What a site says of the models that it scored, as guard and server check it."""

import copy
import math

import pytest

from fedseg.contract.scores import (
    FEWEST,
    few,
    is_withheld,
    patients_with,
    rare_outputs,
    scores_fault,
    withheld_words,
    without_rare,
)
from fedseg.tasks.objective import ScoredCase, objective_of
from fedseg.tasks.segmentation.metrics import CaseScore
from fedseg.tasks.task import parse_task
from fedseg.workflows.run.scores import readable
from tiny import TASK

KIND = objective_of(parse_task(TASK))
NONE = {"loss": None, **KIND.summarise([])}


@pytest.mark.parametrize("cases", [-1, True, 1.0, None, "3", 10**400, math.nan, 2**53 + 1])
def test_cases_are_counted_from_0(cases):
    part = {"split": "test", **NONE, "cases": cases}
    assert scores_fault(KIND, part) == "its scores do not count their cases"
    assert not readable({"final": part}, KIND)
    assert not readable({"final": {"split": "test", "cases": cases, "withheld": True}}, KIND)
    own = {"split": "test", **NONE, "personal": {**NONE, "cases": cases}}
    assert scores_fault(KIND, own) == "its scores do not count their cases"
    assert scores_fault(KIND, {"split": "test", **NONE}) == ""


def full(**changed):
    """What a site with three cases says, with other parts in the place of its own."""
    numbers = {"inner": 0.5, "whole": 0.25}
    empty = {output: {"both": 0, "reference": 1, "prediction": 0} for output in numbers}
    own = {"cases": 3, "dice": {**numbers, "mean": 0.375}, "hd95": {"inner": 2.0, "whole": 3.0}}
    return {"split": "test", "loss": 1.0, **own, "defined": {"inner": 3, "whole": 3}, "empty": empty, **changed}


@pytest.mark.parametrize(
    "changed",
    [
        {"defined": {}},
        {"defined": {"inner": 3}},
        {"dice": {"mean": 0.5}},
        {"dice": {"inner": 0.5, "mean": 0.5}},
        {"hd95": {"inner": 2.0}},
        {"empty": {}},
        {"defined": {}, "empty": {}, "hd95": {}, "dice": {"mean": 0.5}},
        {"defined": {"inner": 10**400, "whole": 3}},
        {"dice": {"inner": None, "whole": 0.25, "mean": 0.25}},
        {"dice": {"inner": math.nan, "whole": 0.25, "mean": 0.25}},
        {"hd95": {"inner": math.inf, "whole": 1.0}},
    ],
)
def test_scores_that_could_not_be_pooled_with_those_of_others_are_refused_at_once(changed):
    """Else one site ends the run of all when the last model has been scored."""
    assert readable({"final": full()}, KIND)
    assert not readable({"final": full(**changed)}, KIND)
    # Beside an honest site, whose outputs the pool goes by, most of them would have been an error.
    honest, own = full(), copy.deepcopy(full(**changed))
    assert scores_fault(KIND, honest) == ""
    if set(changed) != {"dice"} or None not in own["dice"].values():
        assert scores_fault(KIND, own) != ""


def test_too_few_cases_or_patients_are_told_as_a_limit_only():
    assert few("test", None, 1, 1) is None
    assert few("test", 5, 5, 5) is None
    assert few("test", 5, 0, 0) is None, "no cases are no secret"
    assert few("test", 5, 4, 4) == {"split": "test", "withheld": True, "fewer_than": 5, "of": "cases"}
    assert withheld_words(few("test", 5, 9, 4)) == "cases of fewer than 5 patients"


@pytest.mark.parametrize(
    "part",
    [
        {"split": "test", "cases": 3, "withheld": True, "dice": {}},
        {"split": "test", "withheld": True},
        {"split": "test", "withheld": True, "fewer_than": 5, "of": "cases", "cases": 3},
        {"split": "test", "withheld": True, "fewer_than": 5.5, "of": "cases"},
        {"split": "test", "withheld": True, "fewer_than": 5, "of": "someone by name"},
        {"split": 3, "withheld": True, "fewer_than": 5, "of": "cases"},
        {"split": "test", "withheld": 1, "fewer_than": 5, "of": "cases"},
        [],
    ],
)
def test_only_two_forms_say_that_scores_are_withheld(part):
    assert not is_withheld(part)
    assert not readable({"final": part}, KIND)
    good = {"split": "test", "withheld": True, "fewer_than": 5, "of": "cases"}
    assert is_withheld(good)
    assert readable({"final": good, "validation": {**good, "split": "validation"}}, KIND)


def test_means_over_too_few_cases_are_left_out_of_a_summary_and_of_its_mean():
    summary = {
        "cases": 6,
        "dice": {"inner": 0.9, "whole": 0.5, "mean": 0.7},
        "hd95": {"inner": 1.0, "whole": 2.0},
        "defined": {"inner": 1, "whole": 6},
        "empty": {},
    }
    assert rare_outputs(summary, 3) == {"inner"}
    told = without_rare(KIND, summary, 3, {})
    assert told["dice"] == {"inner": None, "whole": 0.5, "mean": 0.5}
    assert told["hd95"] == {"inner": None, "whole": 2.0}
    assert told["defined"] == {"inner": 0, "whole": 6}
    assert rare_outputs(told, 3) == set()
    assert (
        KIND.pool(
            [{**told, "empty": {n: dict.fromkeys(("both", "reference", "prediction"), 0) for n in ("inner", "whole")}}]
        )["dice"]["mean"]
        == 0.5
    )
    assert without_rare(KIND, summary, None, {}) == summary


def told(cases: int, **intervals):
    counts = {"inner": cases, "whole": cases}
    part = {"split": "test", "loss": 0.5, "cases": cases, "dice": {"inner": 0.5, "whole": 0.7, "mean": 0.6}}
    further = {"volume_error": {"inner": -0.1, "whole": 0.2}, "scored": {"volume_error": {"inner": 1, "whole": cases}}}
    empty = {region: {"both": 0, "reference": 0, "prediction": 0} for region in counts}
    return {**part, **further, "defined": counts, "empty": empty, "intervals": intervals}


@pytest.mark.parametrize(
    ("intervals", "said"),
    [
        ({}, ""),
        ({"dice": {"inner": [0.4, 0.6], "mean": [0.5, 0.5], "whole": None}}, ""),
        ({"volume_error": {"whole": [-0.3, 0.4]}}, ""),
        ({"volume_error": {"inner": [-0.3, 0.4]}}, "fewer than 5"),
        ({"dice": {"inner": [0.6, 0.4]}}, "end before they begin"),
        ({"dice": {"inner": [0.4]}}, "no pairs"),
        ({"dice": {"inner": [0.4, 1.6]}}, "no pairs"),
        ({"dice": {"inner": [0.4, float("nan")]}}, "no pairs"),
        ({"dice": {"inner": [0.1, 0.2, 0.3, 0.4, 0.5]}}, "no pairs"),
        ({"dice": {"inner": "0.4"}}, "no pairs"),
        ({"dice": {"patient-7": None}}, "no output"),
        ({"dice": [0.4, 0.6]}, "no output"),
        ({"patient-7": {}}, "no score"),
    ],
)
def test_intervals_are_pairs_of_numbers_over_enough_cases(intervals, said):
    found = scores_fault(KIND, told(FEWEST, **intervals))
    assert (said in found) if said else found == ""
    assert readable({"final": told(FEWEST, **intervals)}, KIND) is (not said)
    own = {**told(FEWEST), "personal": {k: v for k, v in told(FEWEST, **intervals).items() if k != "split"}}
    assert (said in scores_fault(KIND, own)) if said else scores_fault(KIND, own) == ""


def test_cases_of_too_few_patients_are_too_few_for_a_mean_of_a_region():
    score = {"inner": 0.9, "whole": 0.5}
    cases = [("p", score), ("p", score), ("p", score), ("q", {"inner": None, "whole": 0.1}), ("r", {"whole": 0.2})]
    scored = [ScoredCase(str(i), 0.5, CaseScore(dice=dice), patient) for i, (patient, dice) in enumerate(cases)]
    patients = patients_with(KIND, scored)
    assert patients == {"dice": {"inner": 1, "whole": 3}}
    summary = {**told(5), "defined": {"inner": 3, "whole": 5}, "scored": {}, "volume_error": {}}
    assert rare_outputs(summary, 3) == set()
    assert rare_outputs(summary, 3, patients) == {"inner"}
    assert without_rare(KIND, summary, 3, patients)["dice"]["inner"] is None
    assert without_rare(KIND, summary, 1, patients) == summary


@pytest.mark.parametrize("cases", [2, FEWEST - 1])
def test_an_interval_of_few_cases_would_tell_single_ones(cases):
    assert "fewer than 5" in scores_fault(KIND, told(cases, dice={"mean": [0.4, 0.6]}))
    assert scores_fault(KIND, told(cases, dice={"mean": None})) == ""


def test_cases_are_counted_for_every_output():
    assert scores_fault(KIND, {**told(3), "defined": {"inner": 3}}) == "its defined lacks numbers"
    assert scores_fault(KIND, {**told(3), "scored": {"volume_error": {"inner": 3}}}) == "its scored lacks numbers"


def test_few_cases_of_a_further_score_are_left_out_with_its_interval():
    """Both regions have six cases; the volume error of one, whose reference is mostly empty, has one."""
    summary = told(6, dice={"inner": [0.4, 0.6], "mean": [0.5, 0.7]}, volume_error={"inner": None, "whole": [0.1, 0.3]})
    assert rare_outputs(summary, 3) == {"inner"}
    kept = without_rare(KIND, summary, 3, {})
    assert kept["volume_error"] == {"inner": None, "whole": 0.2}
    assert kept["scored"]["volume_error"] == {"inner": 0, "whole": 6}
    assert (kept["dice"], kept["defined"]) == (summary["dice"], summary["defined"])
    assert kept["intervals"] == summary["intervals"]
    assert rare_outputs(kept, 3) == set()
    assert scores_fault(KIND, kept) == ""
    none = without_rare(KIND, summary, 7, {})
    assert none["intervals"]["dice"] == {"inner": None, "mean": None}
    assert none["intervals"]["volume_error"] == {"inner": None, "whole": None}
    assert rare_outputs(none, 7) == set()

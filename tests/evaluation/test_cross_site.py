"""The matrix of models by sites, by hand."""

import math

import pytest

from fedseg.contract.scores import few
from fedseg.evaluation.cross_site import Cell, CrossSiteMatrix, MatrixModel, cell_of, matrix_of
from fedseg.tasks.objective import objective_of
from fedseg.tasks.registry import BRATS

KIND = objective_of(BRATS)
REGIONS = ("ET", "TC", "WT")


def scores(dice, cases, hd95=4.0):
    """What a site says where all regions of all cases score the same."""
    return {
        "split": "test",
        "cases": cases,
        "loss": 0.5,
        "dice": {**dict.fromkeys(REGIONS, dice), "mean": dice},
        "hd95": dict.fromkeys(REGIONS, hd95),
        "defined": dict.fromkeys(REGIONS, cases),
        "empty": {region: {"both": 0, "reference": 0, "prediction": 0} for region in REGIONS},
    }


def filled():
    """Two sites that train, one that scores only and one with too few cases."""
    matrix = CrossSiteMatrix(KIND, ["alpha", "beta", "delta"], ["gamma"])
    row = {"alpha": cell_of(scores(0.8, 10)), "beta": cell_of(scores(0.5, 2)), "gamma": cell_of(scores(0.6, 4))}
    matrix.add(MatrixModel("local", "beta", "b" * 64), {**row, "delta": cell_of(few("test", 5, 3, 3))})
    matrix.add(MatrixModel("last", digest="a" * 64), {**row, "delta": cell_of(few("test", 5, 3, 3))})
    matrix.add(MatrixModel("local", "alpha", missing="policy: no"), {})
    return matrix


def test_a_cell_is_scores_or_why_there_are_none():
    assert cell_of(scores(0.8, 10)).score("dice") == 0.8
    assert cell_of(few("test", 5, 3, 3)) == Cell(withheld="fewer than 5 cases")
    assert cell_of(few("test", 5, cases=9, patients=3)) == Cell(withheld="cases of fewer than 5 patients")
    assert cell_of({"split": "test", "cases": 3, "withheld": True}).withheld.startswith("kept by the site's policy")
    assert cell_of({"split": "test", "cases": 0}) == Cell(missing="no cases to score")


def test_the_worst_site_of_the_last_model_comes_first_and_those_without_a_score_last():
    matrix = filled()
    assert [model.name for model in matrix.ordered()] == ["last", "local-alpha", "local-beta"]
    assert matrix.worst_first() == ["beta", "gamma", "alpha", "delta"]


def test_how_evenly_a_model_serves_the_sites_is_the_hand_computed_number():
    matrix = filled()
    fair, mean = matrix.fairness(MatrixModel("last")), 1.9 / 3
    assert fair.macro == pytest.approx(mean)
    assert fair.pooled == pytest.approx((0.8 * 10 + 0.5 * 2 + 0.6 * 4) / 16)
    assert (fair.sites, fair.cases, fair.worst, fair.worst_value) == (3, 16, "beta", 0.5)
    assert fair.spread == pytest.approx(math.sqrt(((0.8 - mean) ** 2 + (0.5 - mean) ** 2 + (0.6 - mean) ** 2) / 3))
    assert matrix.fairness(MatrixModel("local", "alpha")).macro is None


def test_counts_and_what_is_withheld_are_told_by_name():
    matrix = filled()
    assert matrix.counts() == {"beta": 2, "gamma": 4, "alpha": 10, "delta": None}
    assert matrix.withheld() == {"delta": "fewer than 5 cases"}


def test_a_matrix_goes_through_json_unchanged():
    content = filled().to_dict()
    assert content["sites"] == ["beta", "alpha", "delta"]
    assert content["evaluators"] == ["gamma"]
    assert content["cells"]["last"]["delta"] == {"withheld": "fewer than 5 cases"}
    assert content["cells"]["local-alpha"]["beta"] == {"missing": "policy: no"}
    again = matrix_of(KIND, content)
    assert again.to_dict() == content
    assert again.worst_first() == filled().worst_first()


def test_the_long_form_has_a_line_for_each_number_and_one_for_each_cell_without():
    lines = list(filled().rows())
    numbers = [line for line in lines if "value" in line]
    assert len(numbers) == 2 * 3 * (4 + 3)  # models x sites x (dice of three regions and mean, hd95 of three)
    notes = {(line["model"], line["evaluated_at"]): line["note"] for line in lines if "note" in line}
    assert notes["last", "delta"] == "withheld: fewer than 5 cases"
    assert notes["local-alpha", "gamma"] == "missing: policy: no"
    assert len(notes) == 2 + 4


def test_a_twin_is_the_first_model_with_the_same_arrays():
    matrix = filled()
    assert matrix.twin("a" * 64).name == "last"
    assert matrix.twin("c" * 64) is None
    matrix.add(MatrixModel("best", digest="a" * 64, same_as="last"), matrix.cells["last"])
    assert matrix.twin("a" * 64).name == "last"


def test_where_smaller_is_better_the_largest_is_the_worst(monkeypatch):
    matrix, hd95 = filled(), KIND.scores[1]
    assert not hd95.higher_is_better
    monkeypatch.setattr(type(KIND), "scores", (hd95,))
    for site, value in (("alpha", 9.0), ("beta", 2.0), ("gamma", 5.0)):
        matrix.cells["last"][site] = Cell({"cases": 2, "hd95": {"mean": value}, "defined": {}})
    assert matrix.worst_first()[:3] == ["alpha", "gamma", "beta"]


def test_an_interval_of_a_site_is_read_from_its_scores():
    part = {**scores(0.8, 10), "intervals": {"dice": {"mean": [0.7, 0.9]}}}
    assert cell_of(part).interval("dice") == (0.7, 0.9)
    assert cell_of(scores(0.8, 10)).interval("dice") is None

"""What the page says of rules, weights, selection and the end of a run: hand-computed numbers, older summaries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex

from evaluation.report.test_page import words
from evaluation.synthetic_run import SITES, make_summary, write_run
from fedseg.evaluation.report import compare, curves, decisions
from fedseg.evaluation.report.page import write_report


def page(out: Path, summary: dict[str, Any]) -> str:
    return words(write_report(write_run(out, summary)).read_text("utf-8"))


def two_rounds(**changes: Any) -> dict[str, Any]:
    cases = {"a": {"num_samples": 10}, "b": {"num_samples": 30}, "c": {"num_samples": 60}}
    rounds = [
        {"round": 0, "weights": {"a": 0.2, "b": 0.3, "c": 0.5}, "scales": {}, "sites": cases},
        {"round": 1, "weights": {"a": 0.4, "b": 0.6}, "scales": {"a": 0.5}, "sites": {s: cases[s] for s in "ab"}},
    ]
    return {"task": "brats", "sites": ["a", "b", "c"], "rounds": rounds, **changes}


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ({}, ""),
        ({"name": "FedAvg"}, "FedAvg"),
        ({"name": "FedCostWAvg", "alpha": 0.5, "cost": "train_loss"}, "FedCostWAvg with alpha 0.5, cost train_loss"),
        ({"name": "NormClipped", "bound": None, "weight_by": "x"}, "NormClipped with bound not set, weight by x"),
        (
            {"name": "FedAvg", "server_optimizer": {"name": "FedAdam", "betas": [0.9, 0.99], "amsgrad": False}},
            "FedAvg with server optimizer (FedAdam with betas (0.9, 0.99), amsgrad no)",
        ),
        ({"alpha": 1}, "a rule without name with alpha 1"),
    ],
)
def test_a_rule_in_words(rule: dict[str, Any], text: str) -> None:
    assert decisions.rule_words(rule) == text


def test_weights_by_hand() -> None:
    table = decisions.weight_table(two_rounds())
    assert table.header[2:] == ["Share of cases", "Mean weight", "First", "Last", "Lowest", "Highest", "Mean factor"]
    # a: shares 10 of 100, then 10 of 40: mean .175; weights .2 and .4; factors 1 and .5.
    assert table.rows[0] == ["a", "2", "0.175", "0.300", "0.200", "0.400", "0.200", "0.400", "0.750"]
    # b: 30 of 100, then 30 of 40: .525. c took part once.
    assert table.rows[1] == ["b", "2", "0.525", "0.450", "0.300", "0.600", "0.300", "0.600", "1.000"]
    assert table.rows[2] == ["c", "1", "0.600", "0.500", "0.500", "0.500", "0.500", "0.500", "1.000"]


def test_no_factors_no_column() -> None:
    summary = two_rounds()
    summary["rounds"][1]["scales"] = {"a": 1.0}
    assert "Mean factor" not in decisions.weight_table(summary).header


def test_the_figure_shows_weights_and_factors() -> None:
    figure = curves.weights(two_rounds())
    assert figure is not None
    upper, lower = figure.axes
    drawn = {to_hex(line.get_color()): list(line.get_ydata()) for line in upper.lines[:3]}
    first, second, third = drawn.values()
    assert (first, second, third[0]) == ([0.2, 0.4], [0.3, 0.6], 0.5)
    assert np.isnan(third[1])
    assert list(upper.lines[3].get_ydata()) == pytest.approx([1 / 3, 1 / 2])  # equal weights of those who took part
    assert list(lower.lines[0].get_ydata()) == [1.0, 0.5]
    without = two_rounds()
    without["rounds"][1]["scales"] = {}
    assert len(curves.weights(without).axes) == 1


def test_a_rule_without_weights(tmp_path: Path) -> None:
    summary = make_summary(3)
    for entry in summary["rounds"]:
        entry |= {"weights": {}, "rule": {"name": "CoordinateMedian"}}
    text = page(tmp_path, summary)
    assert "Rule: CoordinateMedian." in text
    assert "gives no site a weight of its own" in text
    assert not (tmp_path / "report" / "figures" / "weights.png").exists()
    assert decisions.weight_table(summary).rows == ()


def test_older_summaries_say_nothing_of_what_they_do_not_know(tmp_path: Path) -> None:
    summary = make_summary(3)
    del summary["stopped"]
    for entry in summary["rounds"]:
        for key in ("weights", "scales", "selection", "asked", "val_dice", "rule"):
            del entry[key]
    text = page(tmp_path, summary)
    for phrase in ("gives no site a weight", "Who was asked", "stopping rule", "Rule:"):
        assert phrase not in text


def test_the_page_of_a_whole_run(tmp_path: Path) -> None:
    text = page(tmp_path, make_summary())
    assert "Rule: FedCostWAvg with alpha 0.5, cost validation loss." in text
    assert "A stopping rule ended the training after round 10: 3 rounds brought no model better than 0.8341." in text
    assert "Every site that had accepted the job was asked in every round." in text
    assert all(site in [row[0] for row in decisions.weight_table(make_summary()).rows] for site in SITES)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, ""),
        ({"stopped": None}, "The training ran all its rounds; no stopping rule ended it."),
        ({"stopped": {"reason": "2 hours have passed"}}, "A stopping rule ended the training: 2 hours have passed."),
    ],
)
def test_why_a_run_ended(changes: dict[str, Any], text: str) -> None:
    assert decisions.ending(changes) == text


def selected(number: int, asked: str, reasons: dict[str, str], **more: Any) -> dict[str, Any]:
    return {"round": number, "selection": reasons, "asked": list(asked), "sites": {}, **more}


def test_selection_merges_equal_rounds_and_groups_equal_reasons(tmp_path: Path) -> None:
    ranked = {"a": "rank 1", "b": "rank 2", "c": "rank 3"}
    drawn = {"a": "not drawn", "b": "drawn", "c": "not drawn"}
    everyone = dict.fromkeys("abc", "asked again")
    history = [
        *(selected(i, "ab", ranked) for i in range(3)),
        selected(3, "b", drawn),
        selected(4, "abc", everyone),
        selected(6, "b", drawn),
        selected(7, "b", {**drawn, "b": "the largest"}),
    ]
    table = decisions.selection_table({"rounds": history})
    assert [list(row) for row in table.rows] == [
        ["1 to 3", "a (rank 1); b (rank 2)", "c (rank 3)"],
        ["4", "b (drawn)", "a, c (not drawn)"],
        ["5", "a, b, c (asked again)", "nobody"],
        ["7", "b (drawn)", "a, c (not drawn)"],
        ["8", "b (the largest)", "a, c (not drawn)"],
    ]
    assert decisions.selection_words({"rounds": history}) == "In 6 of 7 rounds not every site was asked."
    text = page(tmp_path, {"task": "brats", "sites": list("abc"), "rounds": history})
    assert "a, c (not drawn)" in text


def test_without_a_list_of_the_asked_those_who_answered_count() -> None:
    entry = {"round": 0, "selection": {"a": "drawn", "b": "not drawn"}, "sites": {"a": {}}}
    assert decisions.selection_table({"rounds": [entry]}).rows == [["1", "a (drawn)", "b (not drawn)"]]


def test_the_best_model_is_marked_at_one_round_in_every_panel_and_the_last_one_is_drawn() -> None:
    """Scores stand at the round after which the model was made: 0 is the start, 3 the last model."""
    summary = make_summary(3)
    summary["best"]["round"] = 1
    scores = {site: {"loss": 0.1, "dice": {"ET": 0.5, "TC": 0.6, "WT": 0.7, "mean": 0.6}} for site in SITES}
    summary["final"]["validation"] = scores
    figure = curves.learning_curves(summary)
    assert figure is not None
    training, loss, dice, regions = figure.axes
    for axes in figure.axes:
        (mark,) = [line for line in axes.lines if line.get_label() == "best model"]
        assert set(mark.get_xdata()) == {2}
        assert axes.get_xlabel() in ("Round", "")
    assert list(training.lines[0].get_xdata()) == [1, 2, 3]
    for axes in (loss, dice, regions):
        assert list(axes.lines[0].get_xdata()) == [0, 1, 2, 3]
    assert dice.lines[0].get_ydata()[-1] == 0.6
    assert [line.get_ydata()[-1] for line in regions.lines[:3]] == pytest.approx([0.5, 0.6, 0.7])


def test_a_fetched_comparison_fits_a_page(tmp_path: Path) -> None:
    """What all runs share stands below the table, and rules stand there with their arguments."""
    runs = {str(seed): make_summary(3, seed) for seed in (1, 2)}
    table, shared = compare.page_table(compare.runs_frame(runs))
    assert table.header[:3] == ("Run", "Seed", "Mean Dice")
    assert table.left == 2
    assert shared == [
        "In all runs: job brats_fedcostwavg; method FedCostWAvg; rule FedCostWAvg with alpha 0.5, cost validation "
        "loss; sites 3; rounds 3.",
    ]
    runs["2"]["rounds"][-1]["rule"] = {"name": "FedAvg"}
    table, shared = compare.page_table(compare.runs_frame(runs))
    assert [row[1] for row in table.rows] == ["FedCostWAvg", "FedAvg"]
    assert shared[1] == "Rules in full: FedCostWAvg with alpha 0.5, cost validation loss."

"""Tables of a summary: hand-computed means, absent parts, and the console table."""

from __future__ import annotations

import io
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from evaluation.synthetic_run import SITES, make_summary
from fedseg.evaluation.report import tables, text_tables, verdict
from fedseg.evaluation.report.tables import MEAN_OF_CASES, MEAN_OF_SITES
from fedseg.tasks.objective import Score, objective_of
from fedseg.tasks.registry import BRATS


def two_sites() -> dict[str, Any]:
    sites = {
        "a": {"cases": 3, "dice": {"anterior": 0.9, "posterior": 0.7, "mean": 0.8}, "hd95": {"anterior": 1.0}},
        "b": {"cases": 1, "dice": {"anterior": 0.5, "posterior": None, "mean": 0.5}, "hd95": {}},
    }
    return {"task": "hippocampus", "sites": ["a", "b"], "rounds": [], "final": {"sites": sites}}


def test_means_by_hand() -> None:
    frame = tables.score_frame(two_sites())
    assert list(frame.index) == ["a", "b", MEAN_OF_SITES, MEAN_OF_CASES]
    assert frame.loc[MEAN_OF_SITES, "Dice mean"] == pytest.approx(0.65)
    assert frame.loc[MEAN_OF_SITES, "Cases"] == 4
    assert frame.loc[MEAN_OF_CASES, "Dice anterior"] == pytest.approx((3 * 0.9 + 0.5) / 4)
    assert frame.loc[MEAN_OF_CASES, "Dice posterior"] == pytest.approx(0.7)
    assert frame.loc[MEAN_OF_CASES, "HD95 anterior"] == pytest.approx(1.0)


def test_mean_over_cases_counts_cases_with_a_score() -> None:
    summary = two_sites()
    summary["final"]["sites"]["a"]["defined"] = {"anterior": 1, "posterior": 3}
    assert tables.score_frame(summary).loc[MEAN_OF_CASES, "Dice anterior"] == pytest.approx((0.9 + 0.5) / 2)


def test_the_runs_own_means_win() -> None:
    summary = make_summary()
    summary["final"] |= {"mean_dice": 0.111, "pooled_dice": 0.222}
    frame = tables.score_frame(summary)
    assert (frame.loc[MEAN_OF_SITES, "Dice mean"], frame.loc[MEAN_OF_CASES, "Dice mean"]) == (0.111, 0.222)


def test_comparison_uses_the_same_sites() -> None:
    summary = two_sites()
    summary["comparison"] = [
        {"name": "own model of a", "sites": {"b": {"dice": {"mean": 0.45}}}, "mean_dice": 0.45},
        {"name": "nothing known", "sites": {}, "mean_dice": None},
    ]
    frame = tables.comparison_frame(summary)
    assert frame["federated"][0] == pytest.approx(0.5)  # the federated model at b alone, not its mean 0.65
    assert frame["difference"][0] == pytest.approx(0.05)
    assert [row[2] for row in text_tables.comparison_table(summary).rows] == ["better", "not comparable"]


@pytest.mark.parametrize(
    ("difference", "text"), [(0.02, "better"), (-0.02, "worse"), (0.004, "about equal"), (None, "not comparable")]
)
def test_statement(difference: float | None, text: str) -> None:
    assert text_tables.statement(difference, objective_of(BRATS).primary) == text
    opposite = {"better": "worse", "worse": "better"}
    assert text_tables.statement(difference, Score("error", "Error", higher_is_better=False)) == opposite.get(
        text, text
    )


def test_cross_site_puts_the_federation_last() -> None:
    summary = two_sites() | {"cross_site": {"federated": {"a": 0.9, "b": 0.8}, "b": {"b": 0.6, "a": None}}}
    frame = tables.cross_site_frame(summary)
    assert (list(frame.index), list(frame.columns)) == (["b", "federated"], ["a", "b"])
    assert frame.loc["b"].isna().tolist() == [True, False]


def test_history_takes_numbers_and_regions() -> None:
    summary = two_sites()
    sites = {"a": {"val_dice": 0.4, "bytes_up": 10}, "b": {"val_dice": {"anterior": 0.2, "posterior": 0.6}}}
    summary["rounds"] = [{"round": 0, "sites": sites, "weights": {"a": 0.75, "b": 0.25}}]
    frame = tables.history_frame(summary).set_index("site")
    assert frame["Dice"].tolist() == pytest.approx([0.4, 0.4])
    assert frame.loc["b", "Dice posterior"] == 0.6
    assert frame["weight"].tolist() == [0.75, 0.25]
    assert tables.cost_frame(summary).loc["a", "bytes up"] == 10


def test_a_site_without_scores_is_not_a_zero() -> None:
    summary = two_sites()
    summary["final"]["sites"]["b"]["dice"] = {"anterior": None, "posterior": float("nan"), "mean": None}
    assert tables.score_frame(summary).loc[MEAN_OF_SITES, "Dice mean"] == pytest.approx(0.8)
    assert text_tables.score_table(summary, "final").rows[1][2:5] == ["n/a"] * 3


def test_console_table() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(tables.result_table(make_summary()))
    text = console.export_text()
    assert all(name in text for name in (*SITES, "ET", "WT", "0.834"))


@pytest.mark.parametrize(
    ("value", "text"), [(None, "n/a"), (float("nan"), "n/a"), (0, "0 B"), (999, "999 B"), (76e6, "76.0 MB")]
)
def test_bytes_in_words(value: float | None, text: str) -> None:
    assert text_tables.shown_bytes(value) == text


@pytest.mark.parametrize(("value", "text"), [(4.21, "4.2 s"), (59, "59 s"), (60, "1 min 0 s"), (7261, "2 h 1 min")])
def test_seconds_in_words(value: float, text: str) -> None:
    assert text_tables.shown_seconds(value) == text


def test_verdict_names_best_and_worst_site() -> None:
    text = " ".join(verdict.verdict(make_summary(), pd.DataFrame()))
    assert "best at hospital-a" in text
    assert "weakest at hospital-c" in text
    assert "After 10 rounds" in text
    assert "better than 3, worse than none and about equal (within 0.005) to 1" in text


def test_a_way_that_knows_one_region_is_compared_on_that_region_only():
    dice = {"ET": 0.5, "TC": 0.6, "WT": 0.9, "mean": 2 / 3}
    entry = {"name": "threshold", "regions": ["WT"], "sites": {"a": {"dice": {"WT": 0.75}}}, "mean_dice": 0.75}
    frame = tables.comparison_frame({"task": "brats", "final": {"sites": {"a": {"dice": dice}}}, "comparison": [entry]})
    assert frame["federated"].item() == pytest.approx(0.9)
    assert frame["difference"].item() == pytest.approx(0.15)


def test_personal_models_stand_beside_the_final_one_on_the_same_sites():
    """A site without one is in neither mean."""
    assert text_tables.beside_table(two_sites(), "personal").rows == []
    summary = two_sites()
    sites = summary["final"]["sites"]
    sites["a"]["personal"] = {"cases": 3, "dice": {"anterior": 0.95, "posterior": 0.75, "mean": 0.85}}
    sites["b"]["personal"] = {"cases": 1, "dice": {"anterior": 0.4, "posterior": None, "mean": 0.4}}
    sites["c"] = {"cases": 1, "dice": {"anterior": 0.1, "posterior": 0.1, "mean": 0.1}}
    frame = tables.beside_frame(summary, "personal")
    assert list(frame.index) == ["a", "b", MEAN_OF_SITES]
    assert frame.loc[MEAN_OF_SITES, "final"] == pytest.approx(0.65)
    assert frame.loc[MEAN_OF_SITES, "own"] == pytest.approx(0.625)
    assert list(frame["difference"]) == pytest.approx([0.05, -0.1, -0.025])
    table = text_tables.beside_table(summary, "personal")
    assert (table.totals, len(table.header)) == (1, 6)
    assert table.rows[1] == ["b", "0.500", "0.400", "\N{MINUS SIGN}0.100", "0.400", "n/a"]


def test_what_the_method_reports_stands_in_a_table_of_its_own():
    """The last round in which each site told it; nothing where the method declares nothing."""
    assert text_tables.method_table(make_summary(2)).rows == ()
    summary = make_summary(3) | {"reports": {"personal_dice": "mean Dice of the site's personal model"}}
    for number, entry in enumerate(summary["rounds"]):
        for site, report in entry["sites"].items():
            report["personal_dice"] = None if (site, number) == ("hospital-b", 2) else 0.5 + 0.1 * number
    table = text_tables.method_table(summary)
    assert table.header == ("Site", "mean Dice of the site's personal model")
    assert table.rows == [["hospital-a", "0.700"], ["hospital-b", "0.600"], ["hospital-c", "0.700"]]

"""Tables of further scores and intervals, and the fairness line, on the page and by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evaluation.report.test_page import words
from evaluation.synthetic_run import SITES, make_summary, write_run
from fedseg.evaluation.report.further_scores import fairness_words, further_table, interval_table
from fedseg.evaluation.report.page import write_report
from fedseg.evaluation.report.tables import MEAN_OF_CASES, MEAN_OF_SITES, score_frame
from fedseg.evaluation.report.text_tables import score_table


def summary_with(**parts: Any) -> dict[str, Any]:
    """A run of two sites on the hippocampus, of three and one cases."""
    counts = {"anterior": 3, "posterior": 3}
    a = {"cases": 3, "dice": {"anterior": 0.9, "posterior": 0.7, "mean": 0.8}, "defined": counts}
    a |= {"volume_error": {"anterior": -0.1, "posterior": 0.2}, "nsd": {"anterior": 0.95, "posterior": 0.8}}
    a |= {"scored": {"volume_error": {"anterior": 1, "posterior": 3}, "nsd": counts}}
    a |= {"intervals": {"dice": {"anterior": [0.85, 0.95], "posterior": None, "mean": [0.7, 0.9]}}}
    b = {
        "cases": 1,
        "dice": {"anterior": 0.5, "posterior": 0.5, "mean": 0.5},
        "defined": {"anterior": 1, "posterior": 1},
    }
    b |= {"volume_error": {"anterior": 0.3, "posterior": None}, "nsd": {"anterior": 0.6, "posterior": 0.4}}
    b |= {"scored": {"volume_error": {"anterior": 1, "posterior": 0}}}
    final = {"split": "test", "sites": {"a": a, "b": b}, "mean_dice": 0.65, "pooled_dice": 0.725}
    return {"task": "hippocampus", "sites": ["a", "b"], "rounds": [], "final": {**final, **parts}}


def test_further_scores_by_hand() -> None:
    table = further_table(summary_with())
    assert list(table.header) == ["Site", "Region", "NSD", "Volume error"]
    cells = {(row[0], row[1]): row[2:] for row in table.rows}
    minus = "\N{MINUS SIGN}"
    assert cells["a", "anterior"] == ["0.950", f"{minus}0.10"]
    assert cells["b", "posterior"] == ["0.400", "n/a"]
    assert cells[MEAN_OF_SITES, "anterior"] == ["0.775", "+0.10"]
    # Of volume errors one case at each site has one: (-.1 + .3) / 2; of distances three and one.
    assert cells[MEAN_OF_CASES, "anterior"] == [f"{(3 * 0.95 + 0.6) / 4:.3f}", "+0.10"]
    assert cells[MEAN_OF_CASES, "posterior"] == [f"{(3 * 0.8 + 0.4) / 4:.3f}", "+0.20"]
    assert table.totals == 4


def test_the_main_table_has_the_main_scores_only() -> None:
    assert [column for column in score_table(summary_with(), "final").header if "NSD" in column] == []
    assert "NSD anterior" in score_frame(summary_with()).columns


def test_intervals_stand_beside_their_means() -> None:
    table = interval_table(summary_with())
    assert table.rows == [["a", "3", "0.900 (0.850 to 0.950)", "0.700 (n/a)", "0.800 (0.700 to 0.900)"]]
    assert interval_table(make_summary(1)).rows == []


def test_the_fairness_line_by_hand() -> None:
    told = {"worst": "b", "worst_value": 0.5, "spread": 0.15, "macro": 0.65, "pooled": 0.725, "sites": 2, "cases": 4}
    assert fairness_words(summary_with(fairness={"mean": told})) == (
        "Worst site: b (Dice 0.500). Spread over sites (standard deviation): 0.150. Mean over 2 sites: 0.650; over 4 "
        "cases: 0.725."
    )
    assert fairness_words(summary_with(fairness={"mean": {**told, "sites": 1}})) == ""
    assert fairness_words(summary_with()) == ""


def test_the_page_shows_them(tmp_path: Path) -> None:
    summary = make_summary(2)
    for site in SITES:
        scored = summary["final"]["sites"][site]
        scored["nsd"] = dict.fromkeys(("ET", "TC", "WT"), 0.77)
        scored["intervals"] = {"dice": {"ET": [0.61, 0.72]}}
    text = words(write_report(write_run(tmp_path, summary)).read_text("utf-8"))
    assert "Further scores" in text
    assert "0.770" in text
    assert "(0.610 to 0.720)" in text
    assert "Normalised surface distance" in text


@pytest.mark.parametrize("model", ["final", "best"])
def test_runs_of_before_have_no_such_tables(model: str) -> None:
    assert further_table(make_summary(1), model).rows == ()

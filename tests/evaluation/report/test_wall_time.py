"""Minutes and versions of a run whose updates came as they came, by hand."""

import pytest

from evaluation.synthetic_run import SITES, make_summary
from fedseg.evaluation.report.drawing import style
from fedseg.evaluation.report.wall_time import (
    has_versions,
    minutes_after,
    progress_over_time,
    trained_versions,
    version_table,
)


def late_run():
    """Three rounds of one, two and three minutes; the third site comes in the third with the model of the start."""
    summary, (a, b, c) = make_summary(2), SITES
    first = summary["rounds"][0]
    staleness = [{a: 0, b: 0}, {a: 0}, {b: 1, c: 2}]
    summary["rounds"] = [
        {**first, "round": number, "seconds": 60.0 * (number + 1), "notes": {"staleness": late}}
        for number, late in enumerate(staleness)
    ]
    return summary


def test_minutes_add_up():
    assert minutes_after(late_run()) == pytest.approx([0, 1, 3, 6])


def test_an_update_started_from_the_version_of_its_staleness():
    found, (a, b, c) = trained_versions(late_run()), SITES
    assert [tuple(row) for row in found.itertuples(index=False)] == [
        (1, a, 0, 0), (1, b, 0, 0), (3, a, 1, 0), (6, b, 1, 1), (6, c, 0, 2)
    ]  # fmt: skip


def test_the_table_counts_updates_and_how_late_they_were():
    a, b, c = SITES
    assert version_table(late_run()).rows == [
        [a, "2", "1", "0.0", "0"], [b, "2", "1", "0.5", "1"], [c, "1", "0", "2.0", "2"]
    ]  # fmt: skip


def test_it_is_drawn_for_such_runs_alone():
    with style():
        assert progress_over_time(late_run()) is not None
        assert progress_over_time(make_summary(2)) is None
    assert not has_versions(make_summary(2))
    assert version_table(make_summary(2)).rows == ()

"""Which cases are pictured: the best, the median and the worst, however many there are."""

from __future__ import annotations

import pytest

from fedseg.evaluation.report.case_pictures import pick_cases
from fedseg.tasks.objective import objective_of
from fedseg.tasks.registry import BRATS

KIND = objective_of(BRATS)


@pytest.mark.parametrize(
    ("dice", "picked"),
    [
        ([0.5, 0.9, 0.1, 0.7, 0.6], {"best": "c1", "median": "c4", "worst": "c2"}),
        ([0.5, 0.9], {"best": "c1", "worst": "c0"}),
        ([0.5], {"best": "c0"}),
        ([0.5, None, 0.2], {"best": "c0", "worst": "c2"}),
        ([0.5, 0.5, 0.5], {"best": "c2", "median": "c1", "worst": "c0"}),
        ([], {}),
        ([None], {}),
    ],
)
def test_ranks(dice: list[float | None], picked: dict[str, str]) -> None:
    cases = [{"id": f"c{i}", "dice": {"ET": None, "TC": value, "WT": value}} for i, value in enumerate(dice)]
    assert {rank: case["id"] for rank, case in pick_cases(KIND, cases)} == picked

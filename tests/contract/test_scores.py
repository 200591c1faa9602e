"""What a site says of the models that it scored, as guard and server check it."""

import pytest

from fedseg.contract.scores import scores_fault
from fedseg.tasks.objective import objective_of
from fedseg.tasks.task import parse_task
from fedseg.workflows.run.scores import readable
from tiny import TASK

KIND = objective_of(parse_task(TASK))
NONE = {"loss": None, **KIND.summarise([])}


@pytest.mark.parametrize("cases", [-1, True, 1.0, None, "3"])
def test_cases_are_counted_from_0(cases):
    part = {"split": "test", **NONE, "cases": cases}
    assert scores_fault(KIND, part) == "its scores do not count their cases"
    assert not readable({"final": part}, KIND)
    assert not readable({"final": {"split": "test", "cases": cases, "withheld": True}}, KIND)
    own = {"split": "test", **NONE, "personal": {**NONE, "cases": cases}}
    assert scores_fault(KIND, own) == "its scores do not count their cases"
    assert scores_fault(KIND, {"split": "test", **NONE}) == ""

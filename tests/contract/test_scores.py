"""What a site says of the models that it scored, as guard and server check it."""

import copy
import math

import pytest

from fedseg.contract.scores import scores_fault
from fedseg.tasks.objective import objective_of
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

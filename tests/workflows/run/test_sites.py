"""The port to the sites, whatever carries its messages."""

import pytest
from nvflare.app_common.abstract.fl_model import FLModel

from fedseg.errors import RefusalError
from scripted_sites import ScriptedSites


@pytest.mark.parametrize("first_fails", [True, False])
def test_of_two_answers_to_one_task_the_first_counts(first_fails):
    """A site that sends a second one, over whatever carries messages, counts neither twice nor for another."""
    answers = [RefusalError("data", "No cases."), FLModel(metrics={"cases": 3})]

    class Twice(ScriptedSites):
        def deliver(self, task, message, sites, timeout, receive):
            first, second = answers if first_fails else reversed(answers)
            self.judged = [receive("a", first), receive("a", second)]

    sites, noted, taken = Twice(None), [], []
    sites.note = lambda site, what: noted.append(what)
    found = sites.ask("prepare", FLModel(metrics={"x": 1}), ["a"], accept=lambda site, answer: taken.append(site))
    assert sites.judged == [not first_fails, False]
    assert (list(found), taken) == (([], []) if first_fails else (["a"], ["a"]))
    assert noted == ["data: No cases."] * first_fails

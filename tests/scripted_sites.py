"""Sites that answer as a script says: the port of a run without FLARE, processes and training."""

from nvflare.app_common.abstract.fl_model import FLModel

from fedseg.contract.plan import parse_plan
from fedseg.errors import AbortedError
from fedseg.workflows.run.presence import Presence
from fedseg.workflows.run.record import RunRecord
from fedseg.workflows.run.run_model import RunPlace
from fedseg.workflows.run.sites import Sites
from tiny import PLAN


class ScriptedSites(Sites):
    """Three sites whose answers are a function of (task, site, message).

    An answer is an ``FLModel``, a ``RefusalError``, or None for silence. A task that is posted is answered at the next
    ``wait``; direct calls are not made, and what they would have left is up to the test.

    Attributes:
        tasks: every task with the sites that it went to.
        posted: tasks to single sites that are not answered yet.
        aborted: whether the job is aborted.
    """

    def __init__(self, script, names="abc", traffic=lambda task, answer: (0, 0)):
        super().__init__()
        self.script, self.names, self.traffic_of = script, names, traffic
        self.tasks, self.posted, self.aborted, self.presence = [], [], False, Presence(0)

    def connected(self):
        return list(self.names)

    def absence(self, site):
        return self.presence.absence(site)

    def deliver(self, task, message, sites, timeout, receive):
        self.tasks.append((task, tuple(sites)))
        for site in sites:
            self.answer(task, site, message, receive)
        if self.aborted:
            raise AbortedError(f"The job was aborted during the task {task}.")

    def answer(self, task, site, message, receive):
        answer = self.script(task, site, message)
        if answer is not None:
            self.count(site, *self.traffic_of(task, answer))
            receive(site, answer)

    def post(self, task, message, site, receive):
        self.tasks.append((task, (site,)))
        waiting = (task, site, message, receive)
        self.posted.append(waiting)
        return lambda: waiting in self.posted and self.posted.remove(waiting)

    def wait(self, enough, timeout=0):
        while self.posted and not enough():
            self.answer(*self.posted.pop(0))

    def converse(self, conversation):
        self.ask(*conversation.asked)


def start(workflow, sites, folder, plan=None, initial=None):
    """A run of a workflow's parts over these sites (a port, or a script), before its first task."""
    sites = sites if isinstance(sites, Sites) else ScriptedSites(sites)
    run = workflow.training_run(sites, RunRecord(folder))
    run.state.load(parse_plan(PLAN) if plan is None else plan, RunPlace(folder / "state", folder / "local", initial))
    return run


def train(run):
    """Prepare, and make all rounds."""
    run.prepare()
    run.run_rounds()
    return run


def accepted(**changes):
    """The answer of a site that takes part."""
    return FLModel(metrics={"training": 2, "validation": 2, "test": 0, **changes})

"""A secret of its own for each site, given to nobody else."""

import re
from types import SimpleNamespace

from nvflare.apis.client import Client
from nvflare.apis.controller_spec import Task
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.wf_comm_server import WFCommServer
from nvflare.apis.shareable import Shareable

from fedseg.messages.calls.call import SECRET
from fedseg.workflows.run.call_secrets import CallSecrets
from fedseg.workflows.run.presence import Listening, Presence
from fedseg.workflows.split_training import SplitTraining


class Communicator:
    """FLARE's, with one task for all; each site gets a copy of its message."""

    def __init__(self, task):
        self.task, self.active = task, []

    def process_task_request(self, client, fl_ctx):
        return self.task, "id", Shareable() if self.task else None

    def client_is_active(self, client_name, reason, fl_ctx):
        self.active.append(client_name)


def asked(handing, site):
    return handing.process_task_request(SimpleNamespace(name=site), None)


def test_secrets_are_random_and_stay():
    known = CallSecrets()
    found = [known.of(site) for site in "abc"]
    assert len({*found, *(CallSecrets().of(site) for site in "abc")}) == 6
    assert all(re.fullmatch("[0-9a-f]{32}", secret) for secret in found), "128 bits"
    assert [known.of(site) for site in "abc"] == found


def test_each_site_is_given_its_own_with_the_task_that_begins_a_round():
    """FLARE's own communicator, which keeps one message for all; also where a site asks for its task once more."""
    known = CallSecrets()
    handing = Listening(WFCommServer(), Presence(0), known)
    assert {known.of(site) for site in "ab"} == {known.known(site) for site in "ab"}
    task = Task("train", Shareable({"weights": 1}))
    handing.broadcast(task=task, fl_ctx=FLContext(), targets=["a", "b"], min_responses=0)
    for site in "aba":
        name, _, message = handing.process_task_request(Client(site, "token"), FLContext())
        assert (name, message["weights"], message.get_header(SECRET)) == ("train", 1, known.of(site))
    assert task.data.get_header(SECRET) is None


def test_no_other_message_carries_it():
    known = CallSecrets()
    assert known.of("a")
    for task in ("prepare", "validate", "submit_model"):
        assert asked(Listening(Communicator(task), Presence(0), known), "a")[2].get_header(SECRET) is None
    assert asked(Listening(Communicator("train"), Presence(0), known), "b")[2].get_header(SECRET) is None, "not called"
    assert asked(Listening(Communicator(""), Presence(0), CallSecrets()), "a") == ("", "id", None)


def test_the_workflow_hands_them_out_and_still_hears_its_sites(monkeypatch):
    loop, communicator = SplitTraining(1), Communicator("train")
    monkeypatch.setattr("fedseg.workflows.run.flare_workflow.ModelController.set_communicator", lambda *a: None)
    loop.set_communicator(communicator)
    assert isinstance(loop.communicator, Listening)
    assert loop.sites.secrets.of("a")
    assert asked(loop.communicator, "a")[2].get_header(SECRET) == loop.sites.secrets.of("a")
    loop.communicator.client_is_active("a", "getTask", None)
    assert communicator.active == ["a"]

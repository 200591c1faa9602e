"""What a kind of round may be beyond those that there are: buffered, with a model for each site, with own settings."""

import numpy as np
import pytest
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from fedseg.aggregators.fedavg import FedAvg
from fedseg.contract.report import SiteReport
from fedseg.contract.round_settings import RoundSettings, parse_round_settings
from fedseg.errors import ConfigurationError
from fedseg.jobs.components import check_component
from fedseg.workflows.run.round_protocol import UPDATE_REFUSED, Broadcast, RoundProtocol
from fedseg.workflows.run.settings import RunSettings
from fedseg.workflows.run.weighted_model import WeightedModel
from fedseg.workflows.run.workflow import Workflow
from fedseg.workflows.selection import AllSites
from scripted_sites import accepted, start, train


def workflow(protocol, model=None, rounds=3):
    settings = RunSettings(rounds, run_id="run")
    return Workflow(settings, model or WeightedModel(FedAvg("uniform")), protocol, AllSites())


def update(message, value=1.0, steps=1):
    report = SiteReport(2, steps, 0.9, 0.8, {"mean": 0.5}, 2)
    arrays = {name: np.full_like(weight, value) for name, weight in message.params.items()}
    return FLModel(params_type=ParamsType.DIFF, params=arrays, meta=report.to_meta())


class Buffered(RoundProtocol):
    """A round ends with its second update; a site that has answered is sent the next model, and no site waits."""

    def __init__(self):
        self.working, self.arrived, self.sent_in = set(), {}, {}

    def collect(self, run, asked):
        for site in sorted(set(asked) - self.working):
            self.working.add(site)
            self.sent_in[site] = run.number
            run.sites.send("train", self.message(run, [site]), site, self.keep, UPDATE_REFUSED)
        run.sites.wait(lambda: len(self.arrived) >= 2)
        arrived, self.arrived = self.arrived, {}
        for site, answer in sorted(arrived.items()):
            self.working.discard(site)
            self.accepting(run)(site, answer)

    def keep(self, site, answer):
        self.arrived[site] = answer


def test_a_buffered_round_waits_for_no_slow_site(tmp_path):
    seen = []

    def script(task, site, message):
        if task == "prepare":
            return accepted()
        seen.append((site, message.current_round))
        return update(message)

    protocol = Buffered()
    run = train(start(workflow(protocol), script, tmp_path))
    # a and b fill round 0; c, which was sent that model, comes in round 1, and b, which was sent the next, in round 2.
    assert [sorted(entry["sites"]) for entry in run.state.rounds] == [["a", "b"], ["a", "c"], ["a", "b"]]
    assert seen == [("a", 0), ("b", 0), ("c", 0), ("a", 1), ("b", 1), ("a", 2)]
    assert run.state.events == []


def test_a_model_for_each_site_reaches_it_alone(tmp_path):
    class Personal(WeightedModel):
        per_site = True

        def outgoing(self, site):
            return {name: value + "abc".index(site) for name, value in self.weights.items()}

    got = {}

    def script(task, site, message):
        if task == "prepare":
            return accepted()
        got[site] = message.params
        return update(message)

    run = start(workflow(Broadcast(), Personal(FedAvg("uniform")), rounds=1), script, tmp_path)
    before = dict(run.state.model.weights)
    train(run)
    for name, value in before.items():
        for number, site in enumerate("abc"):
            np.testing.assert_array_equal(got[site][name], value + number)
        np.testing.assert_allclose(run.state.model.weights[name], value + 1, rtol=1e-6)


def test_sites_are_told_a_rounds_settings_and_their_steps_are_held_against_them(tmp_path):
    class Growing(Broadcast):
        def round_settings(self, number):
            return RoundSettings(local_epochs=number + 1)

    def script(task, site, message):
        if task == "prepare":
            return accepted()
        epochs = parse_round_settings(message.meta).local_epochs
        return update(message, steps=1 if site == "c" else epochs)

    run = train(start(workflow(Growing(), rounds=2), script, tmp_path))
    assert [sorted(entry["sites"]) for entry in run.state.rounds] == [["a", "b", "c"], ["a", "b"]]
    said = "update left out: The site reports num_steps 1, but by its own account it is 2."
    assert run.state.events == [{"round": 1, "site": "c", "what": said}]


@pytest.mark.parametrize("kind", ["federated", "encrypted", "split", "cyclic"])
def test_an_argument_that_a_workflow_does_not_take_is_refused_by_name(kind):
    path = f"fedseg.workflows.{kind}_training.{kind.capitalize()}Training"
    check_component({"path": path, "args": {"num_rounds": 1, "min_sites": 2, "resume_round": 3, "selection": None}})
    with pytest.raises(ConfigurationError, match=r"Training\.rounds is not known: .* takes \['num_rounds', "):
        check_component({"path": path, "args": {"rounds": 1}})

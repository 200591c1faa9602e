"""What the server of split training keeps and believes; whole runs are in tests/e2e."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import make_reply
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from fedseg.contract.plan import parse_plan
from fedseg.contract.report import SiteReport
from fedseg.errors import ConfigurationError, FedsegError, RefusalError
from fedseg.messages.calls.call import Ask, Call
from fedseg.messages.calls.caller import DirectCalls
from fedseg.messages.replies import refusal
from fedseg.networks.split.parts import join_weights
from fedseg.networks.weights import get_weights, split_extras
from fedseg.training.split.halves import plan_parts
from fedseg.workflows.federated_training import FederatedTraining
from fedseg.workflows.run.site_selection import SiteFacts
from fedseg.workflows.selection import LargestSites
from fedseg.workflows.split.model import SplitModel
from fedseg.workflows.split.rounds import SplitRounds
from fedseg.workflows.split_training import SplitTraining
from tiny import PLAN
from workflows.test_federated_training import Scripted


def plan_of(**split):
    return parse_plan({**PLAN, "training": {**PLAN["training"], "batch_dice": False}, "split": split})


def model_of(**split):
    model = SplitModel()
    model.open(plan_of(**split))
    return model


def report(samples=4, steps=2):
    return SiteReport(samples, steps, 0.5, 0.6, {"mean": 0.5}, 2)


def answer(site, arrays=None, **numbers):
    meta = {**report(**numbers).to_meta(), "client_name": site}
    return FLModel(params_type=ParamsType.DIFF, params=arrays or {}, meta=meta)


def test_a_round_sends_what_the_sites_need_and_no_more():
    whole = get_weights(parse_plan(PLAN).build_network())
    part, rest = (set(p.state_dict()) for p in plan_parts(plan_of(), plan_of().split))
    assert set(model_of().outgoing()) == rest
    averaged = model_of(site_update="averaged").outgoing()
    assert set(averaged) == part | rest
    for name, value in averaged.items():
        np.testing.assert_array_equal(value, whole[name])
    weights, memory = split_extras(model_of(site_update="summed").outgoing())
    assert (set(weights), set(memory)) == (part | rest, {"steps"}), "the optimizer has nothing to remember yet"


def test_sites_parts_are_averaged_by_the_samples_that_they_have_contributed():
    model = model_of(site_update="averaged")
    names = model.common.weights()
    before = {name: value.copy() for name, value in names.items()}
    model.begin_round()
    model.round.samples = {"a": 3, "b": 1}
    for site, value in (("a", 0.25), ("b", 1.25)):
        model.take(answer(site, {name: np.full_like(w, value) for name, w in names.items()}))
    model.finish_round()
    # (3 x 0.25 + 1 x 1.25) / 4 = 0.5
    for name, value in before.items():
        np.testing.assert_allclose(model.weights[name], value + 0.5, atol=1e-6)
    assert model.describe_round()["weights"] == {"a": 0.75, "b": 0.25}


@pytest.mark.parametrize("update", ["separate", "summed"])
def test_arrays_that_nobody_asked_for_are_refused(update):
    model = model_of(site_update=update)
    with pytest.raises(RefusalError, match="arrays that this job does not use") as error:
        model.take(answer("a", {"x": np.zeros(1, np.float32)}))
    assert error.value.reason == "weights"


@pytest.mark.parametrize("spoil", ["missing", "shape", "nan"])
def test_a_part_that_does_not_fit_is_refused(spoil):
    averaged, separate = model_of(site_update="averaged"), model_of()
    arrays = dict(averaged.common.weights())
    first = next(iter(arrays))
    if spoil == "missing":
        del arrays[first]
    else:
        arrays[first] = arrays[first][None] if spoil == "shape" else arrays[first] * np.nan
    for take in (lambda: averaged.take(answer("a", arrays)), lambda: separate.take_part("a", arrays)):
        with pytest.raises(RefusalError) as error:
            take()
        assert error.value.reason == "weights"


def test_a_sites_part_and_the_servers_are_a_whole_network():
    model = model_of()
    part = {name: value + 1 for name, value in plan_parts(model.plan, model.split)[0].state_dict().items()}
    model.take_part("a", {name: value.numpy() for name, value in part.items()})
    whole = model.whole("a")
    assert list(whole) == list(get_weights(parse_plan(PLAN).network.build(1, 2, 0))), "in the network's order"
    expected = join_weights({name: value.numpy() for name, value in part.items()}, model.server.weights())
    for name, value in expected.items():
        np.testing.assert_array_equal(whole[name], value)


@pytest.mark.parametrize("optimizer", [{"optimizer": "adamw"}, {"optimizer": "sgd", "momentum": 0.9}])
def test_a_checkpoint_holds_both_parts_and_their_optimizers(optimizer):
    plan = parse_plan({**PLAN, "training": {**PLAN["training"], **optimizer}, "split": {"site_update": "summed"}})
    first, second = SplitModel(), SplitModel()
    first.open(plan)
    for half in (first.server, first.common):
        for parameter in half.parameters().values():
            parameter.grad = torch.ones_like(parameter)
        half.step_as_it_is()
    first.begin_round()
    first.finish_round()
    second.open(plan)
    second.restore(first.arrays(), {})
    assert second.server.steps == second.common.steps == 1
    for name, value in first.arrays().items():
        np.testing.assert_array_equal(second.arrays()[name], value, err_msg=name)


def test_what_has_no_meaning_in_split_training_is_refused():
    parts = dict.fromkeys(("aggregator", "server_optimizer", "shared_arrays"), object())
    for name, value in {**parts, "keep_updates": True, "max_epsilon": 1.0}.items():
        with pytest.raises(ConfigurationError, match=f"workflow.{name} is 'given', but must be left out in split"):
            SplitTraining(1, **{name: value})
    for name in ("message_timeout", "start_timeout", "num_rounds"):
        with pytest.raises(ConfigurationError, match=f"workflow.{name} is 0, but must be a whole number of at least 1"):
            SplitTraining(**{"num_rounds": 1, name: 0})


def test_the_mean_of_gradients_needs_equal_batches(monkeypatch):
    monkeypatch.setattr(FederatedTraining, "_prepare", lambda self: None)
    loop = SplitTraining(1)
    loop.plan, loop.model = plan_of(cut_gradient="mean"), model_of(cut_gradient="mean")
    loop.sites = {"a": SiteFacts(4, None, 2), "b": SiteFacts(2, None, 2)}
    loop._prepare()
    loop.sites["b"] = SiteFacts(3, None, 2)
    with pytest.raises(FedsegError, match="training cases of b are no multiple of 2"):
        loop._prepare()


def test_a_newcomer_with_unequal_batches_is_left_out_by_name(monkeypatch):
    def arrive(self, digest):
        self.sites |= {"b": SiteFacts(3, None, 2), "c": SiteFacts(6, None, 2)}
        return ["b", "c"]

    monkeypatch.setattr(FederatedTraining, "take_in_newcomers", arrive)
    for mean in (True, False):
        loop, noted = SplitTraining(1), []
        split = {"cut_gradient": "mean"} if mean else {}
        loop.plan, loop.model, loop.sites = plan_of(**split), model_of(**split), {"a": SiteFacts(4, None, 2)}
        monkeypatch.setattr(loop, "note", lambda *event, noted=noted: noted.append(event))
        assert loop.take_in_newcomers("digest") == (["c"] if mean else ["b", "c"])
        assert sorted(loop.sites) == (["a", "c"] if mean else ["a", "b", "c"])
        said = ("b", "left out: cut_gradient mean needs training cases that are a multiple of 2")
        assert noted == ([said] if mean else [])


class Rounds(Scripted, SplitTraining):
    """Split training in which the direct calls of a round leave only the samples that each site has contributed."""

    def __init__(self, folder, samples, out=(), **arguments):
        self.contributed, self.out = samples, out
        super().__init__(folder, self.script, aggregator=None, num_rounds=1, **arguments)

    def script(self, task, site, model):
        if task == "prepare":
            return FLModel(metrics={"training": 4, "validation": 2, "test": 0})
        return answer(site, steps=2 if self.contributed.get(site) else 0)

    def open(self, plan, state, initial=None):
        super().open(plan_of(), state, initial)

    def run_rounds(self):
        self._prepare()
        self._round = 0
        self._train_round()


@pytest.fixture
def without_calls(monkeypatch):
    def collect(self, sites):
        self._of_round, self._out = sites, dict.fromkeys(self.out, "it was not ready")
        FederatedTraining._collect(self, sites)
        self.model.round.samples = dict(self.contributed)

    monkeypatch.setattr(SplitRounds, "_collect", collect)


def test_only_sites_whose_samples_came_into_the_round_count(tmp_path, without_calls):
    with pytest.raises(FedsegError, match=r"1 site\(s\) answered in round 0, but 2 must"):
        Rounds(tmp_path / "one", {"a": 4}, min_sites=2).run_rounds()
    with pytest.raises(FedsegError, match=r"0 site\(s\) answered in round 0, but 1 must"):
        Rounds(tmp_path / "none", {}).run_rounds()
    loop = Rounds(tmp_path / "two", {"a": 4, "c": 2}, min_sites=2)
    loop.run_rounds()
    assert sorted(loop.rounds[0]["sites"]) == ["a", "b", "c"], "b's scores stay"


def test_a_site_of_which_nothing_came_into_the_round_is_named_once(tmp_path, without_calls):
    said = {"round": 0, "site": "b", "what": "left out of the round: none of its samples came into an iteration"}
    loop = Rounds(tmp_path / "b", {"a": 4, "c": 2})
    loop.run_rounds()
    assert loop.events == [said]
    loop = Rounds(tmp_path / "known", {"a": 4, "c": 2}, out="b")
    loop.run_rounds()
    assert loop.events == [], "why it was left out was said when it was"


def test_a_report_is_held_to_what_is_known():
    loop = SplitTraining(1)
    loop.plan, loop.model = plan_of(), model_of()
    loop.sites = {"a": SiteFacts(4, None, 2), "b": SiteFacts(6, None, 2)}
    loop._check_report("a", report(steps=3))  # as many as the largest site has batches
    loop._check_report("a", report(steps=0))
    for wrong in (report(steps=4), report(samples=5)):
        with pytest.raises(RefusalError, match="The site reports"):
            loop._check_report("a", wrong)


def test_a_round_is_a_pass_over_the_cases_of_the_largest_site_that_it_asks():
    loop = SplitTraining(1, selection=LargestSites(2))
    loop.plan, loop.model = plan_of(), model_of()
    loop.sites = {site: SiteFacts(cases, None, 2) for site, cases in {"a": 4, "b": 6, "c": 9}.items()}
    loop._of_round = ["a", "b"]
    assert [loop._steps(site) for site in "ab"] == [3, 3]
    with pytest.raises(RefusalError, match="reports 5 steps; the round has 3"):
        loop._check_report("a", report(steps=5))


def test_in_turns_a_pass_is_over_a_sites_own_cases():
    loop = SplitTraining(1)
    loop.plan, loop.model = plan_of(site_update="handed_on"), model_of(site_update="handed_on")
    loop.sites = {"a": SiteFacts(4, None, 2), "b": SiteFacts(7, None, 2)}
    loop._of_round = ["a", "b"]
    assert [loop._steps(site) for site in "ab"] == [2, 4]
    loop._check_report("a", report(steps=2))
    with pytest.raises(RefusalError, match="reports 3 steps; the round has 2"):
        loop._check_report("a", report(steps=3))


def test_a_round_of_turns_sends_one_whole_network_and_takes_no_update():
    model = model_of(site_update="handed_on")
    part, rest = (set(p.state_dict()) for p in plan_parts(model.plan, model.split))
    assert set(model.outgoing()) == part | rest
    assert model.describe()["name"] == "SplitNN"
    with pytest.raises(RefusalError, match="arrays that this job does not use"):
        model.take(answer("a", dict(model.common.weights())))
    model.common.set_weights({name: value + 1 for name, value in model.common.weights().items()})
    model.begin_round()
    model.round.samples = {"a": 3, "b": 1}
    for site in "ab":
        model.take(answer(site))
    model.finish_round()
    for name, value in model.common.weights().items():
        np.testing.assert_array_equal(model.weights[name], value)
    assert model.describe_round()["weights"] == {"a": 0.75, "b": 0.25}
    again = model_of(site_update="handed_on")
    again.restore(model.arrays(), {})
    for name, value in model.weights.items():
        np.testing.assert_array_equal(again.weights[name], value, err_msg=name)


class Engine:
    """FLARE's engine, as far as direct calls need it."""

    def __init__(self, replies):
        self.replies, self.limits = replies, []

    def new_context(self):
        return _Nothing()

    def send_aux_request(self, targets, topic, request, timeout, fl_ctx, optional):
        (site,) = targets
        self.limits.append(timeout)
        reply = self.replies[site]
        return {} if reply is None else {site: reply(request)}


class _Nothing(SimpleNamespace):
    def __enter__(self):
        return self

    def __exit__(self, *failure):
        pass


def test_where_the_rounds_time_is_up_every_site_is_told_and_nobody_is_waited_for(monkeypatch):
    """As in the middle of a site's turn, when the others are still there and wait."""
    loop, over, told = SplitTraining(1), threading.Event(), {}
    loop.plan, loop.model, loop.start_id, loop._round = plan_of(), model_of(), "s1", 0
    calls = DirectCalls(Engine(dict.fromkeys("ab", lambda request: request)), 7, dict.fromkeys("ab", "abc"), over)
    monkeypatch.setattr(calls, "tell", told.update)

    def train(ready, exchange):
        over.set()
        return list(ready)

    monkeypatch.setattr(loop, "_train", train)
    loop._run_iterations(calls, ["a", "b"], over)
    calls.close()
    assert {site: call.ask for site, call in told.items()} == {"a": Ask.END, "b": Ask.END}
    assert loop._out == {}


def test_direct_calls_name_who_did_not_answer_and_why():
    replies = {
        "a": lambda request: request,
        "b": lambda request: make_reply(ReturnCode.TIMEOUT),
        "c": lambda request: refusal("loss", "Not finite."),
        "d": None,
        "e": lambda request: Call(Ask.END, "s", 1).to_shareable(),
        "f": lambda request: make_reply(ReturnCode.OK),
        "g": lambda request: make_reply(ReturnCode.COMMUNICATION_ERROR),
    }
    calls = DirectCalls(Engine(replies), 7, dict.fromkeys(replies, "abc"), threading.Event())
    answers, failures = calls.exchange(dict.fromkeys(replies, Call(Ask.READY, "s", 1)))
    calls.close()
    assert set(answers) == {"a"}
    assert {site: (failure.why, failure.alive) for site, failure in failures.items()} == {
        "b": ("it did not answer within 7 s", False),
        "c": ("loss: Not finite.", True),
        "d": ("it cannot be reached", False),
        "e": ("it answered another call", True),
        "f": ("data: The message is no call of split training.", True),
        "g": ("FLARE reports COMMUNICATION_ERROR", False),
    }
    assert set(calls.engine.limits) == {7}
    assert 0 < calls.up["a"] == calls.down["a"]

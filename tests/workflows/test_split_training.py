"""What the server of split training keeps and believes; whole runs are in tests/e2e."""

import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import make_reply
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from fedseg.contract.plan import parse_plan
from fedseg.contract.report import SiteReport
from fedseg.contract.update import Update
from fedseg.errors import ConfigurationError, FedsegError, RefusalError
from fedseg.messages.calls.call import Ask, Call
from fedseg.messages.calls.caller import DirectCalls
from fedseg.messages.replies import refusal
from fedseg.networks.split.parts import join_weights
from fedseg.networks.weights import get_weights, split_shared
from fedseg.training.split.halves import plan_parts
from fedseg.workflows.run.checkpoint import Checkpoints
from fedseg.workflows.run.run_model import RunPlace
from fedseg.workflows.selection import LargestSites
from fedseg.workflows.split.model import SplitModel
from fedseg.workflows.split_training import SplitTraining
from scripted_sites import ScriptedSites, accepted, start
from tiny import PLAN

NOWHERE = Path("nowhere")


def plan_of(**split):
    return parse_plan({**PLAN, "training": {**PLAN["training"], "batch_dice": False}, "split": split})


def model_of(**split):
    return loaded(plan_of(**split))


def loaded(plan):
    model = SplitModel()
    model.load(plan, RunPlace(NOWHERE, NOWHERE), Checkpoints(NOWHERE))
    return model


def report(samples=4, steps=2):
    return SiteReport(samples, steps, 0.5, 0.6, {"mean": 0.5}, 2)


def answer(**numbers):
    return FLModel(params_type=ParamsType.DIFF, params={}, meta=report(**numbers).to_meta())


def test_a_round_sends_what_the_sites_need_and_no_more():
    whole = get_weights(parse_plan(PLAN).build_network())
    part, rest = (set(p.state_dict()) for p in plan_parts(plan_of(), plan_of().split))
    assert set(model_of().outgoing(None)) == rest
    averaged = model_of(site_update="averaged").outgoing(None)
    assert set(averaged) == part | rest
    for name, value in averaged.items():
        np.testing.assert_array_equal(value, whole[name])
    weights, memory = split_shared(model_of(site_update="summed").outgoing(None))
    assert (set(weights), set(memory)) == (part | rest, {"steps"}), "the optimizer has nothing to remember yet"


def test_sites_parts_are_averaged_by_the_samples_that_they_have_contributed():
    model = model_of(site_update="averaged")
    names = model.common.weights()
    before = {name: value.copy() for name, value in names.items()}
    model.begin_round()
    model.round.samples = {"a": 3, "b": 1}
    for site, value in (("a", 0.25), ("b", 1.25)):
        model.accept_update(site, Update({name: np.full_like(w, value) for name, w in names.items()}, report()))
    model.finish_round()
    # (3 x 0.25 + 1 x 1.25) / 4 = 0.5
    for name, value in before.items():
        np.testing.assert_allclose(model.weights[name], value + 0.5, atol=1e-6)
    assert model.describe_round()["weights"] == {"a": 0.75, "b": 0.25}


@pytest.mark.parametrize("update", ["separate", "summed"])
def test_arrays_that_nobody_asked_for_are_refused(update):
    model = model_of(site_update=update)
    with pytest.raises(RefusalError, match="arrays that this job does not use") as error:
        model.accept_update("a", Update({"x": np.zeros(1, np.float32)}, report()))
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
    update = Update(arrays, report())
    for accept in (lambda: averaged.accept_update("a", update), lambda: separate.accept_part("a", arrays)):
        with pytest.raises(RefusalError) as error:
            accept()
        assert error.value.reason == "weights"


def test_a_sites_part_and_the_servers_are_a_whole_network():
    model = model_of()
    part = {name: value + 1 for name, value in plan_parts(model.plan, model.split)[0].state_dict().items()}
    model.accept_part("a", {name: value.numpy() for name, value in part.items()})
    whole = model.whole("a")
    assert list(whole) == list(get_weights(parse_plan(PLAN).network.build(1, 2, 0))), "in the network's order"
    expected = join_weights({name: value.numpy() for name, value in part.items()}, model.server.weights())
    for name, value in expected.items():
        np.testing.assert_array_equal(whole[name], value)


@pytest.mark.parametrize("optimizer", [{"optimizer": "adamw"}, {"optimizer": "sgd", "momentum": 0.9}])
def test_a_checkpoint_holds_both_parts_and_their_optimizers(optimizer):
    plan = parse_plan({**PLAN, "training": {**PLAN["training"], **optimizer}, "split": {"site_update": "summed"}})
    first, second = loaded(plan), loaded(plan)
    for half in (first.server, first.common):
        for parameter in half.parameters().values():
            parameter.grad = torch.ones_like(parameter)
        half.step_as_it_is()
    first.begin_round()
    first.finish_round()
    second.restore(0, first.state(), {})
    assert second.server.steps == second.common.steps == 1
    for name, value in first.state().items():
        np.testing.assert_array_equal(second.state()[name], value, err_msg=name)


def test_what_has_no_meaning_in_split_training_is_refused():
    parts = dict.fromkeys(("aggregator", "server_optimizer", "shared_arrays"), object())
    for name, value in {**parts, "keep_updates": True, "max_epsilon": 1.0}.items():
        with pytest.raises(ConfigurationError, match=f"workflow.{name} is 'given', but must be left out in split"):
            SplitTraining(1, **{name: value})
    for name in ("message_timeout", "start_timeout", "num_rounds"):
        with pytest.raises(ConfigurationError, match=f"workflow.{name} is 0, but must be a whole number of at least 1"):
            SplitTraining(**{"num_rounds": 1, name: 0})


class Contributing(ScriptedSites):
    """Direct calls of a round leave only the samples that each site has contributed."""

    def __init__(self, samples=None, cases=None, out=()):
        self.samples, self.cases, self.out = samples or {}, cases or dict.fromkeys("abc", 4), out
        super().__init__(self.reply, names=sorted(self.cases))

    def reply(self, task, site, message):
        if task == "prepare":
            return accepted(training=self.cases[site])
        return answer(steps=2 if self.samples.get(site) else 0, samples=self.cases[site])

    def converse(self, conversation):
        super().converse(conversation)
        self.run.protocol._out = dict.fromkeys(self.out, "it was not ready")
        self.run.state.model.round.samples = dict(self.samples)


def split_run(folder, sites=None, arguments=None, **split):
    sites = sites or Contributing()
    workflow = SplitTraining(**{"num_rounds": 1, "run_id": "run", **(arguments or {})})
    sites.run = start(workflow, sites, folder, plan_of(**split))
    return sites.run


def one_round(run):
    run.prepare()
    run.state.record.round = 0
    run.run_round()


def test_the_mean_of_gradients_needs_equal_batches(tmp_path):
    split_run(tmp_path / "equal", Contributing(cases={"a": 4, "b": 2}), cut_gradient="mean").prepare()
    with pytest.raises(FedsegError, match="training cases of b are no multiple of 2"):
        split_run(tmp_path / "uneven", Contributing(cases={"a": 4, "b": 3}), cut_gradient="mean").prepare()


def test_a_newcomer_with_unequal_batches_is_left_out_by_name(tmp_path):
    for mean in (True, False):
        sites = Contributing(dict.fromkeys("abc", 2), cases={"a": 4, "b": 3, "c": 6})
        sites.names = ["a"]
        run = split_run(tmp_path / str(mean), sites, {"num_rounds": 3}, **({"cut_gradient": "mean"} if mean else {}))
        one_round(run)
        sites.names = ["a", "b", "c"]
        run.state.record.round = 1
        run.run_round()
        assert sorted(run.state.facts) == ["a"], "they are invited"
        sites.wait(lambda: False)
        run.state.record.round = 2
        run.run_round()
        assert sorted(run.state.facts) == (["a", "c"] if mean else ["a", "b", "c"])
        said = ("b", "left out: cut_gradient mean needs training cases that are a multiple of 2")
        assert [(e["site"], e["what"]) for e in run.state.events] == ([said] if mean else [])


def test_only_sites_whose_samples_came_into_the_round_count(tmp_path):
    with pytest.raises(FedsegError, match=r"1 site\(s\) answered in round 1, but 2 must"):
        one_round(split_run(tmp_path / "one", Contributing({"a": 4}), {"min_sites": 2}))
    with pytest.raises(FedsegError, match=r"0 site\(s\) answered in round 1, but 1 must"):
        one_round(split_run(tmp_path / "none", Contributing()))
    run = split_run(tmp_path / "two", Contributing({"a": 4, "c": 2}), {"min_sites": 2})
    one_round(run)
    assert sorted(run.state.rounds[0]["sites"]) == ["a", "b", "c"], "b's scores stay"


def test_a_site_of_which_nothing_came_into_the_round_is_named_once(tmp_path):
    said = {"round": 0, "site": "b", "what": "left out of the round: none of its samples came into an iteration"}
    run = split_run(tmp_path / "b", Contributing({"a": 4, "c": 2}))
    one_round(run)
    assert run.state.events == [said]
    run = split_run(tmp_path / "known", Contributing({"a": 4, "c": 2}, out="b"))
    one_round(run)
    assert run.state.events == [], "why it was left out was said when it was"


def with_cases(folder, cases, arguments=None, **split):
    """A run whose sites have these training cases, and its protocol."""
    run = split_run(folder, Contributing(cases=cases), arguments, **split)
    run.prepare()
    return run.state, run.protocol


def test_a_report_is_held_to_what_is_known(tmp_path):
    run, rounds = with_cases(tmp_path, {"a": 4, "b": 6})
    rounds.check_report(run, "a", report(steps=3), 0)  # as many as the largest site has batches
    rounds.check_report(run, "a", report(steps=0), 0)
    for wrong in (report(steps=4), report(samples=5)):
        with pytest.raises(RefusalError, match="The site reports"):
            rounds.check_report(run, "a", wrong, 0)


def test_a_round_is_a_pass_over_the_cases_of_the_largest_site_that_it_asks(tmp_path):
    run, rounds = with_cases(tmp_path, {"a": 4, "b": 6, "c": 9}, {"selection": LargestSites(2)})
    rounds._asked = ["a", "b"]
    assert [rounds._steps(run, site) for site in "ab"] == [3, 3]
    with pytest.raises(RefusalError, match="reports 5 steps; the round has 3"):
        rounds.check_report(run, "a", report(steps=5), 0)


def test_in_turns_a_pass_is_over_a_sites_own_cases(tmp_path):
    run, rounds = with_cases(tmp_path, {"a": 4, "b": 7}, site_update="handed_on")
    rounds._asked = ["a", "b"]
    assert [rounds._steps(run, site) for site in "ab"] == [2, 4]
    rounds.check_report(run, "a", report(steps=2), 0)
    with pytest.raises(RefusalError, match="reports 3 steps; the round has 2"):
        rounds.check_report(run, "a", report(steps=3), 0)


def test_a_round_of_turns_sends_one_whole_network_and_takes_no_update():
    model = model_of(site_update="handed_on")
    part, rest = (set(p.state_dict()) for p in plan_parts(model.plan, model.split))
    assert set(model.outgoing(None)) == part | rest
    assert model.describe()["name"] == "SplitNN"
    with pytest.raises(RefusalError, match="arrays that this job does not use"):
        model.accept_update("a", Update(dict(model.common.weights()), report()))
    model.common.set_weights({name: value + 1 for name, value in model.common.weights().items()})
    model.begin_round()
    model.round.samples = {"a": 3, "b": 1}
    for site in "ab":
        model.accept_update(site, Update({}, report()))
    model.finish_round()
    for name, value in model.common.weights().items():
        np.testing.assert_array_equal(model.weights[name], value)
    assert model.describe_round()["weights"] == {"a": 0.75, "b": 0.25}
    again = model_of(site_update="handed_on")
    again.restore(0, model.state(), {})
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


def test_where_the_rounds_time_is_up_every_site_is_told_and_nobody_is_waited_for(tmp_path, monkeypatch):
    """As in the middle of a site's turn, when the others are still there and wait."""
    run, rounds = with_cases(tmp_path, {"a": 4, "b": 4})
    run.record.round, rounds._asked = 0, ["a", "b"]
    over, told = threading.Event(), {}
    calls = DirectCalls(Engine(dict.fromkeys("ab", lambda request: request)), 7, dict.fromkeys("ab", "abc"), over)
    monkeypatch.setattr(calls, "tell", told.update)
    run.sites.heard = set()

    def iterate(run, ready, exchange):
        over.set()
        return list(ready)

    monkeypatch.setattr(rounds, "_iterate", iterate)
    assert rounds._call_sites(run, calls) == []
    calls.close()
    assert {site: call.ask for site, call in told.items()} == {"a": Ask.END, "b": Ask.END}
    assert rounds._out == {}


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

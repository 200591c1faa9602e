"""A round of the protocol, with messages that are serialised as on the wire, against the plain loop."""

import numpy as np
import pytest
import torch
from nvflare.fuel.utils import fobs

from fedseg.contract.plan import parse_plan
from fedseg.errors import RefusalError
from fedseg.executors.split.answers import SplitAnswers
from fedseg.messages.calls.call import PARAMETERS, Ask, Call, read_call
from fedseg.messages.sizes import message_size
from fedseg.networks.weights import join_shared
from fedseg.training.split.halves import plan_cost
from fedseg.training.split.site_round import SplitSite
from fedseg.training.split.state import optimizer_arrays
from fedseg.training.trainer import SiteTrainer, TrainerSetup
from split_bytes import step_bytes
from split_example import all_weights, same_bits
from split_loops import splitavg_round, splitavg_step
from split_wire import SITES, STEPS, Wire, make_data, plain, plan_of
from tiny import PLAN

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("split"))


VARIANTS = [
    {},
    {"labels": "private"},
    {"site_update": "summed"},
    {"site_update": "summed", "labels": "private", "message": "float16"},
    {"message": "float16", "feature_noise": 0.1},
    {"message": "float64", "cut": "encoder2", "labels": "private"},
]


@pytest.mark.parametrize("split", VARIANTS, ids=lambda split: "-".join(map(str, split.values())) or "published")
def test_a_round_is_the_plain_loop_to_the_last_bit(data, split):
    """Sites have 4, 3 and 2 cases and batches of 2, so that batches are unequal and sites repeat theirs."""
    plan = plan_of(**split)
    wire = Wire(plan, data)
    there, result = wire.run()
    server, sites = plain(plan)
    done = splitavg_round(server, sites, wire.batches(), STEPS, 0.0, 0.5)
    assert there == ["a", "b", "c"]
    assert wire.left == {}
    assert same_bits(all_weights(wire.server, wire.halves), all_weights(server, sites))
    assert result.losses == [iteration.loss for iteration in done]
    assert result.samples == {"a": 6, "b": 5, "c": 6}
    if plan.split.site_update == "summed":
        assert same_bits(wire.common.weights(), sites["a"].weights())
        assert same_bits(wire.common.weights(), sites["c"].weights())


def test_with_private_labels_no_message_holds_a_label(data):
    plan = plan_of(labels="private", site_update="summed")
    wire = Wire(plan, data)
    wire.run()
    drawn = wire.batches()
    labels = [next(drawn[site])["classes"].numpy() for site in SITES for _ in range(STEPS)]
    assert any(label.any() for label in labels)
    kinds = set()
    for _, way, _, message in wire.messages:
        for kind, group in read_call(message).arrays.items():
            kinds.add((way, kind))
            for value in group.values():
                assert value.dtype == np.float32
                for label in labels:
                    assert not (value.size == label.size and np.array_equal(value.ravel(), label.ravel()))
    assert kinds == {
        ("up", "features"), ("up", "at_predictions"), ("up", "parameters"),
        ("down", "predictions"), ("down", "gradients"), ("down", "parameters"),
    }  # fmt: skip


def test_with_shared_labels_they_are_one_byte_a_voxel(data):
    wire = Wire(plan_of(), data)
    wire.run()
    sent = [read_call(m).arrays["labels"]["labels"] for s, way, ask, m in wire.messages if way == "up" and ask != "end"
            and "labels" in read_call(m).arrays]  # fmt: skip
    assert len(sent) == 3 * STEPS
    assert {value.dtype for value in sent} == {np.dtype(np.uint8)}


@pytest.mark.parametrize("message", ["float16", "float32"])
@pytest.mark.parametrize("labels", ["shared", "private"])
@pytest.mark.parametrize("update", ["separate", "summed"])
def test_bytes_are_those_foretold_within_a_twentieth(data, labels, update, message):
    """Of a network that is not quite as small: each message has some 200 bytes of names and headers."""
    wider = {**PLAN["network"], "channels": [16, 16, 16]}
    plan = plan_of(wider, labels=labels, site_update=update, message=message)
    wire = Wire(plan, data)
    wire.run()
    cost = plan_cost(plan, plan.split)
    for way in ("up", "down"):
        sent = sum(message_size(m) for site, w, _, m in wire.messages if (site, w) == ("a", way))
        foretold = STEPS * getattr(step_bytes(cost, plan.split, 2), way)
        assert foretold <= sent < 1.05 * foretold, (sent, foretold)


def test_labels_of_patches_that_were_turned_are_one_byte_a_voxel_too(data):
    """With all augmentations, of which one interpolates."""
    training = {**PLAN["training"], "augmentation": "full"}
    plan = parse_plan({**PLAN, "training": training, "split": {"message": "float32"}})
    trainer = SiteTrainer(plan, "a", data["a"])
    drawn = [batch for epoch in range(4) for batch in trainer.batches(0, epoch)]
    assert {batch["classes"].dtype for batch in drawn} == {torch.uint8}
    assert {batch["image"].dtype for batch in drawn} == {torch.float32}
    wire = Wire(plan, data)
    assert wire.run()[0] == ["a", "b", "c"]
    assert wire.left == {}


# ---------------------------------------------------------------------------- drop-outs


def step_that_b_does_not_finish(server, sites, batches, progress):
    """Its features are in the server's batch; what it should have answered then is in no sum.

    Where it is lost at its answer, its samples count nowhere. Where it is lost at its backward pass, they have gone
    into the step of the server's part; with ``summed`` the sum for the sites' part lacks its gradient in this one
    iteration, so that the step is not that of the remaining sites together.
    """
    for half in (server, *sites.values()):
        half.set_progress(progress)
    predictions = server.forward({s: half.forward(batches[s]["image"]) for s, half in sites.items()})
    if server.split.labels == "private":
        answers = {s: sites[s].loss_gradient(predictions[s], batches[s]["classes"]) for s in "ac"}
        found = server.backward_gradients(*({s: answer[i] for s, answer in answers.items()} for i in (0, 1)))
    else:
        found = server.backward_labels({s: batches[s]["classes"] for s in sites})
    total = server.step({s: sites[s].backward(found.gradients[s]) for s in "ac"})
    for site in "ac" if total else ():
        sites[site].apply(total)


@pytest.mark.parametrize(
    ("split", "lost"),
    [
        ({}, ("b", "features", 0)),
        ({}, ("b", "backward", 0)),
        ({"labels": "private"}, ("b", "answer", 1)),
        ({"site_update": "summed"}, ("b", "backward", 1)),
        ({"site_update": "summed"}, ("b", "apply", 1)),
    ],
)
def test_a_site_that_falls_silent_is_left_out_and_the_others_go_on(data, split, lost):
    """The others equal the plain loop in which the site takes part as long as its answers counted.

    ``samples`` says what the server's part was trained with: those of the iteration at hand where b was lost at its
    backward pass or later, not where it was lost before.
    """
    plan = plan_of(**split)
    wire = Wire(plan, data, [lost])
    there, result = wire.run()
    server, sites = plain(plan)
    drawn = wire.batches()
    _, ask, at = lost
    for step in range(STEPS):
        present = {s: sites[s] for s in SITES if s != "b" or step < at or (step == at and ask != "features")}
        batches, progress = {s: next(drawn[s]) for s in present}, step / STEPS / 2
        if step == at and ask in ("answer", "backward") and split:
            step_that_b_does_not_finish(server, present, batches, progress)
        else:
            splitavg_step(server, present, batches, progress)
    assert there == ["a", "c"]
    assert result.iterations == STEPS
    # Batches of two from three cases.
    assert result.samples.get("b", 0) == sum([2, 1, 2][: at + (ask in ("backward", "apply"))])
    others = {site: wire.halves[site] for site in ("a", "c")}
    expected = {site: sites[site] for site in ("a", "c")}
    assert same_bits(all_weights(wire.server, others), all_weights(server, expected))


def test_a_round_that_everybody_leaves_ends(data):
    wire = Wire(plan_of(), data, [(site, "backward", 1) for site in SITES])
    there, result = wire.run()
    assert there == []
    assert result.iterations == 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda arrays: arrays["labels"].update(labels=np.full((2, 1, 16, 16, 16), 7, np.uint8)), "data"),
        (lambda arrays: arrays.pop("labels"), "data"),
        (lambda arrays: arrays["features"].update(encoder1=np.zeros((3, 4, 8, 8, 8), np.float32)), "data"),
        (lambda arrays: arrays["features"].update(encoder1=np.full((2, 4, 8, 8, 8), np.nan, np.float32)), "data"),
        (lambda arrays: arrays["features"].update(surprise=np.zeros((2, 4), np.float32)), "data"),
    ],
    ids=["class", "no labels", "batch", "nan", "name"],
)
def test_an_answer_that_does_not_fit_leaves_its_site_out_by_name(data, change, reason):
    wire = Wire(plan_of(), data)
    honest = wire.sites["b"].answer

    def spoilt(call):
        answer = honest(call)
        if call.ask is Ask.FEATURES:
            change(answer.arrays)
        return answer

    wire.sites["b"].answer = spoilt
    there, _ = wire.run()
    assert there == ["a", "c"]
    assert list(wire.left) == ["b"]
    assert wire.left["b"].startswith(f"{reason}: ")


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_gradients_of_the_part_have_the_type_of_its_parameters(data, kind):
    wire = Wire(plan_of(site_update="summed"), data)
    honest = wire.sites["b"].answer

    def spoilt(call):
        answer = honest(call)
        if PARAMETERS in answer.arrays:
            group = answer.arrays[PARAMETERS]
            group.update({name: value.astype(kind) for name, value in group.items()})
        return answer

    wire.sites["b"].answer = spoilt
    there, _ = wire.run()
    assert there == ["a", "c"]
    assert wire.left == {"b": "data: The gradients are not those of the part that the sites have."}
    sent = [read_call(m).arrays.get(PARAMETERS, {}) for _, way, _, m in wire.messages if way == "down"]
    assert {value.dtype for group in sent for value in group.values()} == {np.dtype(np.float32)}


def test_where_batches_must_be_equal_a_smaller_one_leaves_its_site_out(data):
    """Of 4, 3 and 2 cases, b's second batch is the smaller one."""
    wire = Wire(plan_of(cut_gradient="mean"), data)
    there, result = wire.run()
    assert there == ["a", "c"]
    assert wire.left == {"b": "data: The batch holds less than 2 samples."}
    assert result.samples == {"a": 6, "b": 2, "c": 6}


# ------------------------------------------------------- a process that was started anew within a round


class StartedAnew:
    """At the call ``at`` the process of b is another one, which has the task, and with it the round's beginning."""

    def __init__(self, plan, data, states, at):
        self.wire, self.states, self.at, self.refused = Wire(plan, data, states=states), states, at, None
        received = {**self.wire.server.weights(), **self.wire.common.weights()}
        if plan.split.site_update == "summed":
            received = join_shared(received, optimizer_arrays(self.wire.common))
        self.received, self.exchange = received, self.wire.exchange
        self.wire.exchange = self.carry

    def carry(self, calls):
        if "b" in calls and (str(calls["b"].ask), calls["b"].step) == self.at:
            trainer = SiteTrainer(
                self.wire.plan,
                "b",
                self.wire.trainers["b"].datalist,
                TrainerSetup(self.wire.trainers["b"].state, simulated=True),
            )
            self.wire.sites["b"] = SplitAnswers(SplitSite(trainer))
            self.wire.sites["b"].site.begin(0, self.received)
            with pytest.raises(RefusalError) as error:
                self.wire.sites["b"].answer(calls["b"])
            self.refused = (error.value.reason, str(error.value))
            calls = {site: call for site, call in calls.items() if site != "b"}
        return self.exchange(calls)


@pytest.mark.parametrize(
    ("split", "at", "said"),
    [
        ({"site_update": "summed"}, ("apply", 1), "has had no backward pass of this step"),
        ({"site_update": "summed"}, ("backward", 1), "are not those of the features that this site has sent last"),
        ({"site_update": "handed_on"}, ("send", 2), "has not taken the part of the network in this round"),
    ],
)
def test_a_process_that_was_started_anew_is_not_taken_for_the_old_one(data, tmp_path, split, at, said):
    anew = StartedAnew(plan_of(**split), data, tmp_path, at)
    there, _ = anew.wire.run(0, {"a": 2, "b": 2, "c": 1} if split["site_update"] == "handed_on" else STEPS)
    assert there == ["a", "c"]
    reason, text = anew.refused
    assert reason == "state"
    assert said in text


def test_a_sum_is_applied_once_and_a_part_given_once(data):
    wire = Wire(plan_of(site_update="summed"), data)
    wire.run()
    total = {name: np.zeros_like(value) for name, value in wire.common.weights().items()}
    with pytest.raises(RefusalError, match="has had no backward pass of this step"):
        wire.sites["a"].answer(Call(Ask.APPLY, "start", 0, STEPS - 1, arrays={PARAMETERS: total}))
    wire = Wire(plan_of(site_update="handed_on"), data)
    wire.run(0, {"a": 2, "b": 2, "c": 1})
    with pytest.raises(RefusalError, match="has not taken the part"):
        wire.sites["a"].answer(Call(Ask.SEND, "start", 0, 2))


# ------------------------------------------------------------------------ stop and go on


@pytest.mark.parametrize("update", ["separate", "summed"])
def test_sites_go_on_from_their_disks_to_the_bit(data, tmp_path, update):
    plan = plan_of(site_update=update)
    through = Wire(plan, data, states=tmp_path / "one")
    for number in range(2):
        through.run(number)
        for each in through.sites.values():
            each.site.finish()
    first = Wire(plan, data, states=tmp_path / "two")
    first.run(0)
    for each in first.sites.values():
        each.site.finish()
    again = Wire(plan, data, states=tmp_path / "two")
    again.server.load_state(first.server.state())
    again.common.load_state(first.common.state())
    again.run(1)
    assert same_bits(all_weights(again.server, again.halves), all_weights(through.server, through.halves))


def content(**changes):
    end = {"ask": "end", "start": "", "round": 0, "step": 0, "next": None, "loss": None, "secret": "", "arrays": {}}
    return {"fedseg_split": {**end, **changes}}


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"fedseg_split": {"ask": "features"}},
        {"fedseg_split": "text"},
        content(ask="run"),
        content(next="x"),
        content(secret=5),
        *(
            content(arrays={"features": {"x": value}})
            for value in (["object", [1], b"12345678"], ["float32", [2], b"1234"], ["float32", [-1], b""], 5)
        ),
    ],
)
def test_what_is_no_call_is_refused(content):
    with pytest.raises(RefusalError, match="no call of split training"):
        read_call(content)


def test_a_call_survives_the_wire():
    call = Call(Ask.BACKWARD, "s", 3, 2, 0.25, None, {"gradients": {"x": np.arange(6.0).reshape(2, 3)}}, "abc")
    read = read_call(fobs.loads(fobs.dumps(call.to_shareable())))
    assert (read.ask, read.start, read.round, read.step, read.next, read.loss) == ("backward", "s", 3, 2, 0.25, None)
    assert read.secret == "abc"
    assert "abc" not in repr(read), "no log may hold it"
    np.testing.assert_array_equal(read.arrays["gradients"]["x"], call.arrays["gradients"]["x"])

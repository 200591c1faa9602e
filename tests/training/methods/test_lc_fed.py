import numpy as np
import pytest
import torch

from fedseg.aggregators.site_heads import SiteHeads
from fedseg.contract.plan import parse_plan
from fedseg.data.datalist import read_datalist
from fedseg.errors import ConfigurationError
from fedseg.networks.parts.head_calibration import calibration_of, head_of
from fedseg.networks.weights import apply_difference, get_weights
from fedseg.site.state import SiteState
from fedseg.training.methods.lc_fed import LCFed
from fedseg.training.trainer import SiteTrainer, TrainerSetup
from hooked import ROUNDS, assert_differ, assert_same
from tiny import PLAN, make_sites

HEAD = frozenset({"model.2.1.conv.unit0.conv.weight", "model.2.1.conv.unit0.conv.bias"})
ATTENTION = {"name": "site_attention"}


@pytest.fixture(scope="module")
def datalist(tmp_path_factory):
    return read_datalist(make_sites(tmp_path_factory.mktemp("data"), {"a": (4, 1)}) / "a")


def plan(*parts, **training):
    declared = {**PLAN["training"], "gradient_clip": 1e9, **training}
    return parse_plan({**PLAN, "network": {**PLAN["network"], "parts": list(parts)}, "training": declared})


def calibrated(weight=1.0, **part):
    return {"name": "head_calibration", "weight": weight, "window": 5, "sites": 3, **part}


def make(datalist, declared, hooks=(), private=frozenset(), state=None):
    return SiteTrainer(declared, "a", datalist, TrainerSetup(state, hooks=hooks, private=private))


def heads(number):
    """Heads of two other sites, others in every round; none in the first."""
    draw, count = np.random.default_rng(number), 2 * bool(number)
    shapes = {"weight": (count, 2, 2, 3, 3, 3), "bias": (count, 2)}
    return {f"heads/{n}": draw.normal(0, 0.3, shape).astype(np.float32) for n, shape in shapes.items()}


def federated(maker, shared=lambda number: None):
    """Rounds of one site; the model that it uses after them, and what it sent in each."""
    weights, sent = get_weights(maker().plan.build_network()), []
    for number in range(ROUNDS):
        site = maker()
        result = site.train_round(site.own_model(weights, number), number, ROUNDS, shared(number))
        weights = apply_difference(weights, {n: 0.9 * v for n, v in result.update.items() if n not in site.private})
        sent.append(result)
    return maker().own_model(weights), sent


def without_parts(weights):
    return {name: value for name, value in weights.items() if not name.startswith("parts.")}


@pytest.mark.parametrize("parts", [(), (ATTENTION,)], ids=["heads", "attention"])
def test_without_calibration_it_is_private_heads_alone_to_the_last_bit(datalist, parts):
    """The job of FedPer with the last module, on a network with or without the attention."""
    one = make(datalist, plan(*parts, calibrated(0)), [LCFed(head_steps=0)])
    fedper = make(datalist, plan(*parts), private=HEAD)
    found, sent = federated(lambda: one)
    expected, _ = federated(lambda: fedper)
    assert_same({n: v for n, v in found.items() if "head_calibration" not in n}, expected)
    assert [result.shared for result in sent] == [{}] * ROUNDS


@pytest.mark.parametrize("head_steps", [0, 1])
def test_calibration_leaves_head_and_shared_arrays_as_they_are_without_it(datalist, head_steps):
    """Whatever it weighs, since its loss takes features and predictions as given."""
    sites = [make(datalist, plan(calibrated(weight)), [LCFed(head_steps)]) for weight in (0, 1.0)]
    (none, _), (one, _) = (federated(lambda site=site: site, heads) for site in sites)
    assert_same(without_parts(one), without_parts(none))
    fuse = "parts.head_calibration.fuse.weight"
    assert not np.array_equal(one[fuse], none[fuse])


@pytest.mark.parametrize("wanted", [1, 100])
def test_the_head_goes_first_and_then_all(datalist, wanted):
    """Of two steps the first is the head's, also where a hundred are asked for."""
    hook = Watched(wanted)
    trainer = make(datalist, plan(calibrated(), schedule="constant"), [hook])
    start = get_weights(trainer.network)
    trainer.train_round(start, 0, 1)
    first, last = hook.seen
    moved = {name for name, value in first.items() if not np.array_equal(value, start[name])}
    assert moved == HEAD | {"parts.head_calibration.fuse.weight", "parts.head_calibration.fuse.bias"}
    assert all(not np.array_equal(value, start[name]) for name, value in without_parts(last).items())
    assert all(p.requires_grad for p in trainer.network.parameters())


class Watched(LCFed):
    """Keeps the weights after each step."""

    def __init__(self, head_steps):
        super().__init__(head_steps)
        self.seen = []

    def after_step(self, training):
        self.seen.append(get_weights(training.network))


def test_others_heads_are_met_kept_and_used_and_only_the_head_is_handed_on(datalist, tmp_path):
    def site():
        return make(datalist, plan(ATTENTION, calibrated()), [LCFed()], state=SiteState(tmp_path / "a", "run"))

    own, sent = federated(site, heads)
    trainer, last = site(), heads(ROUNDS - 1)
    np.testing.assert_array_equal(own["parts.head_calibration.weights"][:2], last["heads/weight"])
    np.testing.assert_array_equal(own["parts.head_calibration.biases"][:2], last["heads/bias"])
    assert own["parts.head_calibration.known"].tolist() == [1, 1, 0]
    for result in sent:
        assert set(result.shared) == {"heads/weight", "heads/bias"}
        assert not set(result.update) & trainer.private
        assert set(result.update) == set(own) - trainer.private
    np.testing.assert_array_equal(sent[-1].shared["heads/weight"], own["model.2.1.conv.unit0.conv.weight"])
    alone = {**own, "parts.head_calibration.known": np.zeros(3, np.float32)}
    (with_others,), (without,) = trainer.validate(own), trainer.validate(alone)
    assert with_others.loss != without.loss


def test_seeded_and_nothing_is_lost_when_the_site_dies(datalist, tmp_path):
    declared = plan(ATTENTION, calibrated())

    def living(name):
        trainer = make(datalist, declared, [LCFed(1)], state=SiteState(tmp_path / name, "run"))
        return federated(lambda: trainer, heads)[0]

    def reborn():
        return make(datalist, declared, [LCFed(1)], state=SiteState(tmp_path / "reborn", "run"))

    one = living("once")
    assert_same(one, living("again"))
    assert_same(one, federated(reborn, heads)[0])
    assert_differ(one, get_weights(declared.build_network()))


def test_the_loss_of_the_calibrated_logits_has_its_weight(datalist):
    site = make(datalist, plan(calibrated(0.25)), [LCFed()])
    batch = next(site.batches(0, 0))
    site.network.train()
    targets, logits = site.objective.targets(batch), site.network(batch["image"])
    part = calibration_of(site.network)
    with torch.no_grad():
        features = []
        head_of(site.network).register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
        site.network(batch["image"])
        added = site.loss(part.fused(features[0], logits, head_of(site.network)), targets)
        expected = float(site.loss(logits, targets) + 0.25 * added)
    found = site.supervise(site.network(batch["image"]), targets)
    assert float(found.detach()) == pytest.approx(expected)
    assert float(added) > 0


@pytest.mark.parametrize("weight", [1.0, 0])
def test_the_server_hands_heads_on_and_never_averages_them(weight):
    declared, server = plan(calibrated(weight)), SiteHeads()
    shapes = {n: v for n, v in get_weights(declared.build_network()).items() if v.dtype.kind == "f"}
    server.set_plan(declared, shapes)
    server.start(2)
    sent = {site: {n: v[0] for n, v in heads(1 + i).items()} if weight else {} for i, site in enumerate("ab")}
    for site, arrays in sent.items():
        server.accept(site, arrays)
    server.finish_round({"a": 1, "b": 5})
    resumed = SiteHeads()
    resumed.set_plan(declared, shapes)
    resumed.restore(server.state())
    for each in (server, resumed):
        assert_same(each.outgoing("a"), {n: v[None] for n, v in sent["b"].items()})
        assert_same(each.outgoing("b"), {n: v[None] for n, v in sent["a"].items()})


@pytest.mark.parametrize(
    ("parts", "training", "named"),
    [([], {}, "network.parts"), ([calibrated()], {"weight_average": 0.9}, "training.weight_average")],
)
def test_plans_that_do_not_suit_are_refused(datalist, parts, training, named):
    with pytest.raises(ConfigurationError, match=named):
        make(datalist, plan(*parts, **training), [LCFed()])


def test_wrong_arguments_are_refused():
    with pytest.raises(ConfigurationError, match="head_steps is "):
        LCFed(-1)
    with pytest.raises(ConfigurationError, match=r"network\.parts"):
        SiteHeads().set_plan(plan(), {})

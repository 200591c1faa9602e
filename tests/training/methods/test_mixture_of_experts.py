import numpy as np
import pytest
import torch

from fedseg.data.datalist import read_datalist
from fedseg.errors import ConfigurationError
from fedseg.models.model_file import read_model
from fedseg.networks.parts.mixture import mixture_of
from fedseg.networks.weights import get_weights, set_weights
from fedseg.site.state import SiteState
from fedseg.training.methods.mixture_of_experts import MixtureOfExperts
from fedseg.training.methods.personal_model import PERSONAL_MODEL
from hooked import (
    ROUNDS,
    SGD,
    assert_differ,
    assert_same,
    check_seeded_and_restarted,
    make_trainer,
    plain_rounds,
    run_rounds,
    start_of,
)
from tiny import make_sites

# share, adaptive
GATES = [(0.0, False), (0.3, False), (1.0, False), (0.5, True), (0.9, True)]


@pytest.fixture(scope="module")
def datalist(tmp_path_factory):
    return read_datalist(make_sites(tmp_path_factory.mktemp("data"), {"a": (4, 1)}) / "a")


def trained(datalist, hook, state=None):
    trainer = make_trainer(datalist, [hook], state)
    return trainer, run_rounds(lambda: trainer)


def personal(trainer):
    return trainer.companions["personal"].weights()


def outputs(trainer):
    """What the personal model, the site's copy of the global one and the private expert make of an image."""
    images = torch.randn(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    whole = trainer.companions["personal"].network.eval()
    with torch.no_grad():
        return whole(images), trainer.network.eval()(images), mixture_of(whole).expert.eval()(images)


@pytest.mark.parametrize(("share", "adaptive"), GATES)
def test_without_joint_training_the_federation_is_untouched_to_the_last_bit(datalist, share, adaptive):
    _, weights = trained(datalist, MixtureOfExperts(share, adaptive, joint=False))
    assert_same(weights, plain_rounds(datalist))


def test_a_gate_at_the_global_model_is_fedavg_and_gives_its_very_output(datalist):
    trainer, weights = trained(datalist, MixtureOfExperts(1.0, adaptive=False))
    assert_same(weights, plain_rounds(datalist))
    mixed, shared, private = outputs(trainer)
    assert torch.equal(mixed, shared)
    assert not torch.equal(mixed, private)


@pytest.mark.parametrize("joint", [True, False])
def test_a_gate_at_the_private_expert_is_a_site_alone(datalist, joint):
    trainer, weights = trained(datalist, MixtureOfExperts(0.0, adaptive=False, joint=joint))
    mixed, shared, private = outputs(trainer)
    assert torch.equal(mixed, private)
    assert not torch.equal(mixed, shared)
    alone = make_trainer(datalist)
    own = start_of(alone)
    for number in range(ROUNDS):
        own = alone.train_round(own, number, ROUNDS).weights
    assert_same(trainer.companions["expert"].weights(), own)
    assert_same(get_weights(mixture_of(trainer.companions["personal"].network).expert), own)
    assert_differ(weights, own)


def test_the_private_expert_learns_the_same_whatever_the_gate(datalist):
    one, other = (trained(datalist, hook)[0] for hook in (MixtureOfExperts(), MixtureOfExperts(0.0, False)))
    assert_same(one.companions["expert"].weights(), other.companions["expert"].weights())


def test_seeded_and_restarted(datalist, tmp_path):
    assert_differ(check_seeded_and_restarted(datalist, MixtureOfExperts, tmp_path), plain_rounds(datalist))


def test_the_mixture_survives_a_restart_and_lies_on_disk_as_a_model(datalist, tmp_path):
    living, _ = trained(datalist, MixtureOfExperts(), SiteState(tmp_path / "living", "run"))
    trainers = []

    def reborn():
        trainers.append(make_trainer(datalist, [MixtureOfExperts()], SiteState(tmp_path / "reborn", "run")))
        return trainers[-1]

    run_rounds(reborn)
    assert_same(personal(trainers[-1]), personal(living))
    assert_same(make_trainer(datalist, [MixtureOfExperts()], living.state).personal_model(), personal(living))
    model = read_model(living.folder / PERSONAL_MODEL)
    assert_same(model.weights, personal(living))
    images = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(model.build()(images), living.companions["personal"].network.eval()(images))


def test_its_scores_are_those_of_the_mixture(datalist):
    """Shut gates give the scores of either network by itself."""
    for share, name in ((1.0, None), (0.0, "expert")):
        trainer, _ = trained(datalist, MixtureOfExperts(share, adaptive=False))
        own = trainer.companions[name].weights() if name else get_weights(trainer.network)
        (found,), (expected,) = trainer.validate(personal(trainer)), trainer.validate(own)
        assert (found.loss, found.score.dice) == (expected.loss, expected.score.dice)
        assert trainer.hooks[0].report(trainer)["personal_score"] is not None


def slow_share(gate, bottleneck):
    """The gate, number by number."""
    weights, bias = (value.tolist() for value in (gate.weight[0], gate.bias))
    logits = [
        sum(w * float(f.detach().mean()) for w, f in zip(weights, image, strict=True)) + bias[0] for image in bottleneck
    ]
    return [1 / (1 + np.exp(-each)) for each in logits]


@pytest.mark.parametrize("joint", [True, False])
def test_a_step_by_hand(datalist, joint):
    """Plain gradients of losses that are written down anew; the expert's output is that of before its own step."""
    hook = MixtureOfExperts(0.4, joint=joint)
    trainer = make_trainer(datalist, [hook], changes={**SGD, "gradient_clip": 1e9})
    rate, start = SGD["learning_rate"], start_of(trainer)
    first, twin = trainer.plan.build_network(), trainer.plan.build_network()
    with torch.no_grad():
        gate = trainer.companions["gate"].network
        gate.weight.copy_(torch.linspace(-0.5, 0.5, gate.in_features)[None])
        weight, bias = gate.weight.clone().requires_grad_(), gate.bias.clone().requires_grad_()
    kept = []
    trainer.plan.network.arguments.bottleneck(first).register_forward_hook(lambda m, i, o: kept.append(o))
    set_weights(trainer.network, start)
    trainer.network.train()
    hook.before_round(trainer, start, 0)
    set_weights(twin, {name: value + np.float32(0.02) for name, value in start.items()})
    trainer.companions["expert"].load(get_weights(twin))
    (batch,) = [next(trainer.batches(0, 0))]
    loss = hook.step(trainer, batch)
    targets = trainer.objective.targets(batch)
    private, shared = twin(batch["image"]), first(batch["image"])
    alone = trainer.loss(private, targets)
    grown = dict(zip(twin.state_dict(), torch.autograd.grad(alone, list(twin.parameters())), strict=True))
    for name, value in trainer.companions["expert"].network.state_dict().items():
        torch.testing.assert_close(value, twin.state_dict()[name] - rate * grown[name])
    logit = (weight * kept[0].mean(dim=(2, 3, 4)).detach()).sum(dim=1) + bias
    share = torch.sigmoid(logit)[:, None, None, None, None]
    np.testing.assert_allclose(share.flatten().tolist(), slow_share(gate_at(weight, bias), kept[0]), rtol=1e-5)
    mixed = share * shared + (1 - share) * private.detach()
    own = trainer.loss(mixed, targets) if joint else trainer.loss(shared, targets)
    assert loss == pytest.approx(float(own.detach()), rel=1e-6)
    changes = torch.autograd.grad(own, list(first.parameters()), retain_graph=True)
    for (name, before), change in zip(first.state_dict().items(), changes, strict=True):
        torch.testing.assert_close(trainer.network.state_dict()[name], before - rate * change)
    to_gate = torch.autograd.grad(trainer.loss(mixed, targets), [weight, bias])
    for found, before, change in zip((gate.weight, gate.bias), (weight, bias), to_gate, strict=True):
        torch.testing.assert_close(found.detach(), (before - rate * change).detach())
        assert change.abs().max() > 0
    assert hook.report(trainer)["global_share"] == pytest.approx(float(share.mean()), rel=1e-5)


def gate_at(weight, bias):
    gate = torch.nn.Linear(weight.shape[1], 1)
    gate.load_state_dict({"weight": weight, "bias": bias})
    return gate


def test_the_report_tells_share_and_score(datalist):
    trainer, _ = trained(datalist, MixtureOfExperts(0.3, adaptive=False))
    told = trainer.hooks[0].report(trainer)
    assert told["global_share"] == pytest.approx(0.3)
    assert 0 <= told["personal_score"] <= 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"share": -0.1}, "share"),
        ({"share": 1.1}, "share"),
        ({"share": 1.0}, "share"),
        ({"share": 0}, "share"),
        ({"adaptive": 1}, "adaptive"),
        ({"joint": "no"}, "joint"),
    ],
)
def test_wrong_arguments_are_refused(arguments, named):
    with pytest.raises(ConfigurationError, match=f"{named} is "):
        MixtureOfExperts(**arguments)

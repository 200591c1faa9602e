"""The moments at which a hook replaces what the trainer would do, and the networks that it keeps beside."""

import numpy as np
import pytest
import torch
from torch import nn

from fedseg.contract.plan import parse_plan
from fedseg.contract.round_settings import RoundSettings, round_steps
from fedseg.data.datalist import read_datalist
from fedseg.errors import AbortedError, ConfigurationError
from fedseg.site.state import SiteState
from fedseg.training.companions import Companion
from fedseg.training.hooks import TrainingHook, check_hooks
from fedseg.training.methods.fedprox import FedProx
from fedseg.training.methods.personal_model import PersonalModel
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
from tiny import PLAN, make_sites


@pytest.fixture(scope="module")
def datalist(tmp_path_factory):
    return read_datalist(make_sites(tmp_path_factory.mktemp("data"), {"a": (5, 1)}) / "a")


class Sharp(TrainingHook):
    """Sharpness-aware minimisation with the gradient of the batch: w + radius * g / |g|, and back."""

    def __init__(self, radius):
        self.radius = radius

    def step(self, training, batch):
        loss = training.compute_gradients(batch)
        moved = {p: p.detach().clone() for p in training.network.parameters()}
        norm = torch.stack([p.grad.norm() for p in moved]).norm()
        with torch.no_grad():
            for parameter in moved:
                parameter.add_(parameter.grad, alpha=float(self.radius / norm))
        training.compute_gradients(batch)
        with torch.no_grad():
            for parameter, value in moved.items():
                parameter.copy_(value)
        training.apply_gradients()
        return loss


class PlainStep(TrainingHook):
    """What the trainer would do by itself."""

    def step(self, training, batch):
        loss = training.compute_gradients(batch)
        training.apply_gradients()
        return loss


# --------------------------------------------------------------------------- step


@pytest.mark.parametrize("hooks", [[], [FedProx(1.0)]])
def test_a_step_made_of_the_trainers_two_calls_is_the_trainers_own(datalist, hooks):
    start = start_of(make_trainer(datalist))
    own = make_trainer(datalist, hooks).train_round(start, 0, 1)
    made = make_trainer(datalist, [*hooks, PlainStep()]).train_round(start, 0, 1)
    assert_same(made.weights, own.weights)
    assert made.train_loss == own.train_loss


def test_a_step_of_two_passes_is_that_of_the_formula(datalist):
    """One step of plain descent: w - rate * gradient at the shifted weights, worked out apart from the trainer."""
    changes = {**SGD, "batch_size": 5, "gradient_clip": 1e9, "augmentation": "none"}
    found = make_trainer(datalist, [Sharp(0.05)], changes=changes)
    start = start_of(found)
    weights = found.train_round(start, 0, 1).weights
    other = make_trainer(datalist, changes=changes)
    batch = next(other.batches(0, 0))

    def gradients():
        loss = other.loss(other.network(batch["image"]), batch["classes"])
        return torch.autograd.grad(loss, list(other.network.parameters()))

    first = gradients()
    norm = torch.cat([g.flatten() for g in first]).norm()
    with torch.no_grad():
        for parameter, gradient in zip(other.network.parameters(), first, strict=True):
            parameter.add_(0.05 * gradient / norm)
    for (name, _), gradient in zip(other.network.named_parameters(), gradients(), strict=True):
        np.testing.assert_allclose(weights[name], start[name] - 0.05 * gradient.numpy(), rtol=1e-3, atol=1e-6)


def test_a_step_is_seeded_and_the_clip_holds_for_it(datalist, tmp_path):
    sharp = check_seeded_and_restarted(datalist, lambda: Sharp(0.05), tmp_path)
    assert_differ(sharp, plain_rounds(datalist))
    trainer = make_trainer(datalist, [Sharp(0.05)], changes={**SGD, "gradient_clip": 0.1, "batch_size": 5})
    update = trainer.train_round(start_of(trainer), 0, 1).update
    assert np.linalg.norm(np.concatenate([v.ravel() for v in update.values()])) <= 0.05 * 0.1 * 1.001


@pytest.mark.parametrize(("moment", "kind"), [("step", PlainStep), ("order", None), ("personal_model", None)])
def test_two_hooks_that_replace_one_moment_are_refused_by_name(datalist, moment, kind):
    class Other(TrainingHook):
        pass

    setattr(Other, moment, lambda self, *arguments: None)
    first = kind() if kind else Other()
    with pytest.raises(ConfigurationError, match=rf"{type(first).__name__}.*Other.*one at most has a `{moment}`"):
        make_trainer(datalist, [first, FedProx(1.0), Other()])
    check_hooks([first, FedProx(1.0)], parse_plan(PLAN))


def test_what_is_no_hook_is_refused(datalist):
    with pytest.raises(ConfigurationError, match=r"executor\.hooks is 'dict'"):
        make_trainer(datalist, [{}])


# ------------------------------------------------------------------ batch and order


def test_a_batch_that_a_hook_gives_is_used_in_the_place_of_the_trainers(datalist):
    """Images of zeros and labels of background only: the same as training on such a batch written out."""

    class Blank(TrainingHook):
        def batch(self, training, batch):
            return {key: torch.zeros_like(value) for key, value in batch.items()}

    changes = {**SGD, "batch_size": 5, "gradient_clip": 1e9}
    trainer = make_trainer(datalist, [Blank()], changes=changes)
    start = start_of(trainer)
    found = trainer.train_round(start, 0, 1)
    other = make_trainer(datalist, changes=changes)
    images, classes = torch.zeros(5, 1, 16, 16, 16), torch.zeros(5, 1, 16, 16, 16, dtype=torch.uint8)
    loss = other.loss(other.network(images), classes)
    loss.backward()
    assert found.train_loss == pytest.approx(float(loss.detach()), rel=1e-5)
    for name, parameter in other.network.named_parameters():
        np.testing.assert_allclose(found.update[name], -0.05 * parameter.grad.numpy(), rtol=1e-3, atol=1e-6)


class Order(TrainingHook):
    def __init__(self, order):
        self.given = order

    def order(self, training, round_number, epoch):
        return self.given


def test_cases_come_in_the_order_of_a_hook(datalist):
    """Batches of one case: the patch of a case that comes alone is cut from that case."""
    changes = {"batch_size": 1, "augmentation": "none"}
    trainer = make_trainer(datalist, [Order([4, 4, 0, 1, 2])], changes=changes)
    images = [trainer.training_cases[index].image for index in range(5)]
    for index, batch in zip([4, 4, 0, 1, 2], trainer.batches(0, 0), strict=True):
        (patch,) = batch["image"]
        values = [set(image.flatten().tolist()) for image in images]
        assert [set(patch.flatten().tolist()) <= own for own in values] == [i == index for i in range(5)]
    assert_same(
        make_trainer(datalist, [Order(None)]).train_round(start_of(trainer), 0, 1).weights,
        make_trainer(datalist).train_round(start_of(trainer), 0, 1).weights,
    )


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [0, 1, 2, 3, 5], [0, 1, 2, 3, -1], []])
def test_an_order_that_is_not_one_of_the_cases_is_refused(datalist, order):
    trainer = make_trainer(datalist, [Order(order)])
    with pytest.raises(ConfigurationError, match=r"Order\.order is .* 5 indices of cases"):
        trainer.train_round(start_of(trainer), 0, 1)


# ----------------------------------------------------------------------- companions


class Average(PersonalModel):
    """An exponential mean of the site's own models: v = alpha v + (1 - alpha) w."""

    def train_personal(self, training):
        companion, own = training.companions["personal"], training.network.state_dict()
        mean = {n: 0.5 * v + 0.5 * own[n] for n, v in companion.network.state_dict().items()}
        companion.network.load_state_dict(mean)


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_personal_model_of_another_kind_is_one_method(datalist, tmp_path, on_disk):
    """The mean over three rounds, by its closed form: 1/8 start, 1/8, 1/4 and 1/2 of the models after each round."""
    state = SiteState(tmp_path, "run") if on_disk else None
    trainer = make_trainer(datalist, [Average()], state)
    weights, expected = start_of(trainer), []
    expected.append(weights)
    for number in range(3):
        expected.append(trainer.train_round(expected[-1], number, 3).weights)
    found = trainer.companions["personal"].weights()
    for name, value in found.items():
        mean = sum(share * own[name] for share, own in zip((1 / 8, 1 / 8, 1 / 4, 1 / 2), expected, strict=True))
        np.testing.assert_allclose(value, mean, rtol=1e-4, atol=1e-6, err_msg=name)
    assert set(trainer.hooks[0].report(trainer)) == {"personal_score"}


class Second(TrainingHook):
    """A second network that starts from the plan's seed and is trained in every round."""

    def companions(self, plan):
        return {"second": Companion(plan.build_network(), plan.training)}

    def after_round(self, training, global_weights, round_number):
        training.train_companion("second")


def second(trainer):
    return trainer.companions["second"].weights()


def test_a_companion_is_the_model_of_a_site_that_trains_alone(datalist, tmp_path):
    alone = make_trainer(datalist)
    weights = start_of(alone)
    for number in range(ROUNDS):
        weights = alone.train_round(weights, number, ROUNDS).weights
    living = make_trainer(datalist, [Second()])
    run_rounds(lambda: living)
    assert_same(second(living), weights)
    trainers = []

    def reborn():
        trainers.append(make_trainer(datalist, [Second()], SiteState(tmp_path, "run")))
        return trainers[-1]

    run_rounds(reborn)
    assert_same(second(trainers[-1]), weights)


def test_a_first_round_that_is_repeated_starts_its_companion_afresh(datalist, tmp_path):
    """In the same process: after an abort in the middle, and after a round whose result was lost."""

    class Stop(TrainingHook):
        on = True

        def after_round(self, training, global_weights, round_number):
            if self.on:
                raise AbortedError("now")

    stop, start = Stop(), start_of(make_trainer(datalist))
    trainer = make_trainer(datalist, [Second(), stop], SiteState(tmp_path, "run"))
    with pytest.raises(AbortedError):
        trainer.train_round(start, 0, 2)
    stop.on = False
    trainer.train_round(start, 0, 2)
    first = second(trainer)
    trainer.train_round(start, 0, 2)
    assert_same(second(trainer), first)
    other = make_trainer(datalist, [Second()])
    other.train_round(start, 0, 2)
    assert_same(second(other), first)


def test_names_of_companions_are_their_own(datalist):
    with pytest.raises(ConfigurationError, match="Second: companion is 'second'"):
        make_trainer(datalist, [Second(), Second()])


def test_a_companion_without_optimizer_is_not_trained(datalist):
    class Frozen(TrainingHook):
        def companions(self, plan):
            return {"frozen": Companion(nn.Linear(2, 1).requires_grad_(False))}

    trainer = make_trainer(datalist, [Frozen()])
    with pytest.raises(ValueError, match="frozen has no optimizer"):
        trainer.train_companion("frozen")


# ------------------------------------------------------------------- round settings


def test_settings_of_a_round_hold_for_that_round(datalist):
    """Two epochs in a plan of one, and half the rate: the same as a plan that says so; the next round is the plan's."""
    given = RoundSettings(local_epochs=2, learning_rate=0.025)
    trainer = make_trainer(datalist, changes=SGD)
    start = start_of(trainer)
    found = trainer.train_round(start, 0, 2, settings=given)
    planned = make_trainer(datalist, changes={**SGD, "local_epochs": 2, "learning_rate": 0.025})
    assert_same(found.weights, planned.train_round(start, 0, 2).weights)
    assert found.num_steps == round_steps(planned.settings, 5) == 6
    again = trainer.train_round(start, 1, 2)
    assert_same(again.weights, make_trainer(datalist, changes=SGD).train_round(start, 1, 2).weights)
    assert again.num_steps == 3


def test_a_shortened_epoch_goes_over_the_first_cases_of_the_order_and_the_next_round_over_all(datalist):
    rates, trainer = [], make_trainer(datalist, changes={**SGD, "schedule": "polynomial"})

    class Watch(TrainingHook):
        def after_step(self, trainer):
            rates.append(trainer.optimizer.param_groups[0]["lr"])

    trainer.hooks = (Watch(),)
    start = start_of(trainer)
    whole = list(trainer.batches(0, 0))
    found = trainer.train_round(start, 0, 1, settings=RoundSettings(local_epochs=2, epoch_cases=3))
    assert found.num_steps == len(rates) == 4, "two epochs of three cases in batches of two"
    assert found.num_samples == 5, "the site weighs what it has"
    assert trainer.counted_steps() == 4, "what is reported"
    # Progress 0, 1/4, 1/2, 3/4 of the job: a shortened round runs over the whole of its part of the schedule.
    peak = trainer.settings.learning_rate
    assert rates == pytest.approx([peak * (1 - step / 4) ** 0.9 for step in range(4)])
    shortened = list(trainer.batches(0, 0))
    assert [len(batch["image"]) for batch in shortened] == [2, 1]
    torch.testing.assert_close(shortened[0]["image"], whole[0]["image"], rtol=0, atol=0)
    torch.testing.assert_close(shortened[1]["image"][0], whole[1]["image"][0], rtol=0, atol=0)
    seen = [tuple(trainer._order(number, 0)) for number in range(60)]
    assert all(len(set(order)) == 3 for order in seen)
    # Each of five cases is in 3/5 of the epochs: 36 of 60, standard deviation 3.8.
    assert all(20 < sum(case in order for order in seen) < 52 for case in range(5))
    trainer.train_round(start, 0, 1)
    assert [len(batch["image"]) for batch in trainer.batches(0, 0)] == [2, 2, 1]

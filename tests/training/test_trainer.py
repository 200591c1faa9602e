import math

import numpy as np
import pytest
import torch

from fedseg.contract.plan import parse_plan
from fedseg.contract.round_settings import RoundSettings
from fedseg.contract.settings import parse_training
from fedseg.data.datalist import read_datalist
from fedseg.errors import AbortedError, ConfigurationError, RefusalError
from fedseg.networks.weights import apply_difference, get_weights
from fedseg.site.state import SiteState
from fedseg.tasks.registry import get_task, resolve_task
from fedseg.tasks.segmentation.losses import SegmentationLoss
from fedseg.training.hooks import TrainingHook
from fedseg.training.optimisation import learning_rate
from fedseg.training.trainer import SiteTrainer, TrainerSetup
from tiny import PLAN, TASK, make_sites


@pytest.fixture(scope="module")
def datalist(tmp_path_factory):
    return read_datalist(make_sites(tmp_path_factory.mktemp("data"), {"a": (4, 2)}) / "a")


def trainer(datalist, state=None, changes=None, **options):
    plan = parse_plan({**PLAN, "training": {**PLAN["training"], **(changes or {})}})
    return SiteTrainer(plan, "a", datalist, TrainerSetup(state, **options))


def run_rounds(make, weights, rounds, total):
    """Train the given rounds, each with a trainer from ``make``."""
    for number in rounds:
        weights = apply_difference(weights, make().train_round(weights, number, total).update)
    return weights


def assert_equal(a, b):
    assert set(a) == set(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_a_site_learns(datalist):
    site = trainer(datalist, changes={"local_epochs": 10})
    weights = get_weights(site.network)
    before = np.mean([c.score.dice["whole"] for c in site.validate(weights)])
    weights = run_rounds(lambda: site, weights, range(2), 2)
    after = np.mean([c.score.dice["whole"] for c in site.validate(weights)])
    assert after > max(0.6, before + 0.2)


def test_a_client_killed_after_every_round_gives_the_same_bits(datalist, tmp_path):
    start = get_weights(trainer(datalist).network)
    living = trainer(datalist, SiteState(tmp_path / "living", "run"))
    uninterrupted = run_rounds(lambda: living, start, range(3), 3)
    reborn = run_rounds(lambda: trainer(datalist, SiteState(tmp_path / "reborn", "run")), start, range(3), 3)
    assert_equal(uninterrupted, reborn)


def test_a_round_asked_for_twice_gives_the_same_bits(datalist, tmp_path):
    site = trainer(datalist, SiteState(tmp_path, "run"))
    weights = run_rounds(lambda: site, get_weights(site.network), range(2), 3)
    first = site.train_round(weights, 2, 3).update
    assert_equal(first, site.train_round(weights, 2, 3).update)


def test_the_optimizer_is_kept_between_rounds(datalist, tmp_path):
    start = get_weights(trainer(datalist).network)
    kept = run_rounds(lambda: trainer(datalist, SiteState(tmp_path / "1", "run")), start, range(2), 2)
    fresh = run_rounds(
        lambda: trainer(datalist, SiteState(tmp_path / "2", "run"), {"reset_optimizer": True}), start, range(2), 2
    )
    assert any(not np.array_equal(kept[n], fresh[n]) for n in kept)


def test_the_server_can_have_the_optimizer_reset_in_rounds_that_ask_only_some_sites(datalist, tmp_path):
    start = get_weights(trainer(datalist).network)
    runs = []
    for name, changes, settings in (
        ("set", {"reset_optimizer": True}, RoundSettings()),
        ("asked", {}, RoundSettings(reset_optimizer=True)),
        ("kept", {}, RoundSettings()),
        ("held", {"reset_optimizer": False}, RoundSettings()),
    ):
        weights, state = start, SiteState(tmp_path / name, "run")
        for number in range(2):
            result = trainer(datalist, state, changes).train_round(weights, number, 2, settings=settings)
            weights = apply_difference(weights, result.update)
        runs.append(weights)
    assert_equal(runs[0], runs[1])
    assert_equal(runs[2], runs[3])
    assert any(not np.array_equal(runs[1][name], runs[2][name]) for name in start)


def test_one_step_equals_a_step_written_out(datalist):
    """One SGD step without momentum's memory: w - lr * (1 + momentum) * clipped gradient (Nesterov, first step)."""
    changes = {"optimizer": "sgd", "schedule": "constant", "batch_size": 4, "weight_decay": 0.0, "gradient_clip": 1e9}
    site = trainer(datalist, changes={**changes, "augmentation": "none", "learning_rate": 0.01})
    start = get_weights(site.network)
    batch = next(site.batches(0, 0))
    update = site.train_round(start, 0, 1).update
    other = trainer(datalist, changes={**changes, "augmentation": "none"})
    loss = other.loss(other.network(batch["image"]), batch["classes"])
    loss.backward()
    for name, parameter in other.network.named_parameters():
        np.testing.assert_allclose(update[name], -0.01 * 1.9 * parameter.grad.numpy(), rtol=1e-3, atol=1e-6)


def test_an_abort_ends_the_work_within_one_step_and_keeps_the_state(datalist, tmp_path):
    steps = []

    class Count(TrainingHook):
        def after_step(self, trainer):
            steps.append(1)

    state = SiteState(tmp_path, "run")
    site = trainer(datalist, state, hooks=[Count()], aborted=lambda: len(steps) >= 1)
    with pytest.raises(AbortedError):
        site.train_round(get_weights(site.network), 0, 1)
    assert len(steps) == 1
    assert state.load(10) is None


def test_a_loss_that_is_not_finite_is_refused(datalist):
    class Spoil(TrainingHook):
        def loss(self, trainer, images, logits, classes):
            return torch.tensor(math.nan)

    site = trainer(datalist, hooks=[Spoil()])
    with pytest.raises(RefusalError, match="not finite") as error:
        site.train_round(get_weights(site.network), 0, 1)
    assert error.value.reason == "loss"


def test_a_gradient_that_is_not_finite_spoils_no_later_round(datalist, tmp_path):
    class Spoil(TrainingHook):
        on = True

        def after_backward(self, trainer):
            if self.on:
                next(trainer.network.parameters()).grad.fill_(math.inf)

    hook = Spoil()
    site = trainer(datalist, SiteState(tmp_path, "run"), hooks=[hook])
    weights = get_weights(site.network)
    with pytest.raises(RefusalError, match="gradient is not finite"):
        site.train_round(weights, 0, 2)
    hook.on = False
    assert all(np.isfinite(value).all() for value in site.train_round(weights, 1, 2).update.values())


def test_hooks_are_called_at_their_moments(datalist):
    calls = []

    class Record(TrainingHook):
        def before_round(self, trainer, weights, number):
            calls.append(f"before_round {number}")

        def batch(self, trainer, batch):
            calls.append("batch")
            return batch

        def step(self, trainer, batch):
            calls.append("step")

        def loss(self, trainer, images, logits, classes):
            calls.append("loss")

        def after_backward(self, trainer):
            calls.append("after_backward")

        def after_step(self, trainer):
            calls.append("after_step")

        def after_round(self, trainer, weights, number):
            calls.append(f"after_round {number}")

    site = trainer(datalist, hooks=[Record()], changes={"batch_size": 4})
    site.train_round(get_weights(site.network), 5, 9)
    step = ["batch", "step", "loss", "after_backward", "after_step"]
    assert calls == ["before_round 5", *step, "after_round 5"]


def test_state_keeps_two_rounds_and_refuses_strange_run_ids(tmp_path):
    state = SiteState(tmp_path, "run")
    for number in range(4):
        state.save(number, {"number": number})
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["round-00002.pt", "round-00003.pt"]
    assert state.load(3) == {"number": 2}
    assert state.load(0) is None
    with pytest.raises(RefusalError, match="before round 3 is gone"):
        state.load(2)
    for wrong in ("", "..", "../other", "a/b"):
        with pytest.raises(ConfigurationError, match="run_id"):
            SiteState(tmp_path, wrong)


@pytest.mark.parametrize(
    ("schedule", "progress", "expected"),
    [
        ("constant", 0.7, 1.0),
        ("cosine", 0.0, 1.0),
        ("cosine", 0.5, 0.5),
        ("cosine", 1.0, 0.0),
        ("polynomial", 0.5, 0.5**0.9),
        ("one_cycle", 0.0, 0.04),
        ("one_cycle", 0.1, 1.0),
        ("one_cycle", 0.05, 0.52),
        ("one_cycle", 0.55, 0.5),
        ("one_cycle", 1.0, 0.0),
    ],
)
def test_learning_rates(schedule, progress, expected):
    settings = parse_training({"schedule": schedule, "learning_rate": 1.0, "warmup": 0.1})
    assert learning_rate(settings, progress) == pytest.approx(expected)


@pytest.mark.parametrize(
    "change",
    [
        {"local_epochs": 0},
        {"batch_size": 1.5},
        {"learning_rate": -1},
        {"learning_rate": float("nan")},
        {"optimizer": "lamb"},
        {"warmup": 1},
        {"reset_optimizer": "yes"},
        {"threads": True},
        {"epochs": 3},
    ],
)
def test_wrong_settings_are_refused_by_name(change):
    with pytest.raises(ConfigurationError, match=f"training.{next(iter(change))}"):
        parse_training(change)


def test_loss_of_overlapping_regions_by_hand():
    """Two voxels, one region chain: Dice loss and binary cross-entropy worked out on paper."""
    task = resolve_task(TASK)
    logits = torch.zeros(1, 2, 1, 1, 2)  # probability 1/2 everywhere
    classes = torch.tensor([1, 0]).reshape(1, 1, 1, 1, 2)
    # each region: intersection 0.5, sums 1 + 1: Dice 2 * 0.5 / 2 = 0.5, so the loss is 0.5; entropy ln 2
    assert float(SegmentationLoss(task)(logits, classes)) == pytest.approx(0.5 + math.log(2), abs=1e-4)


def test_loss_of_exclusive_regions_by_hand():
    task = get_task("hippocampus")
    logits = torch.zeros(1, 3, 1, 1, 3)  # probability 1/3 each
    classes = torch.tensor([0, 1, 2]).reshape(1, 1, 1, 1, 3)
    # each region: intersection 1/3, sums 1 + 1: Dice 2/3 / 2 = 1/3, loss 2/3; entropy ln 3
    assert float(SegmentationLoss(task)(logits, classes)) == pytest.approx(2 / 3 + math.log(3), abs=1e-4)

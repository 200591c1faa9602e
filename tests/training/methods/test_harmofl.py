import numpy as np
import pytest
import torch
from torch import nn

from fedseg.contract.plan import parse_plan
from fedseg.data.datalist import read_datalist
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.networks.parts.amplitude import SPECTRUM
from fedseg.networks.weights import get_weights
from fedseg.training.methods.harmofl import HarmoFL
from hooked import SGD, assert_same, check_seeded_and_restarted, make_trainer
from tiny import PLAN, make_sites

NETWORK = {**PLAN["network"], "parts": [{"name": "amplitude", "mode": "window", "window": 2}]}


@pytest.fixture(scope="module")
def datalist(tmp_path_factory):
    return read_datalist(make_sites(tmp_path_factory.mktemp("data"), {"a": (4, 1)}) / "a")


class Steps:
    """The two calls that a step consists of, around a small network in double precision, without clipping."""

    def __init__(self, rate=0.1):
        generator = torch.Generator().manual_seed(0)
        self.network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
        for parameter in self.network.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        self.images = torch.randn(8, 3, generator=generator, dtype=torch.float64)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=rate)
        self.seen = []

    def loss(self):
        return self.network(self.images).pow(2).mean()

    def compute_gradients(self, batch):
        self.seen.append(self.weights())
        self.optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        return loss.item()

    def apply_gradients(self):
        self.optimizer.step()

    def weights(self):
        return nn.utils.parameters_to_vector(self.network.parameters()).detach().clone()

    def set(self, weights):
        nn.utils.vector_to_parameters(weights.clone(), self.network.parameters())

    def slopes(self, weights, step=1e-6):
        """The gradient of the loss at given weights, by differences."""
        found = torch.zeros_like(weights)
        for index in range(len(weights)):
            losses = []
            for sign in (1, -1):
                moved = weights.clone()
                moved[index] += sign * step
                self.set(moved)
                losses.append(self.loss().item())
            found[index] = (losses[0] - losses[1]) / (2 * step)
        return found


def test_the_step_uses_the_gradient_at_perturbed_weights():
    """W - rate * grad(W + alpha * grad(W) / ||grad(W)||), both gradients by differences of the loss."""
    steps, other = Steps(rate=0.1), Steps()
    start = steps.weights()
    loss = HarmoFL(alpha=0.3).step(steps, None)
    gradient = other.slopes(start)
    perturbed = other.slopes(start + 0.3 * gradient / gradient.norm())
    assert torch.allclose(steps.weights(), start - 0.1 * perturbed, atol=1e-7)
    assert not torch.allclose(perturbed, gradient, atol=1e-3)
    other.set(start)
    assert loss == other.loss().item(), "the loss that is told is that of the weights, not of the perturbed ones"


def test_the_perturbation_has_the_length_alpha():
    steps = Steps()
    HarmoFL(alpha=0.3).step(steps, None)
    first, second = steps.seen
    assert float((second - first).norm()) == pytest.approx(0.3)


def test_the_weights_are_exactly_restored_before_the_step():
    steps = Steps(rate=0.0)
    start = steps.weights()
    HarmoFL(alpha=0.3).step(steps, None)
    assert torch.equal(steps.weights(), start)


def test_the_weights_are_restored_where_the_perturbed_loss_is_refused():
    steps, start = Steps(), Steps().weights()
    compute, calls = steps.compute_gradients, []

    def refuse_second(batch):
        calls.append(batch)
        if len(calls) == 2:
            raise RefusalError("loss", "The loss is not finite.")
        return compute(batch)

    steps.compute_gradients = refuse_second
    with pytest.raises(RefusalError):
        HarmoFL(alpha=0.3).step(steps, None)
    assert torch.equal(steps.weights(), start)


def test_a_gradient_of_zero_has_no_direction_and_is_stepped_as_it_is():
    steps = Steps()
    steps.set(torch.zeros_like(steps.weights()))
    HarmoFL(alpha=0.3).step(steps, None)
    assert torch.isfinite(steps.weights()).all()
    assert len(steps.seen) == 1


def harmonised(trainer, value=0.5):
    weights = get_weights(trainer.plan.build_network())
    return {**weights, SPECTRUM: np.full_like(weights[SPECTRUM], value)}


def test_alpha_zero_is_the_plain_step_to_the_last_bit(datalist):
    def update(hooks):
        trainer = make_trainer(datalist, hooks, network=NETWORK)
        return trainer.train_round(harmonised(trainer), 0, 3).update

    plain = update([])
    assert_same(plain, update([HarmoFL(alpha=0)]))
    assert any(not np.array_equal(plain[name], value) for name, value in update([HarmoFL()]).items())


def test_alpha_near_zero_is_near_the_plain_step(datalist):
    def update(hooks):
        trainer = make_trainer(datalist, hooks, changes=SGD, network=NETWORK)
        return trainer.train_round(harmonised(trainer), 0, 3).update

    plain, near, far = (update(hooks) for hooks in ([], [HarmoFL(1e-4)], [HarmoFL(0.5)]))
    distance = [sum(float(np.square(other[n] - plain[n]).sum()) for n in plain) for other in (near, far)]
    assert distance[0] < 1e-4 * distance[1]


def test_no_site_changes_the_amplitudes_or_sends_them(datalist):
    trainer = make_trainer(datalist, [HarmoFL()], network=NETWORK)
    weights = harmonised(trainer)
    result = trainer.train_round(weights, 0, 3)
    assert SPECTRUM not in result.update
    np.testing.assert_array_equal(result.weights[SPECTRUM], weights[SPECTRUM])


def test_the_amplitudes_of_a_site_are_the_mean_over_patches_of_an_image_and_then_over_images(datalist):
    """A slow loop with numpy's transform: patches of 16 at 0 and at the end of each axis of 20 voxels."""
    trainer = make_trainer(datalist, [HarmoFL()], network=NETWORK)
    found = trainer.arrays_before_rounds()
    kept, of_images = np.r_[0:3, 14:16], []
    for index in range(len(trainer.training_cases)):
        image = trainer.training_cases[index].image.numpy()
        assert image.shape == (1, 20, 20, 20)
        corners = [(x, y, z) for x in (0, 4) for y in (0, 4) for z in (0, 4)]
        patches = [image[0, x : x + 16, y : y + 16, z : z + 16] for x, y, z in corners]
        amplitudes = [np.abs(np.fft.fftn(patch.astype(np.float64))) / 16**3 for patch in patches]
        of_images.append(np.mean(amplitudes, axis=0)[np.ix_(kept, kept, kept)])
    assert set(found) == {"amplitude/spectrum"}
    assert found["amplitude/spectrum"].dtype == np.float32
    np.testing.assert_allclose(found["amplitude/spectrum"][0, 0], np.mean(of_images, axis=0), rtol=1e-4, atol=1e-7)


def test_rounds_are_seeded_and_survive_a_restart(datalist, tmp_path, monkeypatch):
    monkeypatch.setattr("hooked.PLAN", {**PLAN, "network": NETWORK})
    monkeypatch.setattr("hooked.start_of", harmonised)
    check_seeded_and_restarted(datalist, HarmoFL, tmp_path)


def test_a_model_without_amplitudes_is_refused(datalist):
    trainer = make_trainer(datalist, [HarmoFL()], network=NETWORK)
    with pytest.raises(RefusalError, match="no amplitudes: its job lacks MeanAmplitude") as error:
        trainer.train_round(get_weights(trainer.plan.build_network()), 0, 3)
    assert error.value.reason == "weights"


def test_a_plan_without_the_part_is_refused(datalist):
    with pytest.raises(ConfigurationError, match=r'network\.parts is \[\].*"amplitude".*for HarmoFL'):
        make_trainer(datalist, [HarmoFL()])


@pytest.mark.parametrize("alpha", [-1, "0.05", True, float("nan")])
def test_an_alpha_that_is_no_length_is_refused(alpha):
    with pytest.raises(ConfigurationError, match="alpha"):
        HarmoFL(alpha=alpha)


def test_a_task_whose_cases_may_lack_channels_is_refused():
    task = {**PLAN["task"], "channels": ["a", "b"], "optional_channels": ["a"]}
    with pytest.raises(ConfigurationError, match=r"network.parts\[0\] is 'amplitude', but must be left out of a task"):
        parse_plan({**PLAN, "task": task, "network": NETWORK})

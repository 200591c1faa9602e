import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save

from fedseg.aggregators.base import AggregationError
from fedseg.aggregators.server_optimizers import FedAdagrad, FedAdam, FedAvgM, FedYogi
from fedseg.errors import ConfigurationError

EVERY = [FedAvgM, FedAdam, FedYogi, FedAdagrad]
SHAPES = {"conv.weight": (3, 2, 2), "conv.bias": (3,), "scale": ()}


def updates(count, seed=0, dtype=np.float64):
    generator = np.random.default_rng(seed)
    return [{n: np.asarray(generator.normal(size=s) * 0.1, dtype) for n, s in SHAPES.items()} for _ in range(count)]


def moved_by_torch(make, rounds):
    """What an optimizer of torch adds to zeros in total when the gradient is the negative update."""
    parameters = {n: torch.nn.Parameter(torch.zeros(s, dtype=torch.float64)) for n, s in SHAPES.items()}
    optimizer = make(parameters.values())
    for update in rounds:
        for name, parameter in parameters.items():
            parameter.grad = -torch.from_numpy(update[name])
        optimizer.step()
    return {name: parameter.detach().numpy() for name, parameter in parameters.items()}


@pytest.mark.parametrize(
    ("ours", "make"),
    [
        (FedAvgM(1.0), lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9)),
        (FedAvgM(momentum=0.8), lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.8)),
        (FedAvgM(0.3, 0.5), lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.5)),
        (FedAdam(), lambda p: torch.optim.Adam(p, lr=0.01)),
        (FedAdam(0.1, 0.8, 0.95, 1e-3), lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.8, 0.95), eps=1e-3)),
        (FedAdagrad(), lambda p: torch.optim.Adagrad(p, lr=0.03, eps=1e-8)),
        (
            FedAdagrad(0.1, tau=1e-3, initial=0.25),
            lambda p: torch.optim.Adagrad(p, lr=0.1, eps=1e-3, initial_accumulator_value=0.25),
        ),
    ],
)
def test_five_rounds_are_those_of_torch(ours, make):
    rounds = updates(5)
    total = {name: sum(moved) for name, moved in _columns(ours.step(update) for update in rounds).items()}
    expected = moved_by_torch(make, rounds)
    assert set(total) == set(expected)
    for name in expected:
        np.testing.assert_allclose(total[name], expected[name], rtol=1e-6)


def _columns(steps):
    steps = list(steps)
    return {name: [step[name] for step in steps] for name in steps[0]}


def test_yogi_by_hand():
    # beta1 0.5, beta2 0.75, rate 1, tau 1, no correction, v from 0.25; updates 1 and then 0.1.
    # v: 1 > 0.25, so 0.25 + 0.25 * 1 = 0.5; then 0.01 < 0.5, so 0.5 - 0.25 * 0.01 = 0.4975
    # m: 0.5, then 0.25 + 0.05 = 0.3
    yogi = FedYogi(1.0, 0.5, 0.75, 1.0, bias_correction=False, initial=0.25)
    first, second = (yogi.step({"w": np.array([u])})["w"].item() for u in (1.0, 0.1))
    assert first == pytest.approx(0.5 / (math.sqrt(0.5) + 1), rel=1e-12)
    assert second == pytest.approx(0.3 / (math.sqrt(0.4975) + 1), rel=1e-12)


def test_adam_of_the_paper_by_hand():
    # Without correction, v from tau^2 = 0.01: v = 0.5 * 0.01 + 0.5 * 4 = 2.005, m = 0.1 * 2.
    adam = FedAdam(0.5, 0.9, 0.5, 0.1, bias_correction=False, initial=0.01)
    assert adam.step({"w": np.array([2.0])})["w"].item() == pytest.approx(0.5 * 0.2 / (math.sqrt(2.005) + 0.1))


def test_adagrad_with_momentum_by_hand():
    # m: 0.5, then 0.25 + 1 = 1.25; v: 1, then 5.
    adagrad = FedAdagrad(1.0, beta1=0.5, tau=1.0)
    first, second = (adagrad.step({"w": np.array([u])})["w"].item() for u in (1.0, 2.0))
    assert (first, second) == pytest.approx((0.25, 1.25 / (math.sqrt(5) + 1)))


def test_yogi_is_adam_in_the_first_round():
    (update,) = updates(1)
    adam, yogi = FedAdam().step(update), FedYogi().step(update)
    for name in update:
        np.testing.assert_allclose(yogi[name], adam[name], rtol=1e-12)


def test_without_momentum_and_with_rate_one_updates_pass_as_they_are():
    optimizer = FedAvgM(learning_rate=1.0, momentum=0.0)
    for update in updates(3, dtype=np.float32):
        moved = optimizer.step(update)
        for name in update:
            np.testing.assert_array_equal(moved[name], update[name])


@given(st.floats(-1e3, 1e3).filter(lambda u: abs(u) > 1e-3), st.integers(1, 20))
def test_adam_moves_by_its_rate_along_a_constant_update(update, rounds):
    optimizer = FedAdam(learning_rate=0.01)
    for _ in range(rounds):
        moved = optimizer.step({"w": np.array([update])})["w"].item()
    assert moved == pytest.approx(math.copysign(0.01, update), rel=1e-4)


@pytest.mark.parametrize("kind", EVERY)
def test_an_update_of_zeros_moves_nothing_at_first(kind):
    assert not kind().step({"w": np.zeros(3)})["w"].any()


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_shapes_and_types_are_kept(kind, dtype):
    optimizer = kind()
    for update in updates(2, dtype=dtype):
        moved = optimizer.step(update)
        assert all(isinstance(array, np.ndarray) for array in (*moved.values(), *optimizer.state().values()))
        assert {n: (a.shape, a.dtype) for n, a in moved.items()} == {n: (s, np.dtype(dtype)) for n, s in SHAPES.items()}


@pytest.mark.parametrize("kind", EVERY)
def test_a_stopped_run_goes_on_to_the_last_bit(kind):
    rounds = updates(6, dtype=np.float32)
    through, first, second = kind(), kind(), kind()
    for update in rounds[:3]:
        through.step(update)
        first.step(update)
    second.restore(load(save(first.state())))
    for update in rounds[3:]:
        expected, got = through.step(update), second.step(update)
        for name in update:
            np.testing.assert_array_equal(got[name], expected[name])


def test_steps_are_counted_as_whole_numbers_per_array():
    optimizer = FedAdam()
    optimizer.step({"a": np.ones(2), "b": np.ones(1)})
    optimizer.step({"a": np.ones(2)})
    state = optimizer.state()
    assert set(state) == {f"{kind}/{name}" for kind in ("steps", "first", "second") for name in "ab"}
    assert [(state[f"steps/{n}"].shape, state[f"steps/{n}"].dtype, int(state[f"steps/{n}"])) for n in "ab"] == [
        ((), np.int64, 2),
        ((), np.int64, 1),
    ]


@pytest.mark.parametrize("kind", EVERY)
def test_an_array_that_is_missing_keeps_its_moments(kind):
    rounds = updates(2)
    through, with_gap = kind(), kind()
    through.step(rounds[0])
    with_gap.step(rounds[0])
    partial = with_gap.step({"conv.bias": np.ones(3)})
    assert list(partial) == ["conv.bias"]
    expected, got = through.step(rounds[1]), with_gap.step(rounds[1])
    for name in ("conv.weight", "scale"):
        np.testing.assert_array_equal(got[name], expected[name])
    assert not np.array_equal(got["conv.bias"], expected["conv.bias"])


@pytest.mark.parametrize("kind", EVERY)
def test_running_statistics_are_added_as_they_are(kind):
    update = {"norm.running_mean": np.array([1.0, 2.0]), "norm.running_var": np.array([3.0]), "norm.weight": np.ones(2)}
    optimizer = kind()
    for _ in range(3):
        moved = optimizer.step(update)
        np.testing.assert_array_equal(moved["norm.running_mean"], [1.0, 2.0])
        np.testing.assert_array_equal(moved["norm.running_var"], [3.0])
    assert all(name.endswith("/norm.weight") for name in optimizer.state())


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused_and_leaves_the_moments_alone(kind, value):
    optimizer, untouched = kind(), kind()
    good, later = updates(2)
    optimizer.step(good)
    untouched.step(good)
    with pytest.raises(AggregationError, match="scale is not finite, or too large"):
        optimizer.step({**later, "scale": np.array(value)})
    expected, got = untouched.step(later), optimizer.step(later)
    for name in later:
        np.testing.assert_array_equal(got[name], expected[name])


def test_a_square_beyond_float32_is_refused_instead_of_freezing_the_array():
    with pytest.raises(AggregationError, match="too large for FedAdam"):
        FedAdam().step({"w": np.array([1e25], np.float32)})


def test_the_update_is_left_as_it_was_and_moments_do_not_follow_it():
    update, optimizer = {"w": np.array([1.0])}, FedAvgM(1.0, momentum=0.5)
    optimizer.step(update)
    assert update["w"].tolist() == [1.0]
    update["w"][:] = 100.0
    assert optimizer.step({"w": np.array([1.0])})["w"].tolist() == [1.5]


def test_the_state_of_another_optimizer_is_refused():
    adam = FedAdam()
    adam.step({"w": np.ones(1)})
    with pytest.raises(AggregationError, match="which FedAvgM does not use"):
        FedAvgM().restore(adam.state())


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (FedAvgM, {"learning_rate": 0}, "learning_rate is 0, but must be a number above 0"),
        (FedAvgM, {"momentum": 1.0}, "momentum is 1.0, but must be a number from 0 to below 1"),
        (FedAdam, {"learning_rate": float("inf")}, "learning_rate is inf"),
        (FedAdam, {"beta1": -0.1}, "beta1 is -0.1, but must be a number from 0 to below 1"),
        (FedAdam, {"beta2": 1}, "beta2 is 1, but must be a number from 0 to below 1"),
        (FedAdam, {"tau": 0}, "tau is 0, but must be a number above 0"),
        (FedAdam, {"bias_correction": 1}, "bias_correction is 1, but must be true or false"),
        (FedAdam, {"initial": 0.1}, "initial is 0.1, but must be 0 with bias_correction"),
        (FedYogi, {"initial": -1, "bias_correction": False}, "initial is -1, but must be a number from 0 up"),
        (FedAdagrad, {"beta1": True}, "beta1 is True"),
    ],
)
def test_wrong_arguments_are_refused(kind, arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        kind(**arguments)


def test_descriptions_name_every_argument():
    assert FedAvgM().describe() == {"name": "FedAvgM", "learning_rate": pytest.approx(0.1), "momentum": 0.9}
    common = {"beta1": 0.9, "tau": 1e-8, "initial": 0.0, "beta2": 0.999, "bias_correction": True}
    assert FedAdam().describe() == {"name": "FedAdam", "learning_rate": 1e-2, **common}
    assert FedYogi(0.01).describe() == {"name": "FedYogi", "learning_rate": 0.01, **common}
    assert FedAdagrad().describe() == {
        "name": "FedAdagrad",
        "learning_rate": 0.03,
        "beta1": 0.0,
        "tau": 1e-8,
        "initial": 0.0,
    }


def test_a_steady_update_moves_the_weights_by_itself_in_the_long_run_with_the_default_rate():
    for momentum in (0.0, 0.5, 0.9):
        optimizer = FedAvgM(momentum=momentum)
        moves = [optimizer.step({"w": np.array([2.0])})["w"].item() for _ in range(200)]
        assert moves[-1] == pytest.approx(2.0)
        assert moves == sorted(moves)
        assert moves[0] == pytest.approx(2.0 * (1 - momentum))


@pytest.mark.parametrize("decay", [0.3, 0.9])
def test_with_its_own_rate_momentum_is_the_moving_average_of_the_model(decay):
    """e <- decay e + (1 - decay) w, where w goes the way of all updates, and e is what every round starts from."""
    rounds = updates(7)
    for name in SHAPES:
        start = np.full(SHAPES[name], 0.5)
        fast, average, found = start.copy(), start.copy(), start.copy()
        optimizer = FedAvgM(momentum=decay)
        steps = [optimizer.step({name: update[name]})[name] for update in rounds]
        for update, step in zip(rounds, steps, strict=True):
            fast = fast + update[name]
            average = decay * average + (1 - decay) * fast
            found = found + step
            np.testing.assert_allclose(found, average, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_moving_average_with_decay_0_is_fedavg_to_the_bit(dtype):
    for update in updates(3, dtype=dtype):
        moved = FedAvgM(momentum=0.0).step(update)
        assert all(np.array_equal(moved[name], update[name]) and moved[name].dtype == dtype for name in update)

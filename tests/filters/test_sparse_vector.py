"""The sparse vector technique as a filter: what is sent, what every pass costs, and how it is restored."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nvflare.apis.fl_constant import ReturnCode

from fedseg.contract.plan import parse_plan
from fedseg.contract.shapes import update_shapes
from fedseg.contract.update import SPARSE, Update
from fedseg.errors import ConfigurationError
from fedseg.filters.restore import RestoreUpdate, restore
from fedseg.filters.sparse_vector import SparseVector
from fedseg.messages.updates import read_update
from fedseg.privacy.accounting.ledger import Ledger
from fedseg.privacy.accounting.ledger_errors import BudgetError
from fedseg.privacy.mechanisms.noise import SeededNoise
from fedseg.privacy.mechanisms.sparse import VALUES, read_layout, read_positions
from fedseg.privacy.mechanisms.sparse_vector import sparse_vector
from fedseg.privacy.mechanisms.top_k import largest_of, selected_count
from fedseg.site.policy import Budget, SitePolicy
from outgoing import REPORT, epsilon_after, flat, make_context, make_fl_context, make_message, make_update
from tiny import PLAN

ARGUMENTS = {
    "fraction": 0.1,
    "clip": 0.01,
    "threshold": 0.005,
    "epsilon_threshold": 0.5,
    "epsilon_query": 1.0,
    "epsilon_release": 2.0,
}
# Next to no noise; a site must allow the epsilon that says so.
QUIET = {"epsilon_threshold": 1e15, "epsilon_query": 1e15, "epsilon_release": 1e15}
LARGE = SitePolicy(allow_large_epsilon=True)
SHAPES = update_shapes(parse_plan(PLAN))
COUNT = sum(math.prod(shape) for shape in SHAPES.values())


def context_of(folder, policy=None, patients=("p1", "p2"), simulated=True, round_number=0):
    context = make_context(folder, round_number)
    profile = replace(context.profile, policy=policy, simulated=simulated)
    return replace(context, profile=profile, patients=patients)


def run(folder, update=None, policy=None, simulated=True, round_number=0, **changes):
    """The update that leaves through a filter with changed arguments."""
    context = context_of(folder, policy, simulated=simulated, round_number=round_number)
    return SparseVector(**{**ARGUMENTS, **changes}).run(make_update() if update is None else update, context)


def releases(folder):
    return Ledger(folder / "ledger", simulated=True).history()


def pure_epsilon(epsilon, delta):
    """What one release without a delta costs at a delta, exactly (randomised response is the worst case)."""
    return math.log(math.exp(epsilon) - delta * (1 + math.exp(epsilon)))


# --------------------------------------------------------------------- limits


def test_everything_without_noise_and_clip_is_the_update(tmp_path):
    sent = run(tmp_path, policy=LARGE, fraction=1.0, clip=10.0, threshold=0.0, **QUIET)
    update = make_update()
    for name, value in restore(sent, SHAPES).arrays.items():
        assert value.dtype == update.arrays[name].dtype
        np.testing.assert_allclose(value, update.arrays[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("fraction", [0.013, 0.1, 0.5])
def test_without_noise_it_is_the_exact_top(tmp_path, fraction):
    """With the threshold just below the smallest of them; the update is of two steps."""
    update = make_update()
    values = flat(update.arrays)
    count = selected_count(fraction, COUNT)
    above, below = np.sort(np.abs(values))[[-count, -count - 1]].astype(float)
    sent = run(tmp_path, policy=LARGE, fraction=fraction, clip=10.0, threshold=float(above + below) / 4, **QUIET)
    mask = largest_of(np.abs(values), count)
    np.testing.assert_allclose(flat(restore(sent, SHAPES).arrays), np.where(mask, values, 0), rtol=0, atol=1e-6)
    assert sent.arrays[VALUES].size == sent.steps[0]["sent"] == count
    assert sent.steps[0]["overlap_with_top_k"] == 1.0


# ------------------------------------------------------------------- what is sent


@settings(max_examples=25)
@given(
    fraction=st.floats(0.01, 1),
    clip=st.floats(1e-3, 1),
    steps=st.integers(1, 50),
    charge=st.sampled_from(["single_pass", "every_pass"]),
    seed=st.integers(0, 9),
)
def test_distinct_coordinates_up_to_the_fraction_each_within_the_clip(
    tmp_path_factory, fraction, clip, steps, charge, seed
):
    update = replace(make_update(seed, scale=0.5), report=replace(REPORT, num_steps=steps))
    folder = tmp_path_factory.mktemp("site")
    changes = {"fraction": fraction, "clip": clip, "threshold": 0.0, "charge": charge, "max_passes": 80}
    sent = run(folder, update, LARGE, **changes)
    assert sent.form == SPARSE
    where = read_positions(sent.arrays, read_layout(sent.arrays))
    where = np.arange(COUNT) if where is None else where
    assert np.unique(where).size == where.size == sent.arrays[VALUES].size == sent.steps[0]["sent"]
    most = selected_count(fraction, COUNT)
    assert where.size == most if charge == "every_pass" else where.size <= most
    assert np.abs(sent.arrays[VALUES]).max(initial=0) <= clip * steps * (1 + 1e-6)


@pytest.mark.parametrize("steps", [2, 8])
def test_clip_and_threshold_are_in_units_of_one_step(tmp_path, steps):
    """An update twice or eight times as long, of as many steps: the same choice, and values as many times as large."""
    arrays = make_update().arrays
    one = Update(arrays, replace(REPORT, num_steps=1))
    many = Update({n: v * np.float32(steps) for n, v in arrays.items()}, replace(REPORT, num_steps=steps))
    first, second = (run(tmp_path / name, update) for name, update in (("one", one), ("many", many)))
    assert first.arrays[VALUES].size > 0
    np.testing.assert_array_equal(
        read_positions(first.arrays, read_layout(first.arrays)),
        read_positions(second.arrays, read_layout(second.arrays)),
    )
    np.testing.assert_allclose(second.arrays[VALUES], first.arrays[VALUES] * steps, rtol=1e-6)


def test_noise_of_a_simulation_can_be_repeated_and_that_of_a_real_site_not(tmp_path):
    simulated = [run(tmp_path / name) for name in ("one", "other")]
    real = [run(tmp_path / f"real-{name}", simulated=False) for name in ("one", "other")]
    for name, value in simulated[0].arrays.items():
        np.testing.assert_array_equal(value, simulated[1].arrays[name])
    one, other = (flat(restore(update, SHAPES).arrays) for update in real)
    assert not np.array_equal(one, other)
    assert not np.array_equal(flat(restore(run(tmp_path / "next", round_number=1), SHAPES).arrays), one)
    assert [update.steps[0]["secure_noise"] for update in (*simulated, *real)] == [False, False, True, True]


def test_the_overlap_with_the_largest_leaves_in_simulations_only(tmp_path):
    """It is computed from the exact update. Here the noise of one question is 600 clips: the choice is chance."""
    simulated, real = run(tmp_path / "simulated").steps[0], run(tmp_path / "real", simulated=False).steps[0]
    assert 0 <= simulated["overlap_with_top_k"] < 0.25
    assert set(simulated) - set(real) == {"overlap_with_top_k"}
    assert set(real) <= set(simulated)


def test_the_server_restores_what_was_sent(tmp_path, monkeypatch):
    monkeypatch.setattr("fedseg.filters.restore.job_plan", lambda fl_ctx: parse_plan(PLAN))
    fl_ctx = make_fl_context(context_of(tmp_path))
    reply = SparseVector(**ARGUMENTS).process(make_message(make_update().arrays), fl_ctx)
    assert reply.get_return_code() == ReturnCode.OK
    sent = read_update(reply)
    restored = read_update(RestoreUpdate().process(reply, fl_ctx))
    assert {name: value.shape for name, value in restored.arrays.items()} == SHAPES
    values = flat(restored.arrays)
    where = read_positions(sent.arrays, read_layout(sent.arrays))
    # The layout keeps the order of the update, and so of the names that an update of the plan has.
    ordered = np.concatenate([restored.arrays[name].ravel() for name in read_layout(sent.arrays).names])
    np.testing.assert_array_equal(ordered[where], sent.arrays[VALUES])
    assert np.count_nonzero(values) == np.count_nonzero(sent.arrays[VALUES]) > 0
    assert restored.report.epsilon == sent.report.epsilon > 0
    assert (restored.report.train_loss, restored.steps) == (None, sent.steps)


# ----------------------------------------------------------------- what it costs


def test_one_pass_costs_the_sum_of_its_parts(tmp_path):
    for number in range(3):
        sent = run(tmp_path, round_number=number)
        assert sent.report.epsilon <= (number + 1) * 3.5
        if number == 0:
            assert sent.report.epsilon == pytest.approx(pure_epsilon(3.5, 1e-5), abs=1e-3)
    assert [(r["mechanism"], r["epsilon"], r["unit"]) for r in releases(tmp_path)] == [("pure", 3.5, "site update")] * 3
    assert sent.report.epsilon > 3 * 3.5 - 0.1, "the delta of three releases saves little"
    assert (sent.steps[0]["releases"], sent.steps[0]["mechanism"]) == (3, "pure")


def test_all_passes_that_may_happen_are_charged(tmp_path):
    """Fewer are needed here, but how many were would tell of the data; the values are charged once."""
    arguments = {**ARGUMENTS, "fraction": 1.0, "threshold": 0.0}
    run(tmp_path, policy=LARGE, **arguments, charge="every_pass", max_passes=20)
    names = sorted(make_update().arrays)
    values = np.concatenate([make_update().arrays[name].ravel() for name in names]) / REPORT.num_steps
    noise = SeededNoise(PLAN["seed"], "a", 0, "noise")
    expected = sparse_vector(values, COUNT, 0.01, 0.0, 0.5, 1.0, 2.0, noise, charge="every_pass", max_passes=20)
    assert 3 < expected.passes < 20
    (release,) = releases(tmp_path)
    assert release["epsilon"] == 20 * (0.5 + 1.0) + 2.0


def test_passes_have_an_end_which_bounds_the_cost(tmp_path):
    """Nothing reaches a threshold of a thousand clips, so all passes happen, and are paid for nothing."""
    filter_ = SparseVector(**{**ARGUMENTS, "threshold": 1e9}, charge="every_pass", max_passes=20)
    sent = filter_.run(make_update(), context_of(tmp_path, LARGE))
    assert (sent.steps[0]["sent"], sent.arrays[VALUES].size) == (0, 0)
    assert filter_.planned().epsilon == releases(tmp_path)[0]["epsilon"] == 20 * 1.5 + 2
    assert not flat(restore(sent, SHAPES).arrays).any()


def test_the_plan_of_a_single_pass_is_its_cost():
    filter_ = SparseVector(**ARGUMENTS)
    assert filter_.planned().epsilon == 3.5
    assert epsilon_after(filter_, 1) == pytest.approx(pure_epsilon(3.5, 1e-5), abs=1e-3)


def test_one_shared_patient_is_enough_to_exceed_the_budget(tmp_path):
    """A budget of one release: whoever shares a patient with it gets none, others do."""
    policy = SitePolicy(epsilon_budget={"*": Budget(3.6, 1e-5)})
    SparseVector(**ARGUMENTS).run(make_update(), context_of(tmp_path, policy, ("p1", "p2")))
    with pytest.raises(BudgetError, match="over 1 earlier release"):
        SparseVector(**ARGUMENTS).run(make_update(), context_of(tmp_path, policy, ("p2", "p3")))
    assert len(releases(tmp_path)) == 1
    SparseVector(**ARGUMENTS).run(make_update(), context_of(tmp_path, policy, ("p3", "p4")))
    assert len(releases(tmp_path)) == 2


def test_no_score_and_no_loss_leaves_beside_it(tmp_path):
    report = run(tmp_path).report
    assert (report.train_loss, report.val_loss, report.val_scores) == (None, None, {})
    assert (report.num_samples, report.num_steps, report.val_cases) == (3, 2, 2)


# -------------------------------------------------------------------- arguments

_NUMBERS = ("clip", "epsilon_threshold", "epsilon_query", "epsilon_release")


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name in _NUMBERS for value in (0, -1.0, "1", None, True, math.inf, math.nan)]
    + [("fraction", value) for value in (0, 1.1, -0.1, "1", None, True, math.nan)]
    + [("threshold", value) for value in (-1e-9, "0", None, True, math.inf, math.nan)]
    + [("charge", value) for value in ("none", "", None)]
    + [("delta", value) for value in (0, 1, None, True)],
)
def test_wrong_arguments_are_refused_by_name(name, value):
    with pytest.raises(ConfigurationError, match=rf"^(SparseVector\.)?{name} is .* but must be"):
        SparseVector(**{**ARGUMENTS, name: value})


@pytest.mark.parametrize("name", _NUMBERS)
def test_nothing_that_costs_privacy_has_a_default(name):
    with pytest.raises(TypeError, match=name):
        SparseVector(**{key: value for key, value in ARGUMENTS.items() if key != name})

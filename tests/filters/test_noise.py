"""Clip and noise as filters: what leaves, what it costs, and that nothing leaves which the ledger did not enter."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nvflare.apis.dxo import MetaKey, from_shareable
from nvflare.apis.fl_constant import ReturnCode
from nvflare.fuel.utils import fobs
from scipy import optimize, stats

from fedseg.contract.plan import parse_plan
from fedseg.contract.protocol import REASON, STEPS, TEXT
from fedseg.contract.report import META_KEY, SiteReport, parse_report
from fedseg.contract.update import Update
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.filters.noise import GaussianNoise, LaplaceNoise
from fedseg.privacy.accounting.ledger import FILE, Ledger
from fedseg.privacy.accounting.ledger_errors import BudgetError, LedgerError
from fedseg.privacy.mechanisms.clipping import l1_norm, l2_norm
from fedseg.site.policy import Budget, SitePolicy
from outgoing import REPORT, epsilon_after, flat, make_context, make_fl_context, make_message, make_update
from tiny import PLAN

KINDS = [GaussianNoise, LaplaceNoise]
NORMS = {GaussianNoise: l2_norm, LaplaceNoise: l1_norm}
LARGE = SitePolicy(allow_large_epsilon=True)
ZEROS = Update({"a": np.zeros((100, 300), np.float32), "b": np.zeros(10_000)}, REPORT)


def context_of(folder, policy=None, **others):
    """A task at a simulated site; ``simulated=False`` for a real one, ``patients`` for others than p1 and p2."""
    simulated, patients = others.pop("simulated", True), others.pop("patients", ("p1", "p2"))
    context = make_context(folder, **others)
    profile = replace(context.profile, policy=policy, simulated=simulated)
    return replace(context, profile=profile, patients=patients)


def releases(folder):
    return Ledger(folder / "ledger", simulated=True).history()


def gaussian_epsilon(sensitivity_over_deviation, delta):
    """Epsilon of a Gaussian release from the exact delta of each epsilon (Balle and Wang, 2018, theorem 8)."""
    mu = sensitivity_over_deviation

    def excess(epsilon):
        tail = math.exp(epsilon + stats.norm.logcdf(-mu / 2 - epsilon / mu))
        return stats.norm.cdf(mu / 2 - epsilon / mu) - tail - delta

    return optimize.brentq(excess, 0, 1000, xtol=1e-13)


# ------------------------------------------------------------------- what leaves


@pytest.mark.parametrize("kind", KINDS)
def test_with_next_to_no_noise_and_a_wide_clip_it_is_the_update(tmp_path, kind):
    """Noise of 1e-8 in each coordinate; a site must allow the epsilon that says so."""
    update = make_update()
    sent = kind(clip=1000.0, noise_multiplier=1e-11).run(update, context_of(tmp_path, LARGE))
    assert set(sent.arrays) == set(update.arrays)
    for name, value in update.arrays.items():
        assert (sent.arrays[name].shape, sent.arrays[name].dtype) == (value.shape, value.dtype)
        np.testing.assert_allclose(sent.arrays[name], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20)
@given(length=st.floats(1e-3, 1e3), clip=st.floats(0.01, 10))
def test_before_the_noise_no_update_is_longer_than_the_clip(tmp_path_factory, kind, length, clip):
    """Whatever its length: shortened to the clip if longer, else as it was, always in its own direction."""
    arrays = make_update().arrays
    factor = length / NORMS[kind](arrays)
    update = Update({name: value * np.float32(factor) for name, value in arrays.items()}, REPORT)
    context = context_of(tmp_path_factory.mktemp("site"), LARGE)
    sent = kind(clip=clip, noise_multiplier=1e-11).run(update, context).arrays
    assert NORMS[kind](sent) == pytest.approx(min(length, clip), rel=1e-4)
    np.testing.assert_allclose(flat(sent), flat(update.arrays) * min(1, clip / length), rtol=1e-4, atol=1e-8)


def test_shared_arrays_of_a_method_are_within_the_same_clip(tmp_path):
    """(3, 4) with a further (12) is 13 long; to 6.5 all are halved."""
    update = Update({"a": np.array([3.0, 4.0]), "shared:control": np.array([12.0])}, REPORT)
    sent = GaussianNoise(6.5, 1e-11).run(update, context_of(tmp_path, LARGE)).arrays
    np.testing.assert_allclose(sent["a"], [1.5, 2], atol=1e-8)
    np.testing.assert_allclose(sent["shared:control"], [6], atol=1e-8)


@pytest.mark.parametrize("simulated", [True, False])
@pytest.mark.parametrize(("clip", "multiplier"), [(0.5, 4.0), (2.0, 1.0)])
def test_the_noise_has_the_size_that_is_stated(tmp_path, clip, multiplier, simulated):
    """Sum of squares over the variance: chi-square of 40,000; sum of magnitudes over the scale: a gamma of 40,000.

    Each bound is exceeded once in a hundred million runs of a secure source.
    """
    context = context_of(tmp_path, LARGE, simulated=simulated)
    gaussian = flat(GaussianNoise(clip, multiplier).run(ZEROS, context).arrays) / (clip * multiplier)
    laplace = flat(LaplaceNoise(clip, multiplier).run(ZEROS, context).arrays) / (clip * multiplier)
    count = gaussian.size
    for total, exact in (
        (np.square(gaussian, dtype=float).sum(), stats.chi2(count)),
        (np.abs(laplace, dtype=float).sum(), stats.gamma(count)),
    ):
        assert exact.ppf(5e-9) < total < exact.isf(5e-9)
    for drawn, deviation in ((gaussian, 1), (laplace, math.sqrt(2))):
        assert abs(drawn.mean(dtype=float)) < 6 * deviation / math.sqrt(count)


def test_noise_of_a_simulation_follows_from_seed_site_and_round(tmp_path):
    def drawn(name, plan=None, **changes):
        context = replace(context_of(tmp_path / name, LARGE, plan=plan), **changes)
        return flat(GaussianNoise(1.0, 1.0).run(ZEROS, context).arrays)

    first = drawn("first")
    np.testing.assert_array_equal(first, drawn("again"))
    other_seed = parse_plan({**PLAN, "seed": 4})
    for name, changes in (("round", {"round_number": 1}), ("site", {"site": "b"}), ("seed", {"plan": other_seed})):
        assert abs(np.corrcoef(first, drawn(name, **changes))[0, 1]) < 6 / math.sqrt(first.size)


@pytest.mark.parametrize("kind", KINDS)
def test_a_real_site_never_draws_the_same_noise(tmp_path, kind):
    sent = [
        kind(1.0, 1.0).run(ZEROS, context_of(tmp_path / name, LARGE, simulated=name != "real"))
        for name in ("real", "simulated")
    ]
    sent.append(kind(1.0, 1.0).run(ZEROS, context_of(tmp_path / "real", LARGE, simulated=False)))
    assert [update.steps[0]["secure_noise"] for update in sent] == [True, False, True]
    for one, other in ((0, 1), (0, 2)):
        drawn = np.corrcoef(flat(sent[one].arrays), flat(sent[other].arrays))
        assert abs(drawn[0, 1]) < 6 / math.sqrt(40_000)


# ------------------------------------------------------------------- what it costs


@pytest.mark.parametrize("neighbours", ["replace", "add-remove"])
@pytest.mark.parametrize("multiplier", [2.0, 5.0, 20.0, 80.0, 300.0])
@pytest.mark.parametrize("delta", [1e-5, 1e-8])
def test_epsilon_is_that_of_the_exact_formula_through_restarts(tmp_path, multiplier, neighbours, delta):
    """R releases with the multiplier m are one with m / sqrt(R). The ledger counts replacement: 2 clips apart."""
    for number in range(3):
        # A new object in every round, as after a restart of the client.
        filter_ = GaussianNoise(0.5, multiplier, delta, neighbours)
        sent = filter_.run(make_update(number), context_of(tmp_path, round_number=number))
        (step,) = sent.steps
        expected = gaussian_epsilon(math.sqrt(number + 1) * 2 / multiplier, delta)
        assert step["epsilon"] == sent.report.epsilon == pytest.approx(expected, rel=1e-5)
        assert epsilon_after(filter_, number + 1) == pytest.approx(expected, rel=1e-5)
        assert (step["delta"], step["releases"], step["unit"]) == (delta, number + 1, "site update")
    spent = Ledger(tmp_path / "ledger", simulated=True).spent(delta, patients=["p2"])
    assert (spent.epsilon, spent.releases) == (step["epsilon"], 3)


def test_a_published_value():
    """Noise of one sensitivity: epsilon 4.377 at delta 1e-5, as the field's accountants state it."""
    assert epsilon_after(GaussianNoise(1.0, 2.0), 1) == pytest.approx(4.377, abs=5e-4)
    assert gaussian_epsilon(1.0, 1e-5) == pytest.approx(4.377, abs=5e-4)


def test_a_laplace_release_costs_its_pure_epsilon(tmp_path):
    """2 clips over a noise of 8 clips: 1/4. Its delta saves 2 delta / e^(epsilon / 2) at most; three cost 3/4."""
    for number in range(3):
        sent = LaplaceNoise(0.5, 8.0).run(make_update(), context_of(tmp_path, round_number=number))
        assert sent.report.epsilon == pytest.approx(0.25 * (number + 1), abs=2e-4)
    assert [(r["mechanism"], r["noise_multiplier"]) for r in releases(tmp_path)] == [("laplace", 4.0)] * 3


def test_the_entry_in_the_ledger(tmp_path):
    GaussianNoise(0.5, 12.0).run(make_update(), context_of(tmp_path, round_number=7))
    (entry,) = releases(tmp_path)
    expected = {"mechanism": "gaussian", "noise_multiplier": 6.0, "neighbours": "replace", "clip": 0.5, "count": 1}
    expected |= {"dataset": "tiny", "job": "job", "run_id": "run", "round": 7, "patient_count": 2}
    assert {name: entry[name] for name in expected} == expected


def test_the_record_names_mechanism_and_ratio_of_noise_to_signal(tmp_path):
    """40,000 coordinates: the noise is 200 multipliers long under L2, 40,000 under L1."""
    (gaussian,) = GaussianNoise(0.5, 3.0).run(ZEROS, context_of(tmp_path / "g")).steps
    (laplace,) = LaplaceNoise(0.5, 3.0).run(ZEROS, context_of(tmp_path / "l")).steps
    assert (gaussian["mechanism"], gaussian["coordinates"], gaussian["noise_to_signal"]) == ("gaussian", 40_000, 600)
    assert (laplace["mechanism"], laplace["coordinates"], laplace["noise_to_signal"]) == ("laplace", 40_000, 120_000)
    assert (gaussian["clip"], gaussian["noise_multiplier"], laplace["norm"]) == (0.5, 3.0, "L1")


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_told_beside_the_guarantee(tmp_path, kind):
    """Counts only: no loss, no score and no duration, not even where the result was made by hand."""
    told = SiteReport(3, 2, 0.5, 0.6, {"mean": 0.1}, 2, 4.0, 3.0, 0.4, 0.3, largest=0.1, extras={"personal_dice": 0.2})
    sent = kind(1.0, 20.0).run(replace(make_update(), report=told), context_of(tmp_path))
    assert sent.report == SiteReport(3, 2, None, None, {}, 2, epsilon=sent.report.epsilon)
    assert "seconds" not in sent.steps[0]
    assert sent.report.epsilon > 0
    reply = kind(1.0, 20.0).process(make_message(make_update().arrays), make_fl_context(context_of(tmp_path)))
    meta = from_shareable(reply).meta
    assert set(meta) == {META_KEY, STEPS, MetaKey.NUM_STEPS_CURRENT_ROUND}
    report = parse_report(meta)
    assert report == SiteReport(3, 2, None, None, {}, 2, epsilon=report.epsilon)


def test_the_smaller_delta_counts(tmp_path):
    """Of the job's and the site's."""
    for name, delta, expected in (("site", 1e-7, 1e-7), ("job", 1e-3, 1e-5)):
        policy = SitePolicy(epsilon_budget={"*": Budget(40.0, delta)})
        (step,) = GaussianNoise(1.0, 5.0).run(make_update(), context_of(tmp_path / name, policy)).steps
        assert step["delta"] == expected
        assert step["epsilon"] == pytest.approx(gaussian_epsilon(2 / 5, expected), rel=1e-5)


# ------------------------------------------------------------- what does not leave


def assert_nothing_left(filter_, context, said):
    """Neither an exception nor an array: FLARE's side answers with a code, a reason and a text."""
    arrays = make_update(5).arrays
    reply = filter_.process(make_message(arrays), make_fl_context(context))
    assert reply.get_return_code() == ReturnCode.TASK_RESULT_FILTER_ERROR
    assert (reply.get_header(REASON), said in reply.get_header(TEXT)) == ("privacy", True), reply.get_header(TEXT)
    content = fobs.dumps(reply)
    assert len(content) < 1000
    for value in arrays.values():
        assert value.ravel()[:2].tobytes() not in content
    assert not any(word in reply.get_header(TEXT) for word in ("p1", "p2", str(context.profile.ledger)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_release_beyond_the_budget_does_not_leave(tmp_path, kind):
    """A budget of two and a half releases lets out two."""
    filter_ = kind(1.0, 4.0)
    two, three = epsilon_after(filter_, 2), epsilon_after(filter_, 3)
    policy = SitePolicy(epsilon_budget={"tiny": Budget((two + three) / 2, 1e-5)})
    for number in range(2):
        context = context_of(tmp_path, policy, round_number=number)
        reply = kind(1.0, 4.0).process(make_message(make_update().arrays), make_fl_context(context))
        assert reply.get_return_code() == ReturnCode.OK
    before = (tmp_path / "ledger" / FILE).read_bytes()
    context = context_of(tmp_path, policy, round_number=2)
    with pytest.raises(BudgetError) as error:
        kind(1.0, 4.0).run(make_update(), context)
    assert error.value.epsilon == pytest.approx(three)
    assert_nothing_left(kind(1.0, 4.0), context, "over 2 earlier release(s) with a guarantee")
    assert (tmp_path / "ledger" / FILE).read_bytes() == before
    assert [entry["round"] for entry in releases(tmp_path)] == [0, 1]


def test_a_release_that_is_repeated_is_counted_again(tmp_path):
    """Its result was lost on the way, but somebody may have it."""
    for _ in range(2):
        sent = GaussianNoise(1.0, 20.0).run(make_update(), context_of(tmp_path, round_number=4))
    assert [entry["round"] for entry in releases(tmp_path)] == [4, 4]
    assert sent.report.epsilon == pytest.approx(gaussian_epsilon(math.sqrt(2) / 10, 1e-5), rel=1e-5)


def test_other_jobs_on_the_same_patients_count_too(tmp_path):
    ledger = Ledger(tmp_path / "ledger", simulated=True)
    place = {"job": "other", "run_id": "earlier", "round_number": 0, "delta": 1e-5, "budget": None}
    ledger.charge("another name", ["p2", "p9"], GaussianNoise(1.0, 20.0).planned(), **place)
    sent = GaussianNoise(1.0, 20.0).run(make_update(), context_of(tmp_path))
    assert sent.steps[0]["releases"] == 2


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_policy_an_epsilon_above_fifty_stays(tmp_path, kind):
    filter_ = kind(1.0, 0.0005)
    assert epsilon_after(filter_, 1) > 50
    assert_nothing_left(filter_, context_of(tmp_path), "the site allows 50")
    assert_nothing_left(filter_, context_of(tmp_path, SitePolicy()), "the site allows 50")
    assert releases(tmp_path) == []
    assert filter_.run(make_update(), context_of(tmp_path, LARGE)).report.epsilon > 50


def test_a_damaged_ledger_lets_nothing_out(tmp_path):
    GaussianNoise(1.0, 20.0).run(make_update(), context_of(tmp_path))
    path = tmp_path / "ledger" / FILE
    content = path.read_text("utf-8")
    for number, damaged in enumerate((content.replace('"clip":1.0', '"clip":9.0'), content[: content.rindex("{")])):
        assert damaged != content
        path.write_text(damaged, "utf-8")
        context = context_of(tmp_path, round_number=1 + number)
        with pytest.raises(LedgerError):
            GaussianNoise(1.0, 20.0).run(make_update(), context)
        assert_nothing_left(GaussianNoise(1.0, 20.0), context, "privacy ledger")
        assert path.read_text("utf-8") == damaged


def test_a_ledger_that_cannot_be_written_lets_nothing_out(tmp_path):
    (tmp_path / "ledger").write_text("a file where the folder should be")
    assert_nothing_left(GaussianNoise(1.0, 20.0), context_of(tmp_path), "cannot be read or written")


def test_a_ledger_of_simulations_does_not_count_for_a_real_site(tmp_path):
    GaussianNoise(1.0, 20.0).run(make_update(), context_of(tmp_path))
    assert_nothing_left(GaussianNoise(1.0, 20.0), context_of(tmp_path, simulated=False), "opened by a simulation")


@pytest.mark.parametrize(("delta", "count", "leaves"), [(0.5, 1, True), (0.25, 4, False), (0.24, 4, True)])
def test_delta_must_be_below_one_over_the_number_of_patients(tmp_path, delta, count, leaves):
    """Giving away one of n patients drawn by lot has an epsilon of 0 at a delta of 1/n."""
    patients = tuple(f"p{number}" for number in range(count))
    filter_, context = GaussianNoise(1.0, 20.0, delta), context_of(tmp_path, patients=patients)
    if leaves:
        assert filter_.run(make_update(), context).steps
        return
    with pytest.raises(RefusalError, match=r"GaussianNoise: delta 0.25 is not below .* lower; 1e-5 is usual") as error:
        filter_.run(make_update(), context)
    assert error.value.reason == "privacy"
    assert_nothing_left(filter_, context, "Set the filter's delta lower")
    assert releases(tmp_path) == []


def test_a_result_of_nobody_cannot_be_counted(tmp_path):
    assert_nothing_left(GaussianNoise(1.0, 20.0), context_of(tmp_path, patients=()), "GaussianNoise failed")


# --------------------------------------------------------------------- arguments


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("changes", "named"),
    [({name: value}, name) for name in ("clip", "noise_multiplier") for value in (0, -1, "1", None, True)]
    + [({name: value}, name) for name in ("clip", "noise_multiplier") for value in (math.nan, math.inf)]
    + [({"delta": value}, "delta") for value in (0, 1, 1.5, -1e-5, "1e-5", None, True, math.nan)]
    + [({"neighbours": value}, "neighbours") for value in ("", "remove", None)],
)
def test_wrong_arguments_are_refused_by_name(kind, changes, named):
    """No noise is no argument: such a filter would protect nobody under the name of one that does."""
    with pytest.raises(ConfigurationError, match=rf"^({kind.__name__}\.)?{named} is .* but must be"):
        kind(**{"clip": 1.0, "noise_multiplier": 1.0, **changes})

"""Epsilon against formulas that are computed here, published figures, the library itself, and slow integrals."""

import math
from dataclasses import replace

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.pld import privacy_loss_distribution as losses
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats
from scipy.special import gammaln, logsumexp

from fedseg.errors import ConfigurationError
from fedseg.privacy.accounting.composition import laplace_mu, pure_mu
from fedseg.privacy.accounting.epsilon import (
    ADAPTIVE,
    ADD_REMOVE,
    PATIENT,
    REPLACE,
    SITE_UPDATE,
    Release,
    common_unit,
    epsilon,
    noise_for,
    relative_to_sensitivity,
    rounds_for,
    sensitivity,
)
from fedseg.privacy.accounting.releases import grouped

# Rounds, noise multiplier over the sensitivity, delta.
SETTINGS = [
    (rounds, multiplier, delta)
    for rounds, multiplier in [(1, 0.6), (1, 5.0), (10, 3.0), (50, 10.0), (100, 12.5), (200, 40.0), (600, 20.0)]
    for delta in (1e-3, 1e-5, 1e-7)
][:20]


def gaussian_delta(eps, rounds, multiplier):
    """Delta of composed Gaussian releases: theorem 8 of Balle and Wang (2018), with mu = sqrt(rounds) / multiplier."""
    mu = math.sqrt(rounds) / multiplier
    return stats.norm.cdf(mu / 2 - eps / mu) - math.exp(eps + stats.norm.logcdf(-mu / 2 - eps / mu))


@pytest.mark.parametrize(("rounds", "multiplier", "delta"), SETTINGS)
def test_gaussian_releases_against_the_analytic_formula(rounds, multiplier, delta):
    found = epsilon([Release("gaussian", multiplier)] * rounds, delta)
    expected = optimize.brentq(lambda eps: gaussian_delta(eps, rounds, multiplier) - delta, 0, 500, xtol=1e-13)
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("rounds", "multiplier", "delta"), SETTINGS[:12:3])
def test_gaussian_releases_against_the_library_step_by_step(rounds, multiplier, delta):
    accountant = PLDAccountant()
    for _ in range(rounds):
        accountant.compose(dp_accounting.GaussianDpEvent(multiplier))
    found = epsilon([Release("gaussian", multiplier, count=rounds)], delta)
    # The library rounds every step up to a grid of 1e-4.
    assert found <= accountant.get_epsilon(delta) + 1e-9
    assert found == pytest.approx(accountant.get_epsilon(delta), rel=1e-3)


@pytest.mark.parametrize(("rounds", "multiplier", "delta"), SETTINGS[::3])
def test_gaussian_releases_by_renyi_divergence(rounds, multiplier, delta):
    """alpha rounds / (2 multiplier^2), converted by Canonne, Kamath and Steinke (2020), at the best of many orders."""
    orders = 1 + np.geomspace(1e-3, 1e4, 200_000)
    rdp = orders * rounds / (2 * multiplier**2)
    best = np.min(rdp + np.log1p(-1 / orders) - np.log(delta * orders) / (orders - 1))
    found = epsilon([Release("gaussian", multiplier)] * rounds, delta, "rdp")
    assert best - 1e-9 <= found < 1.02 * best
    assert found > epsilon([Release("gaussian", multiplier)] * rounds, delta, "pld")


# Abadi et al. (2016) on MNIST as TensorFlow Privacy's page of tutorials gives it: 256 of 60,000 images a step.
DP_SGD = [(1.3, 15, 1.19), (1.1, 60, 3.01), (0.7, 45, 7.10)]


def dp_sgd(sigma, epochs):
    steps = epochs * 60000 // 256
    return Release("gaussian", sigma, None, PATIENT, 256 / 60000, steps, ADD_REMOVE), steps


@pytest.mark.parametrize(("sigma", "epochs", "published"), DP_SGD)
def test_sampled_releases_against_published_figures(sigma, epochs, published):
    """Renyi divergences at whole orders (Mironov, Talwar and Zhang, 2019, section 3.3), summed here.

    With the conversion of their time they give the published figures; with today's tighter one ours.
    """
    release, steps = dp_sgd(sigma, epochs)
    q, orders = release.sampling_rate, np.arange(2, 65)
    rdp = np.array([steps * sampled_rdp(int(order), q, sigma) for order in orders])
    former = np.min(rdp - math.log(1e-5) / (orders - 1))
    # Whole orders only: the published ones include fractions, which matter for the largest epsilon.
    assert former == pytest.approx(published, rel=0.03)
    todays = np.min(rdp + np.log1p(-1 / orders) - np.log(1e-5 * orders) / (orders - 1))
    by_renyi = epsilon([release], 1e-5, "rdp", ADD_REMOVE)
    assert by_renyi == pytest.approx(todays, rel=1e-9)
    assert by_renyi < published
    assert 0.75 * by_renyi < epsilon([release], 1e-5, "pld", ADD_REMOVE) < by_renyi


def sampled_rdp(order, q, sigma):
    k = np.arange(order + 1)
    log_binomial = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
    terms = log_binomial + (order - k) * math.log1p(-q) + k * math.log(q) + k * (k - 1) / (2 * sigma**2)
    return logsumexp(terms) / (order - 1)


def integrated_delta(eps, upper, lower):
    """The hockey-stick divergence of two densities on a line, by the trapezoid rule."""
    x = np.linspace(-60, 60, 2_000_001)
    return np.trapezoid(np.maximum(0, upper(x) - math.exp(eps) * lower(x)), x)


@pytest.mark.parametrize(("q", "sigma"), [(0.1, 0.8), (0.5, 2.0), (0.9, 5.0)])
def test_one_sampled_release_against_integrals(q, sigma):
    """Clipping norm 1, deviation sigma; one unit is there or not, or is the worst possible other one."""
    base, plus, minus = (stats.norm(mean, sigma).pdf for mean in (0, 1, -1))
    there, opposite = (lambda x, side=side: (1 - q) * base(x) + q * side(x) for side in (plus, minus))
    for neighbours, pairs in ((ADD_REMOVE, [(there, base), (base, there)]), (REPLACE, [(there, opposite)])):
        multiplier = relative_to_sensitivity(sigma, neighbours)
        release = Release("gaussian", multiplier, unit=PATIENT, sampling_rate=q, neighbours=neighbours)
        found = epsilon([release], 1e-4, neighbours=neighbours)
        assert max(integrated_delta(found, *pair) for pair in pairs) == pytest.approx(1e-4, rel=2e-3)


def test_sampled_releases_of_both_conventions_are_the_same_release():
    """Deviation 1.1 clipping norms is 1.1 sensitivities for adding or removing, and 0.55 for replacement."""
    release, steps = dp_sgd(1.1, 1)
    stated = Release("gaussian", 0.55, unit=PATIENT, sampling_rate=release.sampling_rate, count=steps)
    assert epsilon([release], 1e-5) == epsilon([stated], 1e-5)
    assert epsilon([release], 1e-5) > epsilon([release], 1e-5, neighbours=ADD_REMOVE)


def test_renyi_divergences_do_not_know_sampling_under_replacement():
    with pytest.raises(ConfigurationError, match="accountant is 'rdp', but must be pld where sampled"):
        epsilon([Release("gaussian", 1.0, sampling_rate=0.5)], 1e-5, "rdp")


# ----------------------------------------------------- laplace and pure


def test_one_laplace_release_by_hand():
    """Delta of a shift of one scale multiple 1/b is 1 - exp((eps - 1/b) / 2), so eps = 1/b + 2 log(1 - delta)."""
    assert epsilon([Release("laplace", 0.5)], 1e-2) == pytest.approx(2 + 2 * math.log(0.99), abs=2e-4)


@given(st.floats(0.1, 3), st.floats(0.1, 3), st.floats(-4, 5))
@settings(max_examples=30)
def test_a_shift_in_two_coordinates_costs_no_more_than_in_one(first, second, eps):
    """Why Laplace noise in many dimensions is accounted by its L1 sensitivity in one."""

    def delta(*shifts):
        found = losses.identity(1e-3)
        for shift in shifts:
            found = found.compose(losses.from_laplace_mechanism(1.0, shift, value_discretization_interval=1e-3))
        return found.get_delta_for_epsilon(eps)

    assert delta(first, second) <= delta(first + second) + 1e-3


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_pure_releases_never_cost_more_than_their_sum(accountant):
    for each, count in [(0.01, 3), (2.0, 4), (30.0, 2), (1e-6, 10), (8_464_031.0, 600)]:
        found = epsilon([Release("pure", epsilon=each, count=count)], 1e-9, accountant)
        assert 0 <= found <= each * count * (1 + 1e-12)


def test_many_small_pure_releases_cost_less_than_their_sum():
    """600 of 0.1: theorem 3.4 of Kairouz, Oh and Viswanath (2015), exact, against their sum of 60."""
    each, count, delta = 0.1, 600, 1e-5

    def exact_delta(i):
        # At eps = (count - 2 i) each.
        ranks = np.arange(i)
        log_binomial = gammaln(count + 1) - gammaln(ranks + 1) - gammaln(count - ranks + 1)
        gains = np.exp((count - ranks) * each) - np.exp((count - 2 * i + ranks) * each)
        return math.fsum(np.exp(log_binomial - count * math.log1p(math.exp(each))) * gains)

    steps = next(i for i in range(count) if exact_delta(i) > delta)
    found = epsilon([Release("pure", epsilon=each)] * count, delta)
    assert (count - 2 * steps) * each <= found <= (count - 2 * (steps - 1)) * each


def test_a_pure_release_counts_twice_from_adding_to_replacing():
    release = Release("pure", epsilon=0.7, neighbours=ADD_REMOVE)
    assert epsilon([release], 1e-9) == pytest.approx(1.4, abs=1e-6)
    assert epsilon([release], 1e-9, neighbours=ADD_REMOVE) == pytest.approx(0.7, abs=1e-6)


# ----------------------------------------------------------- properties

RELEASES = st.one_of(
    st.builds(Release, st.just("gaussian"), st.floats(0.5, 100), count=st.integers(1, 20)),
    st.builds(Release, st.just("laplace"), st.floats(0.5, 100), count=st.integers(1, 20)),
    st.builds(Release, st.just("pure"), st.none(), st.floats(0, 5), count=st.integers(1, 5)),
)


@given(st.lists(RELEASES, max_size=4), RELEASES, st.sampled_from([1e-3, 1e-6]), st.sampled_from(["pld", "rdp"]))
@settings(max_examples=15)
def test_more_costs_no_less_and_the_order_does_not_matter(releases, further, delta, accountant):
    before, after = (epsilon(row, delta, accountant) for row in (releases, [*releases, further]))
    # Distributions are rounded up by at most 1e-4 or a millionth of their range for each release.
    slack = 1e-3 * (1 + before)
    assert after >= before - slack
    if accountant == "pld":
        halves = [epsilon(row, delta / 2) for row in (releases, [further])]
        assert after <= sum(halves) + slack
    assert epsilon([further, *reversed(releases)], delta, accountant) == after


@given(st.floats(1e-3, 1e4), st.integers(1, 1000), st.floats(1e-12, 0.1))
@settings(max_examples=40)
def test_more_noise_costs_less(multiplier, count, delta):
    first, second = (epsilon([Release("gaussian", m, count=count)], delta) for m in (multiplier, 2 * multiplier))
    assert second <= first
    assert first <= epsilon([Release("gaussian", multiplier, count=count)], delta, "rdp") * (1 + 1e-9)


@given(RELEASES, st.integers(1, 5))
def test_equal_releases_are_one_with_a_count(release, times):
    (kind,) = grouped([release] * times + [replace(release, unit=PATIENT)])
    assert kind.count == release.count * (times + 1)


def test_nothing_costs_nothing_and_no_noise_costs_everything():
    assert epsilon([], 1e-5) == epsilon([], 1e-5, "rdp") == 0.0
    assert epsilon([Release("pure", epsilon=0.0)], 1e-5) == 0.0
    for release in (Release("gaussian", 0), Release("laplace", 0.0), Release("pure", epsilon=math.inf)):
        for accountant in ("pld", "rdp"):
            assert epsilon([Release("gaussian", 5.0), release], 1e-5, accountant) == math.inf


@pytest.mark.parametrize("multiplier", [1e-3, 1e-9, 1e-99, 1e-300])
@pytest.mark.parametrize("mechanism", ["gaussian", "laplace"])
@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_absurdly_little_noise_is_an_absurdly_large_epsilon(mechanism, multiplier, accountant):
    assert epsilon([Release(mechanism, multiplier, count=600)], 1e-5, accountant) > 1e4


# --------------------------------------------------------------- planning


@pytest.mark.parametrize(
    ("target", "delta", "rounds", "rate", "neighbours"),
    [
        (8.0, 1e-5, 100, 1.0, REPLACE),
        (0.1, 1e-8, 1, 1.0, ADD_REMOVE),
        (3.0, 1e-5, 50, 0.1, REPLACE),
    ],
)
def test_planned_noise_is_enough_and_not_much_more(target, delta, rounds, rate, neighbours):
    multiplier = noise_for(target, delta, rounds, rate, neighbours)

    def cost(m):
        release = Release("gaussian", m, sampling_rate=rate, count=rounds, neighbours=neighbours)
        return epsilon([release], delta, neighbours=neighbours)

    assert cost(multiplier) <= target < cost(multiplier * (1 - 2e-4))


@pytest.mark.parametrize("multiplier", [0.3, 2.0, 14.0, 200.0])
def test_planned_rounds_fit_and_one_more_does_not(multiplier):
    rounds = rounds_for(8.0, 1e-5, multiplier)
    if rounds:
        assert epsilon([Release("gaussian", multiplier, count=rounds)], 1e-5) <= 8.0
    assert epsilon([Release("gaussian", multiplier, count=rounds + 1)], 1e-5) > 8.0


def test_planned_rounds_by_hand():
    """Rounds grow with the square of the noise: 14.702 allows 600 at epsilon 8, so twice that noise 2,400."""
    multiplier = noise_for(8.0, 1e-5, 600)
    assert rounds_for(8.0, 1e-5, multiplier) == 600
    assert rounds_for(8.0, 1e-5, 2 * multiplier) == 2400


def test_planned_rounds_have_an_end():
    assert rounds_for(8.0, 1e-5, 1e6) == 1_000_000


# ------------------------------------------------------------ conventions


def test_sensitivity():
    assert sensitivity(0.5) == sensitivity(0.5, REPLACE) == 1.0
    assert sensitivity(0.5, ADD_REMOVE) == 0.5
    assert relative_to_sensitivity(30.0) == 15.0
    assert relative_to_sensitivity(30.0, ADD_REMOVE) == 30.0


def test_the_common_unit_is_the_smaller_one():
    update, patient = Release("gaussian", 1.0), Release("gaussian", 1.0, unit=PATIENT)
    assert common_unit([]) == common_unit([update]) == SITE_UPDATE
    assert common_unit([update, patient]) == PATIENT


def test_replacement_cannot_be_stated_as_adding():
    with pytest.raises(ConfigurationError, match="neighbours is 'add-remove', but must be replace"):
        epsilon([Release("gaussian", 1.0)], 1e-5, neighbours=ADD_REMOVE)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mechanism": "uniform"}, "mechanism is 'uniform'"),
        ({"unit": "image"}, "unit is 'image'"),
        ({"neighbours": "other"}, "neighbours is 'other'"),
        ({"count": 0}, "count is 0"),
        ({"count": 1.0}, "count is 1.0"),
        ({"noise_multiplier": -1.0}, "noise_multiplier is -1.0"),
        ({"noise_multiplier": math.inf}, "noise_multiplier is inf"),
        ({"noise_multiplier": math.nan}, "noise_multiplier is nan"),
        ({"noise_multiplier": None}, "noise_multiplier is missing"),
        ({"epsilon": 1.0}, "epsilon is not known: the gaussian mechanism"),
        ({"sampling_rate": 0.0}, "sampling_rate is 0.0, but must be above 0"),
        ({"sampling_rate": 1.5}, "sampling_rate is 1.5"),
        ({"mechanism": "laplace", "sampling_rate": 0.5}, "sampling_rate is 0.5, but must be 1 for the laplace"),
        ({"mechanism": "pure", "epsilon": 1.0}, "noise_multiplier is not known: the pure mechanism"),
        ({"mechanism": "pure", "noise_multiplier": None}, "epsilon is missing"),
        ({"mechanism": "pure", "noise_multiplier": None, "epsilon": -1.0}, "epsilon is -1.0"),
    ],
)
def test_releases_that_are_refused(changed, message):
    with pytest.raises(ConfigurationError, match=message):
        Release(**{"mechanism": "gaussian", "noise_multiplier": 1.0, **changed})


@pytest.mark.parametrize("delta", [0, 1, -0.1, math.nan, None, True])
def test_deltas_that_are_refused(delta):
    with pytest.raises(ConfigurationError, match="delta is"):
        epsilon([], delta)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: epsilon([], 1e-5, "gdp"), "accountant is 'gdp'"),
        (lambda: epsilon([], 1e-5, neighbours="all"), "neighbours is 'all'"),
        (lambda: noise_for(0, 1e-5, 1), "epsilon is 0"),
        (lambda: noise_for(1.0, 1e-5, 0), "rounds is 0"),
        (lambda: noise_for(1e-9, 1e-12, 10**6), "no noise multiplier up to a million"),
        (lambda: rounds_for(1.0, 1e-5, 0), "noise_multiplier is 0"),
        (lambda: rounds_for(math.inf, 1e-5, 1.0), "epsilon is inf"),
        (lambda: sensitivity(0), "clip is 0"),
    ],
)
def test_arguments_that_are_refused(call, message):
    with pytest.raises(ConfigurationError, match=message):
        call()


# --------------------------------------------------------------- chosen as they go


def gaussian_profile(mu, eps):
    """delta of mu-Gaussian privacy at an epsilon (Dong, Roth and Su, 2022, corollary 2.13)."""
    return stats.norm.cdf(mu / 2 - eps / mu) - np.exp(eps + stats.norm.logcdf(-mu / 2 - eps / mu))


EPSILONS = (0.01, 0.1, 0.5, 1.0, 3.0, 8.0)


@pytest.mark.parametrize("eps", EPSILONS)
def test_a_pure_release_tells_no_more_than_its_gaussian_and_touches_it(eps):
    """Against the delta of randomised response, the worst of all: (e^eps - e^x) / (1 + e^eps)."""
    grid = np.linspace(-eps, eps, 2001)
    worst = (np.exp(eps) - np.exp(grid)) / (1 + np.exp(eps))
    assert np.all(worst <= gaussian_profile(pure_mu(eps), grid) + 1e-12)
    assert np.any(worst > gaussian_profile(0.999 * pure_mu(eps), grid))


@pytest.mark.parametrize("eps", EPSILONS)
def test_a_laplace_release_tells_no_more_than_its_gaussian_and_touches_it(eps):
    """Against its delta by hand, 1 - e^((x - eps) / 2); below x = -eps either has 1 - e^x at least."""
    grid = np.linspace(-eps, eps, 2001)
    worst = 1 - np.exp((grid - eps) / 2)
    assert np.all(worst <= gaussian_profile(laplace_mu(1 / eps), grid) + 1e-12)
    assert np.any(worst > gaussian_profile(0.999 * laplace_mu(1 / eps), grid))
    assert laplace_mu(1 / eps) < pure_mu(eps)


def test_gaussian_releases_cost_the_same_whether_they_were_planned_or_not():
    releases = [Release("gaussian", 3.0, count=4), Release("gaussian", 8.0, unit=PATIENT)]
    assert epsilon(releases, 1e-5, ADAPTIVE) == epsilon(releases, 1e-5)


def test_pure_releases_that_were_not_planned_cost_their_sum_or_their_gaussians():
    few, many = [Release("pure", epsilon=0.5, count=2)], [Release("laplace", 100.0, count=2000)]
    assert epsilon(few, 1e-5, ADAPTIVE) == pytest.approx(1.0)
    mu = math.sqrt(2000) * laplace_mu(100.0)
    assert epsilon(many, 1e-5, ADAPTIVE) == pytest.approx(
        optimize.brentq(lambda eps: gaussian_profile(mu, eps) - 1e-5, 0, 50), rel=1e-6
    )
    assert epsilon(many, 1e-5, ADAPTIVE) < 20


@given(
    st.lists(
        st.one_of(
            st.builds(Release, st.just("gaussian"), st.floats(0.5, 50), count=st.integers(1, 3)),
            st.builds(Release, st.just("laplace"), st.floats(0.5, 50), count=st.integers(1, 3)),
            st.builds(Release, st.just("pure"), epsilon=st.floats(0.01, 3), count=st.integers(1, 3)),
        ),
        min_size=1,
        max_size=4,
    )
)
@settings(max_examples=20, deadline=None)
def test_releases_that_were_not_planned_cost_no_less_than_planned_ones(releases):
    """Also where the library composes their distributions, which knows nothing of Gaussian curves."""
    assert epsilon(releases, 1e-5, ADAPTIVE) >= epsilon(releases, 1e-5) * (1 - 1e-6) - 1e-9

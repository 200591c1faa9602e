"""Bootstrap intervals against a slow loop, scipy, enumerated draws, and how often they cover a known mean."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from scipy import stats

from fedseg.errors import ConfigurationError
from fedseg.evaluation import intervals
from fedseg.evaluation.intervals import Interval, bootstrap_mean


def bounds(found: Interval) -> tuple[float, float]:
    assert found.low is not None
    assert found.high is not None
    return found.low, found.high


def test_the_interval_is_that_of_a_slow_loop() -> None:
    values = [0.7, 0.9, 0.2, 0.85, 0.6]
    places = np.random.default_rng(4).integers(5, size=(500, 5))
    means = [sum(values[place] for place in row) / 5 for row in places]
    found = bootstrap_mean(values, samples=500, seed=4, level=0.9)
    assert bounds(found) == pytest.approx(tuple(np.quantile(means, [0.05, 0.95])))
    assert (found.mean, found.cases, found.groups, found.patients) == (pytest.approx(0.65), 5, 1, 5)


def test_the_interval_is_that_of_scipy() -> None:
    values = np.random.default_rng(1).gamma(2.0, size=40)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=7).confidence_interval
    found = bootstrap_mean(values.tolist(), samples=20_000, seed=3)
    assert bounds(found) == pytest.approx(tuple(theirs), abs=0.02 * values.std() / math.sqrt(40) * 4)


def test_draws_are_spread_as_all_possible_draws() -> None:
    """Four values have 256 draws: their exact distribution has the stated mass between the bounds."""
    values = [0.0, 1.0, math.sqrt(7), math.pi**2]
    exact = np.sort([sum(draw) / 4 for draw in itertools.product(values, repeat=4)])
    low, high = bounds(bootstrap_mean(values, samples=50_000, level=0.8))
    assert np.mean(exact < low - 1e-9) <= 0.1 <= np.mean(exact <= low + 0.05)
    assert np.mean(exact > high + 1e-9) <= 0.1 <= np.mean(exact >= high - 0.05)


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(2).random(9).tolist()
    whole = bootstrap_mean(values, samples=1000)
    monkeypatch.setattr(intervals, "_MOST_NUMBERS", 50)
    assert bootstrap_mean(values, samples=1000) == whole


def test_all_values_of_a_patient_move_together() -> None:
    """Each value twice says no more than once; as values of different patients it would."""
    values = np.random.default_rng(3).random(12).tolist()
    once, twice = bootstrap_mean(values), bootstrap_mean(values * 2, patients=list(range(12)) * 2)
    assert bounds(twice) == pytest.approx(bounds(once))
    assert (twice.cases, twice.patients) == (24, 12)
    apart = bootstrap_mean(values * 2)
    assert bounds(apart)[1] - bounds(apart)[0] < 0.8 * (bounds(once)[1] - bounds(once)[0])


def test_patients_of_two_sites_are_different_ones() -> None:
    found = bootstrap_mean([1.0, 2.0, 3.0, 5.0], ["a", "a", "b", "b"], patients=["p1", "p2", "p1", "p2"])
    assert (found.patients, found.groups) == (4, 2)


def test_sites_are_drawn_before_their_patients() -> None:
    """Where a site's patients are alike, a mean over sites is one of 27: three sites, drawn three times."""
    values, sites = [0.0] * 4 + [1.0] * 4 + [10.0] * 4, ["a"] * 4 + ["b"] * 4 + ["c"] * 4
    possible = {sum(draw) / 3 for draw in itertools.product([0.0, 1.0, 10.0], repeat=3)}
    low, high = bounds(bootstrap_mean(values, sites))
    assert any(low == pytest.approx(each) for each in possible)
    assert (low, high) == pytest.approx((0.0, 10.0)), "one draw in 27 is of one site three times: above 2.5%"
    alone = bootstrap_mean(values)
    assert bounds(alone)[1] < 7, "patients alone do not show how sites differ"


@pytest.mark.parametrize("over", ["cases", "groups"])
def test_clustered_draws_are_those_of_a_slow_loop(over: str) -> None:
    generator, slow = np.random.default_rng(5), random.Random(6)
    data = {
        site: generator.normal(level, 1.0, size).tolist()
        for site, level, size in (("a", 0, 3), ("b", 2, 9), ("c", 3, 5))
    }
    means = []
    for _ in range(20_000):
        drawn = [[slow.choice(data[site]) for _ in data[site]] for site in slow.choices(list(data), k=3)]
        of_sites = [sum(each) / len(each) for each in drawn]
        every = of_sites if over == "groups" else [value for each in drawn for value in each]
        means.append(sum(every) / len(every))
    values = [value for each in data.values() for value in each]
    sites = [site for site, each in data.items() for _ in each]
    found = bootstrap_mean(values, sites, over=over, samples=20_000)
    assert bounds(found) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.06)
    expected = np.mean([np.mean(each) for each in data.values()]) if over == "groups" else np.mean(values)
    assert found.mean == pytest.approx(expected)


def test_it_covers_the_mean_of_a_known_distribution() -> None:
    """Of 400 samples of 15 and of 60 patients of a skewed distribution, whose mean is 2/3."""
    generator = np.random.default_rng(8)
    covered = {}
    for patients in (15, 60):
        found = [bootstrap_mean(generator.beta(2, 1, patients).tolist(), samples=1000, seed=i) for i in range(400)]
        covered[patients] = np.mean([bounds(each)[0] <= 2 / 3 <= bounds(each)[1] for each in found])
    assert 0.88 <= covered[15] <= 0.97
    assert 0.92 <= covered[60] <= 0.98


def test_only_the_clustered_interval_covers_the_mean_of_all_sites() -> None:
    """Twelve sites that differ as much as their patients do: other sites' mean lies outside of patients' intervals."""
    generator, covered = np.random.default_rng(9), {True: 0, False: 0}
    for _ in range(200):
        levels = generator.normal(0.0, 1.0, 12)
        values = (levels[:, None] + generator.normal(0.0, 1.0, (12, 8))).ravel().tolist()
        sites = np.repeat(np.arange(12), 8).tolist()
        for clustered in covered:
            low, high = bounds(bootstrap_mean(values, sites if clustered else None, samples=500))
            covered[clustered] += low <= 0.0 <= high
    assert 0.86 <= covered[True] / 200 <= 0.98
    assert covered[False] / 200 < 0.75


@pytest.mark.parametrize("values", [[], [None, math.nan]])
def test_without_a_value_there_is_nothing(values: list[float | None]) -> None:
    assert bootstrap_mean(values) == Interval(None, None, None, 0, 0, 0)


def test_one_patient_has_a_mean_and_no_bounds() -> None:
    assert bootstrap_mean([0.25]) == Interval(0.25, None, None, 1, 1, 1)
    assert bootstrap_mean([0.25, None, 0.75], patients=["x", "y", "x"]) == Interval(0.5, None, None, 2, 1, 1)


def test_one_site_has_the_interval_of_its_patients() -> None:
    values = [0.1, 0.4, 0.9, 0.3]
    assert bootstrap_mean(values, ["a"] * 4) == bootstrap_mean(values)


def test_equal_values_have_no_spread() -> None:
    found = bootstrap_mean([0.1] * 7, ["a", "b", "a", "b", "c", "c", "a"])
    assert (found.mean, found.low, found.high) == (0.1, 0.1, 0.1)


def test_equal_calls_give_equal_bounds_and_leave_the_generator_alone() -> None:
    np.random.seed(1)
    state = np.random.get_state()[1].tolist()
    values = np.random.default_rng(1).random(20).tolist()
    assert bootstrap_mean(values) == bootstrap_mean(values)
    assert bootstrap_mean(values) != bootstrap_mean(values, seed=1)
    assert np.random.get_state()[1].tolist() == state


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"groups": ["a"]}, "groups is 1"),
        ({"patients": ["a"]}, "patients is 1"),
        ({"over": "sites"}, "over"),
        ({"level": 1.0}, "level"),
        ({"samples": 0}, "samples"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        bootstrap_mean([0.1, 0.2], **arguments)  # type: ignore[arg-type]


def test_an_infinite_value_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="finite"):
        bootstrap_mean([0.1, math.inf])

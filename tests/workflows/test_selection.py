"""Who takes part in a round: by hand where the policy is certain, by frequency where it draws."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedseg.errors import ConfigurationError
from fedseg.workflows.run.site_selection import SiteFacts
from fedseg.workflows.selection import AllSites, DropSlow, LargestSites, PoissonBySize, RandomSites

SIZES = {"a": 10, "b": 50, "c": 100, "d": 50}
FACTS = {site: SiteFacts(size) for site, size in SIZES.items()}
POLICIES = [AllSites(), LargestSites(2), RandomSites(2), DropSlow(), PoissonBySize()]


def picked(policy, facts=FACTS, seed=0, round_number=0):
    return policy.select(facts, seed, round_number).sites


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: type(p).__name__)
def test_every_site_has_a_reason_and_equal_seeds_give_equal_choices(policy):
    first = policy.select(FACTS, 7, 3)
    again = policy.select(dict(reversed(FACTS.items())), 7, 3)
    assert first == again, "neither time nor the order of the sites decides"
    assert set(first.reasons) == set(FACTS)
    assert all(first.reasons.values())
    assert first.sites == sorted(first.sites)
    assert first.sites


def test_the_largest_sites_and_the_name_where_sizes_are_equal():
    assert picked(LargestSites(2)) == ["b", "c"]
    assert picked(LargestSites(9)) == ["a", "b", "c", "d"]


def test_random_sites_are_all_equally_likely():
    counts = dict.fromkeys(SIZES, 0)
    for number in range(400):
        chosen = picked(RandomSites(2), round_number=number)
        assert len(chosen) == 2
        for site in chosen:
            counts[site] += 1
    # Each site is drawn with probability 1/2: 200 of 400, standard deviation 10.
    assert all(150 < count < 250 for count in counts.values())
    courses = [[picked(RandomSites(2), seed=seed, round_number=n) for n in range(10)] for seed in (1, 2)]
    assert courses[0] != courses[1]


def test_poisson_asks_the_outlier_as_often_as_said():
    # Mean (10 + 50 + 100 + 50) / 4 = 52.5; the .95 quantile of Poisson(52.5) is 65: only c lies above.
    policy = PoissonBySize(0.95, 0.2)
    rounds = [policy.select(FACTS, 0, number) for number in range(500)]
    assert all({"a", "b", "d"} <= set(r.sites) for r in rounds)
    share = sum("c" in r.sites for r in rounds) / 500
    assert 0.13 < share < 0.27, "p = .2, standard deviation .018"
    assert "above 65" in rounds[0].reasons["c"]


def test_poisson_limits():
    assert picked(PoissonBySize(outlier_probability=1.0)) == sorted(SIZES)
    assert all("c" not in picked(PoissonBySize(outlier_probability=0.0), round_number=n) for n in range(50))
    equal = {site: SiteFacts(20) for site in SIZES}
    assert picked(PoissonBySize(outlier_probability=0.0), equal) == sorted(SIZES)


def test_slow_sites_rest_and_come_back():
    # Median of 10, 12, 11, 40 is 11.5; the limit is 23: d rests for two rounds and is asked in the third.
    facts = {s: SiteFacts(5, seconds) for s, seconds in zip("abcd", (10.0, 12.0, 11.0, 40.0), strict=True)}
    policy = DropSlow(2.0, rest=2)
    assert [("d" in picked(policy, facts, round_number=n)) for n in range(6)] == [False, False, True] * 2
    assert picked(DropSlow(), FACTS) == sorted(SIZES), "before the first round nobody is slow"


def test_slow_sites_are_remembered_across_a_resume():
    facts = {s: SiteFacts(5, seconds) for s, seconds in zip("abc", (10.0, 10.0, 99.0), strict=True)}
    policy = DropSlow(2.0, rest=1)
    picked(policy, facts)
    again = DropSlow(2.0, rest=1)
    again.restore(policy.history())
    assert picked(again, facts, round_number=1) == picked(policy, facts, round_number=1) == ["a", "b", "c"]


def test_a_policy_that_leaves_nobody_asks_the_largest_site_and_says_so():
    class Nobody(AllSites):
        def judge(self, facts, draw):
            return dict.fromkeys(facts, (False, "never"))

    chosen = Nobody().select(FACTS, 0, 0)
    assert chosen.sites == ["c"]
    assert "nobody" in chosen.reasons["c"]


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 10**6), min_size=1), st.integers(0, 99))
def test_somebody_is_always_asked(sizes, number):
    facts = {site: SiteFacts(size) for site, size in sizes.items()}
    for policy in POLICIES:
        chosen = policy.select(facts, 1, number)
        assert set(chosen.sites) <= set(facts)
        assert len(chosen.sites) >= 1


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: LargestSites(0), "selection.k"),
        (lambda: RandomSites(1.5), "selection.k"),
        (lambda: DropSlow(1.0), "selection.factor"),
        (lambda: DropSlow(2.0, rest=0), "selection.rest"),
        (lambda: PoissonBySize(1.0), "selection.quantile"),
        (lambda: PoissonBySize(0.9, 1.1), "selection.outlier_probability"),
    ],
)
def test_wrong_arguments_are_refused(build, named):
    with pytest.raises(ConfigurationError, match=named):
        build()

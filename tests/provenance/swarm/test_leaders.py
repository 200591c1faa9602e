"""The order of leaders: a permutation that every site finds, that hangs on all that it is made from, and is fair."""

import hashlib
import json
import math
from collections import Counter
from itertools import permutations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedseg.provenance.swarm.leaders import leader_order

digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
rounds = st.integers(0, 10**6)
sites = st.sets(st.from_regex(r"[a-z][a-z0-9_-]{0,10}", fullmatch=True), min_size=1, max_size=12)


@given(digests, rounds, sites, st.randoms())
def test_it_is_a_permutation_that_no_order_of_the_names_changes(last, number, names, random):
    listed = list(names)
    random.shuffle(listed)
    order = leader_order(last, number, listed)
    assert sorted(order) == sorted(names)
    assert order == leader_order(last, number, sorted(names)) == leader_order(last, number, listed * 2)


@given(digests, rounds, sites, st.data())
def test_an_absent_site_changes_nothing_in_the_order_of_the_others(last, number, names, data):
    present = data.draw(st.sets(st.sampled_from(sorted(names))))
    order = leader_order(last, number, names)
    assert leader_order(last, number, present) == tuple(site for site in order if site in present)


def test_it_can_be_computed_by_hand():
    last, names = "ab" * 32, ["alpha", "beta", "gamma", "delta"]

    def number_of(site):
        text = json.dumps({"last": last, "purpose": "fedseg-swarm-leader-1", "round": 7, "site": site}, sort_keys=True)
        return hashlib.sha256(text.replace(" ", "").encode()).digest()

    assert leader_order(last, 7, names) == tuple(sorted(names, key=number_of))


def test_every_input_plays_a_part():
    """Orders of eight sites: two that have nothing in common are equal once in 40320 times."""
    names, last = [f"site-{number}" for number in range(8)], "0" * 64
    first = leader_order(last, 0, names)
    others = {leader_order(f"{bit:064x}", 0, names) for bit in (1, 2, 1 << 255)}
    others |= {leader_order(last, number, names) for number in (1, 2, 10**6)}
    assert len(others | {first}) == 7
    renamed = leader_order(last, 0, [f"place-{number}" for number in range(8)])
    assert [name.rpartition("-")[2] for name in renamed] != [name.rpartition("-")[2] for name in first]


def test_all_orders_are_about_equally_likely():
    """Pearson's chi-square over the 24 orders of four sites, over last blocks and over rounds: beyond 3 standard
    deviations of its distribution in none of them (the inputs are fixed, so the result is, too)."""
    names, count = ["a", "b", "c", "d"], 12000
    by_digest = Counter(
        leader_order(hashlib.sha256(bytes([n % 256, n // 256])).hexdigest(), 3, names) for n in range(count)
    )
    by_round = Counter(leader_order("5" * 64, number, names) for number in range(count))
    for found in (by_digest, by_round):
        assert set(found) == set(permutations(names))
        statistic = sum((value - count / 24) ** 2 / (count / 24) for value in found.values())
        assert abs(statistic - 23) < 3 * math.sqrt(2 * 23)


def test_no_name_has_an_advantage():
    """Each of five sites of uneven names leads a fifth of the rounds, to within 4 standard deviations."""
    names, count = ["a", "zz", "hospital-0000000000000000000000000000001", "A", "9"], 10000
    led = Counter(leader_order("a" * 64, number, names)[0] for number in range(count))
    assert np.max(np.abs(np.array([led[name] for name in names]) - count / 5)) < 4 * math.sqrt(count * 0.2 * 0.8)

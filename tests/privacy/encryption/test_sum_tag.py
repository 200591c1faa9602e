"""Tags of sums: exact, and fitting for one sum only."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encrypted_sums import terms_of
from fedseg.errors import RefusalError
from fedseg.privacy.encryption.context import EncryptionError, make_contexts, public_context, secret_context
from fedseg.privacy.encryption.sum_tag import ForgedSumError, append_tag, check_tag, exact_product

KEY = secret_context(make_contexts()[0])
PRIME = KEY.parameters.plain_modulus
TERMS = terms_of({"a": 0.5, "b": 0.3, "c": 0.2})
SLOTS = {site: np.random.default_rng(n).integers(-(2**40), 2**40, 70_000) for n, site in enumerate("abc")}
TAGGED = {site: append_tag(SLOTS[site], site, f"drawn by {site}", TERMS, KEY) for site in "abc"}


def drawn(sites):
    return {site: f"drawn by {site}" for site in sites}


def modulo(slots):
    """As a ciphertext holds them: from -t/2 to t/2."""
    rest = np.mod(slots, PRIME)
    return np.where(rest > PRIME // 2, rest - PRIME, rest)


@given(st.integers(1, 2**54 - 1), st.lists(st.tuples(st.integers(0), st.integers(0)), min_size=1, max_size=300))
def test_the_product_is_that_of_whole_numbers_of_any_size(modulus, pairs):
    one, other = (np.array([pair[n] % modulus for pair in pairs], np.int64) for n in range(2))
    assert exact_product(one, other, modulus) == sum(int(a) * int(b) for a, b in zip(one, other, strict=True)) % modulus


def test_the_largest_product_does_not_overflow():
    most = np.full(200_000, PRIME - 1)
    assert exact_product(most, most, PRIME) == 200_000 * (PRIME - 1) ** 2 % PRIME


@pytest.mark.parametrize("sites", ["a", "ab", "abc"])
def test_the_tags_of_sites_add_up_to_that_of_their_sum(sites):
    found = check_tag(modulo(sum(TAGGED[site] for site in sites)), drawn(sites), TERMS, KEY)
    np.testing.assert_array_equal(found, modulo(sum(SLOTS[site] for site in sites)))


@pytest.mark.parametrize("times", [t for t in product(range(-1, 3), repeat=3) if t != (1, 1, 0)])
def test_no_other_combination_of_ciphertexts_has_the_tag_of_a_sum(times):
    other = modulo(sum(factor * TAGGED[site] for factor, site in zip(times, "abc", strict=True)))
    with pytest.raises(ForgedSumError):
        check_tag(other, drawn("ab"), TERMS, KEY)


@pytest.mark.parametrize("place", [0, 12_345, 69_999, 70_000])
def test_no_slot_can_be_changed(place):
    changed = TAGGED["a"] + TAGGED["b"]
    changed[place] += 1
    with pytest.raises(ForgedSumError):
        check_tag(modulo(changed), drawn("ab"), TERMS, KEY)


@pytest.mark.parametrize(
    "change",
    [{"run": "other"}, {"before": "other"}, {"weights": {"a": 0.5, "b": 0.3}}, {"scale": 9.0}, {"mode": "compact"}],
)
def test_a_sum_holds_for_its_terms_only(change):
    with pytest.raises(ForgedSumError):
        check_tag(modulo(TAGGED["a"] + TAGGED["b"]), drawn("ab"), replace(TERMS, **change), KEY)


def test_tags_follow_from_the_key_and_a_server_has_none():
    content, public = make_contexts()
    with pytest.raises(ForgedSumError):
        check_tag(TAGGED["a"], drawn("a"), TERMS, secret_context(content))
    with pytest.raises(EncryptionError, match="no secret key"):
        append_tag(SLOTS["a"], "a", "drawn", TERMS, public_context(public))


@pytest.mark.parametrize(
    ("weights", "counted"),
    [
        ({"a": 0.5, "b": 0.5}, 2),
        ({"a": 1.0, "b": 0.0}, 1),
        ({"a": 0.0, "b": 0.0}, 0),
        ({"a": 0.999, "b": 0.001}, 2),
        ({"a": 0.9991, "b": 0.0009}, 1),
        # A thousandth of what is in the sum, not of one.
        ({"a": 0.0999, "b": 0.0001}, 2),
    ],
)
def test_a_site_counts_with_a_thousandth_of_the_weight(weights, counted):
    terms = terms_of(weights)
    assert terms.counted(weights) == counted
    if counted < 2:
        with pytest.raises(RefusalError, match=rf"updates of {counted} site\(s\)"):
            terms.check_sites(weights, 2)
    else:
        terms.check_sites(weights, 2)

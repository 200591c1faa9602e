from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import tenseal as ts
from hypothesis import given, settings
from hypothesis import strategies as st
from tenseal.sealapi import PlainModulus

from encrypted_sums import sum_of, terms_of
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.privacy.encryption.ciphertexts import Ciphertexts, CiphertextSum, decrypt, encrypt, read_ciphertexts
from fedseg.privacy.encryption.context import (
    EncryptionContext,
    EncryptionError,
    make_contexts,
    public_context,
    secret_context,
    security_bits,
)
from fedseg.privacy.encryption.encrypt_update import decrypt_update, encrypt_update
from fedseg.privacy.encryption.fixed_point import MODES, FixedPoint, choose_fields

SITE, SERVER = make_contexts()
SECRET, PUBLIC = secret_context(SITE), public_context(SERVER)
PRIME, MAX_SITES = SECRET.parameters.plain_modulus, SECRET.parameters.max_sites
SYMMETRIC = ts.ENCRYPTION_TYPE.SYMMETRIC


# ------------------------------------------------------------------ parameters


@pytest.mark.parametrize(
    ("degree", "bits_128", "bits_192", "bits_256"),
    [
        # Table 1 of the standard, ternary secret: the largest log2 q.
        (1024, 27, 19, 14),
        (2048, 54, 37, 29),
        (4096, 109, 75, 58),
        (8192, 218, 152, 118),
        (16384, 438, 305, 237),
        (32768, 881, 611, 476),
    ],
)
def test_security_follows_the_table_of_the_standard(degree, bits_128, bits_192, bits_256):
    assert [security_bits(degree, bits) for bits in (bits_128, bits_192, bits_256)] == [128, 192, 256]
    assert security_bits(degree, bits_128 + 1) == 0
    assert security_bits(degree, bits_192 + 1) == 128
    assert security_bits(degree, bits_256 + 1) == 192


def test_a_degree_that_the_standard_does_not_list_is_not_safe():
    assert security_bits(512, 10) == 0


@pytest.mark.parametrize("content", [SITE, SERVER])
def test_the_contexts_have_the_security_that_their_own_parameters_give(content):
    # Read back by TenSEAL from what is written to disk, without a constant of ours; then looked up by hand:
    # degree 4096 and at most 75 bits are 192-bit security, and so at least the 128 that are asked for.
    native = ts.context_from(content).seal_context().data.key_context_data()
    degree, bits = native.parms().poly_modulus_degree(), native.total_coeff_modulus_bit_count()
    assert (degree, bits <= 75) == (4096, True)
    assert EncryptionContext(content).parameters.security_bits == security_bits(degree, bits) >= 128


def test_the_parameters_are_those_of_the_ciphertexts():
    parameters = SECRET.parameters
    assert parameters == PUBLIC.parameters
    assert parameters.plain_modulus == PlainModulus.Batching(4096, 46).value()
    assert parameters.plain_modulus % (2 * parameters.degree) == parameters.ciphertext_modulus % 8192 == 1
    assert parameters.ciphertext_modulus.bit_length() == 57


def test_the_number_of_sites_that_noise_allows():
    # N (21 + 1/2) t / q < 1/2, in exact arithmetic.
    def part(sites):
        return sites * Fraction(43, 2) * PRIME / SECRET.parameters.ciphertext_modulus

    assert part(MAX_SITES) < Fraction(1, 2) <= part(MAX_SITES + 1)
    assert MAX_SITES == 47


def test_the_server_has_no_key_and_a_site_has_one():
    assert (SECRET.is_secret, PUBLIC.is_secret) == (True, False)
    assert len(SERVER) < 200 < len(SITE)
    with pytest.raises(EncryptionError, match="must not be at the server"):
        public_context(SITE)
    with pytest.raises(EncryptionError, match="the server's, not a site's"):
        secret_context(SERVER)
    with pytest.raises(ValueError, match="secret_key"):
        ts.bfv_vector_from(PUBLIC.native, encrypt(np.arange(3), SECRET).blocks[0]).decrypt()


def test_keys_are_told_apart_by_name():
    assert SECRET.key == secret_context(SITE).key
    assert SECRET.key != secret_context(make_contexts()[0]).key
    assert PUBLIC.key == ""


def context_of(scheme=ts.SCHEME_TYPE.BFV, degree=4096, bits=(57, 16), **kwargs):
    if scheme is ts.SCHEME_TYPE.BFV:
        kwargs.setdefault("plain_modulus", PRIME)
    native = ts.context(scheme, degree, coeff_mod_bit_sizes=list(bits), encryption_type=SYMMETRIC, **kwargs)
    return native.serialize(False, True, False, False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"nothing of the kind", "cannot be read"),
        (SITE[:-10], "cannot be read"),
        (context_of(ts.SCHEME_TYPE.CKKS, 8192, (60, 40, 40)), "not one of BFV"),
        (context_of(degree=8192, bits=(60, 40, 40)), "not one of BFV"),
        (context_of(plain_modulus=2**30), "not one of BFV"),
        (context_of(bits=(50, 16)), "no room"),
    ],
)
def test_contexts_that_cannot_be_used_are_refused(content, message):
    with pytest.raises(EncryptionError, match=message):
        EncryptionContext(content)


def test_a_context_below_128_bits_is_refused(monkeypatch):
    # TenSEAL itself makes none, so the standard is made stricter than our parameters instead.
    weak = {128: lambda degree: 72, 192: lambda degree: 60, 256: lambda degree: 50}
    monkeypatch.setattr("fedseg.privacy.encryption.context._LEVELS", dict(reversed(weak.items())))
    with pytest.raises(EncryptionError, match="less than 128 bits of security: degree 4096 with a modulus of 73 bits"):
        EncryptionContext(SITE)


# ----------------------------------------------------------------- fixed point


def test_fields_of_a_slot_by_hand():
    # t = 343 = 7^3: three digits from -3 to 3. Two sites: half = floor((3 - 1) (1 - 1e-8)) = 1.
    point = FixedPoint(sites=2, fields=3, plain_modulus=343)
    assert (point.base, point.half, point.error) == (7, 1, 1.0)
    # Three numbers with weight 1 and scale 1: digits 1, -1, 0 -> 1 + 7 (-1) + 49 * 0.
    assert point.encode(np.array([1.0, -1.0, 0.2]), 1.0, 1.0).tolist() == [-6]
    # Two slots: numbers 0, 2, 4 share the first (fields are blocks of the vector), and what is missing is zero.
    assert point.encode(np.array([1.0, 0, -1, 0, 1.0]), 1.0, 1.0).tolist() == [1 - 7 + 49, 0]
    # 3 - 7 * 2 + 49 * (-3) = -158: digits back.
    assert point.decode(np.array([-158]), 3, 1.0).tolist() == [3.0, -2.0, -3.0]


@settings(max_examples=300)
@given(
    st.data(),
    st.sampled_from([1, 2, 3, 4]),
    st.integers(1, MAX_SITES),
    st.floats(1e-12, 1e6),
)
def test_no_field_reaches_into_another_whatever_the_sites_send(data, fields, sites, scale):
    """Sums of slots against sums of numbers, with values at the ends of the range more often than anywhere else."""
    point = FixedPoint(sites, fields, PRIME)
    count = data.draw(st.integers(1, 3 * fields))
    shares = np.array(data.draw(st.lists(st.floats(0, 1), min_size=sites, max_size=sites)))
    weights = shares / shares.sum() if shares.sum() > 0 else np.full(sites, 1 / sites)
    part = st.one_of(st.sampled_from([-1.0, 1.0, 0.0]), st.floats(-1, 1))
    values = scale * np.array([data.draw(st.lists(part, min_size=count, max_size=count)) for _ in range(sites)])
    slots = [point.encode(v, float(w), scale) for v, w in zip(values, weights, strict=True)]
    total = sum(slots)
    assert all(abs(slot) <= (PRIME - 1) // 2 for slot in total.tolist())
    expected = weights @ values
    # Besides the fixed point there is only the rounding of float64 in the sum that it is compared with.
    assert np.abs(point.decode(total, count, scale) - expected).max() <= (point.error + 1e-15 * sites) * scale


def test_sums_at_the_ends_of_the_range_are_exact():
    for fields in (1, 2, 3):
        point = FixedPoint(MAX_SITES, fields, PRIME)
        values = np.array([1.0, -1.0] * fields)
        total = sum(point.encode(values, 1 / MAX_SITES, 1.0) for _ in range(MAX_SITES))
        assert np.abs(point.decode(total, values.size, 1.0) - values).max() <= point.error


@pytest.mark.parametrize(
    ("mode", "sites", "fields"),
    [
        ("compact", 1, 3),
        ("compact", 8, 3),  # 8 / (2 half) with half = (41285 - 1)/2 - 4: 1.94e-4
        ("compact", 9, 2),  # three fields would err by 2.2e-4
        ("compact", 47, 2),
        ("exact", 8, 2),  # 8 / (8388607 - 9): 9.5e-7
        ("exact", 9, 1),
        ("exact", 47, 1),
    ],
)
def test_as_many_fields_as_the_error_of_the_mode_allows(mode, sites, fields):
    point = choose_fields(mode, sites, PRIME, MAX_SITES)
    assert point.fields == fields
    assert point.error <= MODES[mode]
    assert FixedPoint(sites, fields + 1, PRIME).error > MODES[mode]


def test_the_errors_of_the_modes():
    assert MODES == {"compact": 2e-4, "exact": 1e-6}


def test_unknown_modes_and_too_many_sites_are_refused():
    with pytest.raises(ConfigurationError, match=r"mode is 'small', but must be one of \['compact', 'exact'\]"):
        choose_fields("small", 2, PRIME, MAX_SITES)
    for sites in (0, 48, True, 2.0):
        with pytest.raises(ConfigurationError, match="from 1 to 47, for an exact sum"):
            choose_fields("exact", sites, PRIME, MAX_SITES)


@pytest.mark.parametrize(
    ("values", "weight", "scale"),
    [
        ([1.1], 0.5, 1.0),
        ([-1.1], 0.5, 1.0),
        ([np.nan], 0.5, 1.0),
        ([np.inf], 0.5, 1.0),
        ([0.5], 1.01, 1.0),
        ([0.5], -0.1, 1.0),
        ([0.5], np.nan, 1.0),
        ([0.0], 0.5, 0.0),
        ([0.5], 0.5, np.inf),
        ([0.5], 0.5, np.nan),
    ],
)
def test_what_would_leave_its_field_is_refused(values, weight, scale):
    with pytest.raises(RefusalError) as refusal:
        FixedPoint(2, 2, PRIME).encode(np.array(values), weight, scale)
    assert refusal.value.reason == "privacy"


# ------------------------------------------------------------------ ciphertexts


def test_as_many_sites_as_are_allowed_add_up_exactly():
    generator = np.random.default_rng(0)
    most = (PRIME - 1) // 2 // MAX_SITES
    vectors = generator.integers(-most, most + 1, (MAX_SITES, 2 * 4096))
    vectors[:, :2] = most, -most
    total = CiphertextSum(2, PUBLIC)
    for vector in vectors:
        total.add(encrypt(vector, SECRET))
    np.testing.assert_array_equal(decrypt(total.result(), SECRET), vectors.sum(0))
    with pytest.raises(EncryptionError, match="No more than 47"):
        total.add(encrypt(vectors[0], SECRET))


def test_equal_numbers_give_different_ciphertexts():
    one, other = encrypt(np.zeros(5, np.int64), SECRET), encrypt(np.zeros(5, np.int64), SECRET)
    assert one.blocks[0] != other.blocks[0]


def test_another_key_decrypts_to_noise():
    other = secret_context(make_contexts()[0])
    assert np.abs(decrypt(encrypt(np.ones(4096, np.int64), SECRET), other)).min() > 1


def test_the_form_in_which_ciphertexts_travel():
    ciphertexts = encrypt(np.arange(5000), SECRET)
    arrays = ciphertexts.to_arrays()
    assert {name: (array.dtype, array.ndim) for name, array in arrays.items()} == dict.fromkeys(
        ("ciphertexts", "lengths"), (np.uint8, 1)
    )
    assert arrays["ciphertexts"].size == ciphertexts.nbytes == arrays["lengths"].view("<u4").sum()
    assert read_ciphertexts(arrays) == ciphertexts


GOOD = encrypt(np.arange(5000), SECRET).to_arrays()


def lengths(*values):
    return np.array(values, "<u4").view(np.uint8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"more": np.zeros(1)}, "not those of ciphertexts"),
        ({"ciphertexts": GOOD["ciphertexts"].astype(np.int64)}, "another type"),
        ({"ciphertexts": GOOD["ciphertexts"].reshape(1, -1)}, "another type or shape"),
        ({"lengths": GOOD["lengths"].astype(np.float64)}, "another type"),
        ({"lengths": GOOD["lengths"][:-1]}, "another type or shape"),
        ({"lengths": GOOD["lengths"][:-4]}, "do not add up"),
        ({"lengths": lengths(GOOD["ciphertexts"].size, 0)}, "do not add up"),
        ({"lengths": lengths()}, "do not add up"),
        ({"lengths": lengths(GOOD["ciphertexts"].size + 1, 2**32 - 1)}, "do not add up"),
    ],
)
def test_arrays_that_are_no_ciphertexts_are_refused(changes, message):
    with pytest.raises(RefusalError, match=message):
        read_ciphertexts({**GOOD, **changes})


def of_other_parameters() -> bytes:
    """A block of a context whose slots have another modulus."""
    native = ts.context_from(context_of(plain_modulus=PlainModulus.Batching(4096, 40).value()))
    return ts.bfv_vector(native, [0] * 4096).serialize()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda blocks: blocks[:1],
        lambda blocks: (*blocks, blocks[0]),
        lambda blocks: (blocks[0], blocks[1][:-7]),
        lambda blocks: (blocks[0], b"no ciphertext"),
        lambda blocks: (blocks[0], of_other_parameters()),
        lambda blocks: (blocks[0], b"\x0a\x02\x80\x20"),  # 4096 slots by its own account, and no ciphertext
        lambda blocks: (blocks[0], ts.bfv_vector(SECRET.native, [1, 2]).serialize()),
        lambda blocks: (blocks[0], ts.bfv_vector(SECRET.native, list(range(5000))).serialize()),
    ],
)
def test_what_is_no_ciphertext_is_left_out_and_spoils_nothing(spoil):
    total = CiphertextSum(2, PUBLIC)
    good = np.arange(8192)
    total.add(encrypt(good, SECRET))
    with pytest.raises(RefusalError) as refusal:
        total.add(Ciphertexts(tuple(spoil(encrypt(good, SECRET).blocks))))
    assert refusal.value.reason == "privacy"
    total.add(encrypt(good, SECRET))
    assert total.count == 2
    np.testing.assert_array_equal(decrypt(total.result(), SECRET), 2 * good)


def test_a_sum_of_nothing_is_refused():
    with pytest.raises(EncryptionError, match="no ciphertexts"):
        CiphertextSum(1, PUBLIC).result()


# ---------------------------------------------------------------------- updates


def make_update(seed: int, size: float = 1.0):
    generator = np.random.default_rng(seed)
    shapes = {"b.weight": (7, 5, 3), "a.weight": (4000,), "c.scalar": ()}
    return {name: (size * generator.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}


def largest(updates):
    return max(float(np.abs(value).max()) for update in updates for value in update.values())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sites", [1, 4, 12])
def test_the_decrypted_sum_is_the_weighted_mean(mode, sites):
    names = [f"site-{number}" for number in range(sites)]
    updates = {name: make_update(number, 10.0**-number) for number, name in enumerate(names)}
    weights = dict(zip(names, np.random.default_rng(1).dirichlet(np.ones(sites)), strict=True))
    terms = terms_of(weights, scale=largest(updates.values()), mode=mode)
    mean = decrypt_update(*_decryptable(updates, terms))
    for array in updates[names[0]]:
        expected = sum(weights[name] * updates[name][array].astype(np.float64) for name in names)
        assert mean[array].shape == updates[names[0]][array].shape
        assert np.abs(mean[array] - expected).max() <= MODES[mode] * terms.scale


def _decryptable(updates, terms):
    total, nonces = sum_of(updates, terms, SECRET)
    return total, next(iter(updates.values())), nonces, terms, SECRET


def test_a_site_that_drops_out_is_made_up_for_by_its_weight():
    # Weights 0.5, 0.3, 0.2; b never arrives: (0.5 a + 0.2 c) / 0.7.
    updates = {name: make_update(number) for number, name in enumerate("abc")}
    terms = terms_of({"a": 0.5, "b": 0.3, "c": 0.2}, scale=largest(updates.values()))
    mean = decrypt_update(*_decryptable({name: updates[name] for name in "ca"}, terms))
    for name, value in mean.items():
        expected = (0.5 * updates["a"][name].astype(np.float64) + 0.2 * updates["c"][name]) / 0.7
        assert np.abs(value - expected).max() <= 1e-6 * terms.scale / 0.7


@pytest.mark.parametrize("weight", [0.0, -0.5, 1.1, float("nan")])
def test_a_sum_with_impossible_weights_is_refused(weight):
    total, like, nonces, terms, key = _decryptable({"a": make_update(0)}, terms_of({"a": 0.5}))
    with pytest.raises(EncryptionError, match="but must be from 0 to 1"):
        decrypt_update(total, like, nonces, replace(terms, weights={"a": weight}), key)


def test_a_sum_of_another_network_is_refused():
    total, _, nonces, terms, key = _decryptable({"a": make_update(0)}, terms_of({"a": 0.5}))
    with pytest.raises(EncryptionError, match="another size"):
        decrypt_update(total, {"a": np.zeros(100_000)}, nonces, terms, key)


@pytest.mark.parametrize(("mode", "sites", "most"), [("compact", 8, 8), ("compact", 47, 8), ("exact", 47, 15.5)])
def test_bytes_a_parameter_on_the_wire(mode, sites, most):
    point = choose_fields(mode, sites, PRIME, MAX_SITES)
    count = (20 * 4096 - 1) * point.fields
    update = {"weight": np.random.default_rng(0).standard_normal(count).astype(np.float32)}
    terms = terms_of({f"site-{number}": 1 / sites for number in range(sites)}, mode=mode)
    sent = encrypt_update(update, "site-0", "drawn", terms, SECRET).to_arrays()
    assert sum(array.nbytes for array in sent.values()) <= most * count


def test_nothing_is_printed(capfd):
    decrypt(encrypt(np.arange(20_000), SECRET), SECRET)
    assert capfd.readouterr() == ("", "")

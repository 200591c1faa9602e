"""A run's own key: it follows from the sites' key, opens that run, and nothing else."""

import hashlib

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from encrypted_sums import terms_of
from fedseg.privacy.encryption.ciphertexts import CiphertextSum, decrypt, encrypt
from fedseg.privacy.encryption.context import EncryptionError, make_contexts, public_context, secret_context
from fedseg.privacy.encryption.encrypt_update import decrypt_update, encrypt_update
from fedseg.privacy.encryption.run_key import run_context
from fedseg.privacy.encryption.sum_tag import ForgedSumError

SITE, SERVER = make_contexts()
SLOTS = np.random.default_rng(1).integers(-(2**40), 2**40, 9000)


def polynomial(context):
    """The secret key as SEAL has read it, for all primes one after the other."""
    data = context.native.secret_key().data.data()
    return [int(data.data(place)) for place in range(data.coeff_count())]


def primes(context):
    return [int(each.value()) for each in context.native.seal_context().data.key_context_data().parms().coeff_modulus()]


def test_all_sites_have_the_same_key_of_a_run_and_other_keys_of_other_runs():
    one, other = secret_context(SITE), secret_context(SITE)
    sent = encrypt(SLOTS, one.of_run("a"))
    np.testing.assert_array_equal(decrypt(sent, other.of_run("a"))[: SLOTS.size], SLOTS)
    for stranger in (other, other.of_run("b"), secret_context(make_contexts()[0]).of_run("a")):
        found = decrypt(sent, stranger)[: SLOTS.size]
        assert (found == SLOTS).sum() < 5, "noise"
    assert one.of_run("a") is one.of_run("a")
    assert len({tuple(polynomial(context)) for context in (one, one.of_run("a"), one.of_run("b"))}) == 3


def test_the_key_is_uniform_below_each_prime():
    context = secret_context(SITE)
    found, degree = np.array(polynomial(context.of_run("a")), np.uint64), context.parameters.degree
    assert found.size == degree * len(primes(context))
    for row, prime in zip(found.reshape(-1, degree), primes(context), strict=True):
        assert row.max() < prime
        # Sixteen equal parts hold 256 of 4096 numbers each; chi-square with 15 degrees of freedom, p = 1e-9.
        counts = np.bincount((row.astype(float) * 16 / prime).astype(int), minlength=16)
        assert ((counts - 256) ** 2 / 256).sum() < 75


def test_the_key_is_the_stream_of_a_cipher_read_as_numbers_below_the_primes():
    """A slow reading of the same stream, one number after the other."""
    context, seed = secret_context(SITE), hashlib.sha256(b"seed").digest()
    names, moduli = context.native.seal_context().data.key_parms_id(), primes(context)
    degree = context.parameters.degree
    made = secret_context(run_context(SITE, seed, moduli, degree, names))
    stream = Cipher(algorithms.ChaCha20(seed, bytes(16)), mode=None).encryptor()
    expected = []
    for prime in moduli:
        row = []
        while len(row) < degree:
            block = stream.update(bytes(16 * degree))
            for place in range(0, len(block), 8):
                value = int.from_bytes(block[place : place + 8], "little") % 2 ** prime.bit_length()
                if value < prime and len(row) < degree:
                    row.append(value)
        expected += row
    assert polynomial(made) == expected


def test_sums_of_as_many_sites_as_there_may_be_are_exact_under_a_runs_key():
    """The server's context, which has no key, adds them as it adds those of the sites' own key."""
    context, server = secret_context(SITE).of_run("a"), public_context(SERVER)
    assert context.parameters == server.parameters == secret_context(SITE).parameters
    total = CiphertextSum(3, server)
    most = server.parameters.plain_modulus // 2 // server.parameters.max_sites
    vectors = np.random.default_rng(2).integers(-most, most, (server.parameters.max_sites, 9000))
    for vector in vectors:
        total.add(encrypt(vector, context))
    np.testing.assert_array_equal(decrypt(total.result(), context)[:9000], vectors.sum(0))


def test_whoever_has_the_key_of_a_run_reads_that_run_and_learns_nothing_of_another():
    context, terms = secret_context(SITE), terms_of({"a": 0.5, "b": 0.5})
    update, nonces = {"w": np.linspace(-0.5, 0.5, 50)}, {"a": "drawn by a", "b": "drawn by b"}
    total = CiphertextSum(1, public_context(SERVER))
    for site, nonce in nonces.items():
        total.add(encrypt_update(update, site, nonce, terms, context))
    opened = decrypt_update(total.result(), update, nonces, terms, context)
    np.testing.assert_allclose(opened["w"], update["w"], atol=1e-3)
    of_run, point = context.of_run(terms.run), terms.point(context)
    slots = decrypt(total.result(), of_run)[: point.slots(50)]
    np.testing.assert_allclose(point.decode(slots, 50, terms.scale), update["w"], atol=1e-3)
    # The key of a run is no key of sites: nothing that follows from it is what follows from theirs.
    assert of_run.derive(b"x") != context.derive(b"x")
    with pytest.raises(ForgedSumError):
        decrypt_update(total.result(), update, nonces, terms, of_run)


def test_a_server_has_no_key_of_any_run():
    with pytest.raises(EncryptionError, match="no secret key"):
        public_context(SERVER).of_run("a")


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, SERVER, SITE[: len(SITE) // 2], SITE[:-1]])
def test_what_is_no_context_of_sites_gives_none_of_a_run(content):
    with pytest.raises(ValueError, match=r"cut off|no serialised|unpack"):
        run_context(content, bytes(32), [12289], 4096, (1, 2, 3, 4))

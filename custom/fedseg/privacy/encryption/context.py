"""Keys and parameters of the homomorphic encryption: what the sites share, what the server may have, how safe it is.

The scheme is BFV (Fan and Vercauteren, IACR ePrint 2012/144) in TenSEAL's symmetric form. All sites share one secret
key; the server has the parameters only, with which it can add ciphertexts and nothing else. BFV is exact: a decrypted
sum shows nothing of the noise, which CKKS leaves in its results (Li and Micciancio, EUROCRYPT 2021).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from dataclasses import dataclass
from pathlib import Path

import tenseal as ts
from tenseal.sealapi import PlainModulus, util

from fedseg.errors import FedsegError
from fedseg.privacy.encryption.run_key import run_context

LEAST_SECURITY = 128
# Beside the server's context: the short name of the sites' key, so that the server knows a ciphertext of another one.
KEY_NAME_FILE = "encryption_key_name.txt"
_DEGREE = 4096
# The first prime is the ciphertexts' modulus. The second exists because TenSEAL insists on keys for multiplications;
# nothing is encrypted under it, and being small it costs the least security.
_MODULUS_BITS = (57, 16)
_PLAIN_BITS = 46
# Largest coefficient of a fresh ciphertext's noise: SEAL draws from a centred binomial distribution on 42 bits.
_LARGEST_NOISE = 21
_LEVELS = {
    256: util.seal_he_std_parms_256_tc,
    192: util.seal_he_std_parms_192_tc,
    128: util.seal_he_std_parms_128_tc,
}


class EncryptionError(FedsegError):
    """Keys, parameters or ciphertexts cannot be used. The text names no file, so that it may leave a site."""


def security_bits(degree: int, modulus_bits: int) -> int:
    """Classical security of ring learning with errors with a ternary secret, by the homomorphic encryption standard.

    The standard (Albrecht et al. 2018, table 1) gives the largest modulus of each degree for 128, 192 and 256 bits.

    Args:
        degree: of the polynomials, n.
        modulus_bits: bits of the whole coefficient modulus, log2 q.

    Returns:
        256, 192 or 128; 0 for less, and for degrees that the standard does not list.
    """
    return next((bits for bits, largest in _LEVELS.items() if modulus_bits <= largest(degree)), 0)


@dataclass(frozen=True)
class Parameters:
    """Parameters as a context holds them.

    Attributes:
        degree: of the polynomials, which is also the number of slots of a ciphertext.
        modulus_bits: bits of the whole coefficient modulus; decides the security.
        ciphertext_modulus: the prime q under which ciphertexts live; decides their size.
        plain_modulus: slots hold integers modulo this odd prime.
    """

    degree: int
    modulus_bits: int
    ciphertext_modulus: int
    plain_modulus: int

    @property
    def security_bits(self) -> int:
        """See the function of this name."""
        return security_bits(self.degree, self.modulus_bits)

    @property
    def max_sites(self) -> int:
        """How many fresh ciphertexts can be added so that the sum decrypts exactly, whatever the noise was.

        A sum of N decrypts exactly if N (B + 1/2) t / q < 1/2, with B the largest noise and 1/2 for the rounding of
        q m / t.
        """
        room = (self.ciphertext_modulus - 1) // self.plain_modulus
        return room // (2 * _LARGEST_NOISE + 1)


class EncryptionContext:
    """TenSEAL's context, checked: BFV, symmetric, and at least 128 bits of security by the parameters in it.

    Attributes:
        parameters: read back from the context.
        key: short name of the secret key, by which sites and files are compared: a hash of a context that holds one,
            from which the key cannot be found; empty without a key.
        native: TenSEAL's object.
    """

    def __init__(self, content: bytes) -> None:
        """Read a serialised context.

        Args:
            content: as ``make_contexts`` gives it.

        Raises:
            EncryptionError: it is damaged, of another scheme, or below 128 bits.
        """
        try:
            self.native: ts.Context = ts.context_from(content, n_threads=1)
            data = self.native.seal_context().data
            keys, fresh = data.key_context_data(), data.first_context_data()
            degree, threshold = keys.parms().poly_modulus_degree(), keys.plain_upper_half_threshold()
        except (ValueError, RuntimeError, TypeError) as error:
            raise EncryptionError(f"The encryption context cannot be read ({error}).") from None
        # CKKS has no plain modulus, and says 2^63 for its half.
        if threshold >= 2**62 or not keys.qualifiers().using_batching or fresh.total_coeff_modulus_bit_count() > 60:
            raise EncryptionError("The encryption context is not one of BFV with slots, and ciphertexts of one prime.")
        self.parameters = Parameters(
            degree, keys.total_coeff_modulus_bit_count(), fresh.total_coeff_modulus(), 2 * threshold - 1
        )
        if self.parameters.security_bits < LEAST_SECURITY:
            raise EncryptionError(
                f"The encryption context has less than {LEAST_SECURITY} bits of security: degree "
                f"{self.parameters.degree} with a modulus of {self.parameters.modulus_bits} bits."
            )
        if self.parameters.max_sites < 2:
            raise EncryptionError("The encryption context leaves no room to add the updates of two sites.")
        self.key = hashlib.sha256(content).hexdigest()[:16] if self.native.is_private() else ""
        self._secret = hmac.digest(content, b"keys of sums", "sha256") if self.native.is_private() else b""
        self._content = content if self.native.is_private() else b""
        self._of_runs: dict[str, EncryptionContext] = {}

    @property
    def is_secret(self) -> bool:
        """Whether it holds the secret key."""
        return bool(self.key)

    def derive(self, purpose: bytes) -> bytes:
        """32 bytes that follow from the secret key and a purpose, and tell nothing of either.

        Raises:
            EncryptionError: there is no secret key.
        """
        if not self._secret:
            raise EncryptionError("The encryption context holds no secret key; only a site's does.")
        return hmac.digest(self._secret, purpose, "sha256")

    def of_run(self, run: str) -> EncryptionContext:
        """The context of one run, whose secret key follows from this one; see ``run_key``.

        A ciphertext of another run is noise under it, and whoever has it reads this run and no other one.

        Raises:
            EncryptionError: there is no secret key.
        """
        if run not in self._of_runs:
            seed, data = self.derive(json.dumps(["key of a run", run]).encode()), self.native.seal_context().data
            parms, names = data.key_context_data().parms(), data.key_parms_id()
            primes = [int(prime.value()) for prime in parms.coeff_modulus()]
            content = run_context(self._content, seed, primes, parms.poly_modulus_degree(), names)
            self._of_runs = {run: EncryptionContext(content)}
        return self._of_runs[run]


def secret_context(content: bytes) -> EncryptionContext:
    """A site's context.

    Raises:
        EncryptionError: see ``EncryptionContext``, or it holds no secret key.
    """
    context = EncryptionContext(content)
    if not context.is_secret:
        raise EncryptionError("The encryption context holds no secret key; it is the server's, not a site's.")
    return context


def public_context(content: bytes) -> EncryptionContext:
    """The server's context.

    Raises:
        EncryptionError: see ``EncryptionContext``, or it holds the secret key, which the server must never have.
    """
    context = EncryptionContext(content)
    if context.is_secret:
        raise EncryptionError("The encryption context holds the secret key. It must not be at the server: remove it.")
    return context


def write_key(path: Path, content: bytes) -> None:
    """Write a context or what belongs to it: for its owner only, from the first byte on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)


def make_contexts() -> tuple[bytes, bytes]:
    """A new secret key: the context of all sites, and the server's, which holds the parameters only."""
    context = ts.context(
        ts.SCHEME_TYPE.BFV,
        poly_modulus_degree=_DEGREE,
        plain_modulus=_packing_prime(_PLAIN_BITS, _DEGREE),
        coeff_mod_bit_sizes=list(_MODULUS_BITS),
        encryption_type=ts.ENCRYPTION_TYPE.SYMMETRIC,
        n_threads=1,
    )
    parts = {"save_public_key": False, "save_galois_keys": False, "save_relin_keys": False}
    return context.serialize(save_secret_key=True, **parts), context.serialize(save_secret_key=False, **parts)


def _packing_prime(bits: int, degree: int) -> int:
    """The largest prime below 2^bits that is 1 modulo 2n, so that a plaintext falls into n slots."""
    return int(PlainModulus.Batching(degree, bits).value())

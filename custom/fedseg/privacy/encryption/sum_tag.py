"""How a site tells the sum of a round's updates from every other ciphertext: a tag in each update, added with it.

A ciphertext of BFV can be changed by everybody who has it. So each site appends to its slots x a tag <r, x> + p modulo
the plain modulus t. The coefficients r and the pad p follow from the sites' key: r from what all sites of the sum were
told, p from that, the site's name and a number that is drawn for this ciphertext and no other. Whoever adds ciphertexts
adds the tags. A sum whose tag is not <r, sum of x> plus the pads of its sites is something else: one site's update
alone, a sum of an earlier round or of another run, one in which a site counts twice. Without the key a tag that fits is
found with a probability of 1/t (Agrawal and Boneh, "Homomorphic MACs: MAC-based integrity for network coding", ACNS
2009). Slots cannot be moved without keys that nobody makes, so ciphertexts give no help.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from fedseg.errors import RefusalError
from fedseg.privacy.encryption.context import EncryptionContext
from fedseg.privacy.encryption.fixed_point import FixedPoint, choose_fields

LEAST_SITES = 2
"""The sum of fewer ciphertexts is a site's own update, which every other site could read."""
LEAST_SHARE = 1e-3
"""A site with a smaller part of a sum's weight does not count: what is left of the sum is the other sites' update."""


class ForgedSumError(RefusalError):
    """A ciphertext is not the sum that it is said to be."""

    def __init__(self) -> None:
        text = "The encrypted sum is not what the sites of that round encrypted for it; nothing was made of it."
        super().__init__("privacy", text)


@dataclass(frozen=True)
class SumTerms:
    """What all sites of a sum were told, and encrypt for; a sum holds for these terms only.

    Attributes:
        run: id of the run.
        before: id of the model that the sites trained from, and to which the sum is added.
        weights: of all sites that are asked for ciphertexts.
        scale: largest absolute value of all sites' updates.
        mode: one of ``fixed_point.MODES``.
    """

    run: str
    before: str
    weights: Mapping[str, float]
    scale: float
    mode: str

    def point(self, context: EncryptionContext) -> FixedPoint:
        """How the numbers lie in the slots.

        Raises:
            ConfigurationError: see ``choose_fields``.
        """
        parameters = context.parameters
        return choose_fields(self.mode, len(self.weights), parameters.plain_modulus, parameters.max_sites)

    def weight(self, sites: Collection[str]) -> float:
        """Sum of the weights of these sites."""
        return math.fsum(self.weights[site] for site in sites)

    def counted(self, sites: Collection[str]) -> int:
        """How many of these sites have a weight that counts, see ``LEAST_SHARE``."""
        least = LEAST_SHARE * self.weight(sites)
        return sum(0 < self.weights[site] >= least for site in sites)

    def check_sites(self, sites: Collection[str], least: int) -> None:
        """Refuse a sum of too few sites.

        Raises:
            RefusalError: fewer than ``least`` of these sites count (reason ``privacy``).
        """
        if (counted := self.counted(sites)) < least:
            raise RefusalError(
                "privacy",
                f"The sum would hold the updates of {counted} site(s) with a weight that counts, but this site takes "
                f"part in, and decrypts, sums of {least} at least.",
            )


def append_tag(slots: np.ndarray, site: str, nonce: str, terms: SumTerms, context: EncryptionContext) -> np.ndarray:
    """A site's slots with their tag behind them.

    Args:
        slots: int64, of one site.
        site: its name.
        nonce: drawn for this ciphertext only.
        terms: what the site was told.
        context: with the secret key.
    """
    modulus = context.parameters.plain_modulus
    tag = (_product(slots, terms, context) + _pad(site, nonce, terms, context)) % modulus
    return np.append(slots, tag - modulus if tag > modulus // 2 else tag)


def check_tag(slots: np.ndarray, nonces: Mapping[str, str], terms: SumTerms, context: EncryptionContext) -> np.ndarray:
    """The slots of a decrypted sum without their tag.

    Args:
        slots: int64, of the sum, the tag last.
        nonces: of the sites that are said to be in it.
        terms: what these sites were told.
        context: with the secret key.

    Raises:
        ForgedSumError: it is another sum.
    """
    expected = _product(slots[:-1], terms, context) + sum(_pad(*each, terms, context) for each in nonces.items())
    if (expected - int(slots[-1])) % context.parameters.plain_modulus:
        raise ForgedSumError
    return slots[:-1]


def _pad(site: str, nonce: str, terms: SumTerms, context: EncryptionContext) -> int:
    return int.from_bytes(context.derive(_text("pad", terms, site, nonce)), "big") % context.parameters.plain_modulus


def _text(purpose: str, terms: SumTerms, *words: str) -> bytes:
    return json.dumps([purpose, {**asdict(terms), "weights": dict(terms.weights)}, *words], sort_keys=True).encode()


def _product(slots: np.ndarray, terms: SumTerms, context: EncryptionContext) -> int:
    """The slots times the coefficients that follow from the terms, summed exactly."""
    modulus = context.parameters.plain_modulus
    stream = Cipher(algorithms.ChaCha20(context.derive(_text("coefficients", terms)), bytes(16)), mode=None)
    coefficients = np.frombuffer(stream.encryptor().update(bytes(8 * slots.size)), "<u8") % np.uint64(modulus)
    return exact_product(np.mod(slots, modulus), coefficients.astype(np.int64), modulus)


def exact_product(one: np.ndarray, other: np.ndarray, modulus: int) -> int:
    """The inner product of two vectors of int64 from 0 to below ``modulus`` (at most 54 bits), modulo it."""
    half = -(-modulus.bit_length() // 2)
    piece, low = 1 << (61 - 2 * half), (1 << half) - 1
    total = 0
    for start in range(0, one.size, piece):
        a, b = one[start : start + piece], other[start : start + piece]
        middle = int((a & low) @ (b >> half)) + int((a >> half) @ (b & low))
        total += int((a & low) @ (b & low)) + (middle << half) + (int((a >> half) @ (b >> half)) << (2 * half))
    return total % modulus

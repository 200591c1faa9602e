"""Signed numbers as integers in fixed point, several of which share a slot and are added without touching.

A slot holds integers modulo the plain modulus t. With k fields it is written in a base b with b^k <= t and digits from
-(b - 1)/2 to (b - 1)/2. As long as each field's sum stays within the digits, the sum of slots is the slot of the sums:
there is nothing to carry and nothing to borrow, whatever the signs are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedseg import allowed
from fedseg.errors import RefusalError

MODES = {"compact": 2e-4, "exact": 1e-6}
"""Modes, and the largest error of a decrypted sum that each allows, as a part of the largest update."""
_MOST_FIELDS = 4
# Weights that sum to one do so up to rounding.
_ROUNDING = 1e-8


@dataclass(frozen=True)
class FixedPoint:
    """How the weighted updates of some sites become slots.

    Attributes:
        sites: how many sites' updates are added, at most.
        fields: numbers in a slot.
        plain_modulus: t of the slots.
    """

    sites: int
    fields: int
    plain_modulus: int

    @property
    def base(self) -> int:
        """The largest odd b with b^fields <= t."""
        root = round(self.plain_modulus ** (1 / self.fields)) + 1
        while root**self.fields > self.plain_modulus:
            root -= 1
        return root if root % 2 else root - 1

    @property
    def half(self) -> int:
        """The integer that stands for the scale.

        With weights that sum to at most one, and half a unit of rounding for each site, no field leaves its digits.
        """
        return math.floor(((self.base - 1) // 2 - self.sites / 2) * (1 - _ROUNDING))

    @property
    def error(self) -> float:
        """Largest error of the sum of all sites, as a part of the scale: half a unit for each site."""
        return self.sites / (2 * self.half) if self.half > 0 else math.inf

    def slots(self, count: int) -> int:
        """Slots that ``count`` numbers take."""
        return -(-count // self.fields)

    def encode(self, values: np.ndarray, weight: float, scale: float) -> np.ndarray:
        """One site's weighted numbers as slots.

        Args:
            values: 1-d, floating point, none larger than ``scale``.
            weight: of the site, from 0 to 1; the weights of all sites sum to at most one.
            scale: largest absolute value at any site.

        Returns:
            int64, ``slots(len(values))`` of them.

        Raises:
            RefusalError: a value is not finite or exceeds the scale, or weight or scale are out of range
                (reason ``privacy``).
        """
        if not (math.isfinite(weight) and 0 <= weight <= 1 and math.isfinite(scale) and scale > 0):
            raise RefusalError("privacy", f"An update cannot be encrypted with weight {weight} and scale {scale}.")
        if not np.abs(values).max(initial=0) <= scale:
            raise RefusalError("privacy", f"The update holds a value that is not finite, or beyond the scale {scale}.")
        whole = np.zeros(self.slots(values.size) * self.fields)
        np.multiply(values, weight / scale * self.half, out=whole[: values.size], dtype=np.float64)
        digits = np.rint(whole).astype(np.int64).reshape(self.fields, -1)
        slots = digits[-1]
        for digit in digits[-2::-1]:
            slots = slots * self.base + digit
        return slots

    def decode(self, slots: np.ndarray, count: int, scale: float) -> np.ndarray:
        """The numbers in a sum of slots.

        Args:
            slots: int64, from -t/2 to t/2.
            count: how many numbers there are.
            scale: with which they were encoded.

        Returns:
            float64, ``count`` of them.
        """
        half, rest = (self.base - 1) // 2, slots
        digits = np.empty((self.fields, slots.size), np.int64)
        for field in range(self.fields - 1):
            above = (rest + half) // self.base
            digits[field] = rest - above * self.base
            rest = above
        digits[-1] = rest
        return digits.reshape(-1)[:count] * (scale / self.half)


def choose_fields(mode: str, sites: int, plain_modulus: int, max_sites: int) -> FixedPoint:
    """The most fields in a slot with which the error of a mode is kept.

    Args:
        mode: one of ``MODES``.
        sites: how many sites' updates are added, at most.
        plain_modulus, max_sites: see ``Parameters``.

    Raises:
        ConfigurationError: there is no such mode, or there are more sites than can be added.
    """
    allowed.one_of("mode", mode, MODES)
    exact = f"a number from 1 to {max_sites}, for an exact sum of ciphertexts"
    allowed.whole("sites", sites, most=max_sites, allowed=exact)
    points = [FixedPoint(sites, fields, plain_modulus) for fields in range(_MOST_FIELDS, 0, -1)]
    return next(point for point in points if point.error <= MODES[mode] or point.fields == 1)

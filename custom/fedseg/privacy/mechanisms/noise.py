"""Noise of privacy mechanisms, from a cryptographic generator or, in simulations, from a seeded one."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fedseg import allowed
from fedseg.errors import ConfigurationError
from fedseg.networks.weights import Arrays
from fedseg.privacy.mechanisms.clipping import clip_l1, clip_l2
from fedseg.randomness import generator

Shape = Sequence[int]

# Coordinates drawn at a time, so that a large array needs no further large arrays.
_PIECE = 1 << 18


class NoiseSource(ABC):
    """Where a mechanism gets its random numbers; every draw is float64.

    Attributes:
        secure: whether an attacker who knows the code, the job and earlier draws still cannot predict the next ones.
            Only a secure source protects patients.
    """

    secure: bool

    def normal(self, shape: Shape, scale: float) -> np.ndarray:
        """Draws of N(0, scale^2); ``scale`` 0 gives zeros.

        Raises:
            ConfigurationError: ``scale`` is negative or not finite.
        """
        return self._scaled(self._standard_normal, shape, scale)

    def laplace(self, shape: Shape, scale: float) -> np.ndarray:
        """Draws with the density exp(-|x| / scale) / (2 scale); ``scale`` 0 gives zeros.

        Raises:
            ConfigurationError: ``scale`` is negative or not finite.
        """
        return self._scaled(self._standard_laplace, shape, scale)

    def uniform(self, shape: Shape) -> np.ndarray:
        """Draws from 0 (included) to 1 (not included), multiples of 2**-53."""
        return self._in_pieces(self._standard_uniform, shape)

    @abstractmethod
    def _standard_normal(self, count: int) -> np.ndarray: ...

    @abstractmethod
    def _standard_laplace(self, count: int) -> np.ndarray: ...

    @abstractmethod
    def _standard_uniform(self, count: int) -> np.ndarray: ...

    def _scaled(self, draw: Callable[[int], np.ndarray], shape: Shape, scale: float) -> np.ndarray:
        allowed.number("scale", scale, least=0, allowed="a finite number from 0 up")
        if scale == 0:
            return np.zeros(tuple(shape))
        drawn = self._in_pieces(draw, shape)
        drawn *= scale
        return drawn

    def _in_pieces(self, draw: Callable[[int], np.ndarray], shape: Shape) -> np.ndarray:
        values = np.empty(math.prod(shape))
        for start in range(0, values.size, _PIECE):
            values[start : start + _PIECE] = draw(min(_PIECE, values.size - start))
        return values.reshape(tuple(shape))


class SecureNoise(NoiseSource):
    """Noise for real sites: it can neither be predicted nor drawn again.

    The bits are a ChaCha20 key stream whose key comes from the operating system for every piece of at most 2**18
    draws, is never stored, and is independent of all seeds of the job.

    Sampled noise is a floating point number, and not every such number can occur: from the exact bits of a noisy
    value an attacker may tell which value lay beneath it (Mironov, "On significance of the least significant bits for
    differential privacy", 2012). Every draw here is therefore a combination of several independent ones (Holohan and
    Braghin, "Secure random sampling in differential privacy", 2021): a Gaussian is the sum of four Box-Muller draws
    divided by 2, a Laplace draw is E sin(a) + F sin(b) with standard exponential E, F and uniform angles a, b, which
    has exactly that distribution. The attack then has to search among all combinations of the parts instead of
    inverting one formula. The mechanisms of this module furthermore round the sum to the type of the update.

    Not protected: the durations of the draws (a side channel for a user of the same machine), and the tails: 53 bits
    reach no further than 17 standard deviations of a Gaussian and 73 scales of a Laplace distribution. The guarantee of
    the accountant is that of exact real numbers; it is approached, not proved, by floating point.
    """

    secure = True

    def _standard_normal(self, count: int) -> np.ndarray:
        exponential, angle = self._polar(4 * count)
        # One of the two numbers that Box and Muller make of a pair: their sum would be a single draw again.
        draws = np.sqrt(2 * exponential) * np.cos(angle)
        return draws.reshape(4, count).sum(axis=0) / 2

    def _standard_laplace(self, count: int) -> np.ndarray:
        exponential, angle = self._polar(2 * count)
        product = exponential * np.sin(angle)
        return product[:count] + product[count:]

    def _standard_uniform(self, count: int) -> np.ndarray:
        bits = np.frombuffer(_key_stream(8 * count), np.uint64)
        return (bits >> np.uint64(11)) * 2.0**-53

    def _polar(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Standard exponential draws, and angles from 0 to 2 pi, [count] each."""
        drawn = self._standard_uniform(2 * count)
        return -np.log1p(-drawn[:count]), 2 * math.pi * drawn[count:]


class SeededNoise(NoiseSource):
    """Noise that can be drawn again, for simulations: an attacker who knows the seeds of the job can subtract it."""

    secure = False

    def __init__(self, *words: int | str) -> None:
        """Seed the source.

        Args:
            words: what the draws follow from: the job's seed, the site, the round and the purpose.
        """
        if not words:
            raise ConfigurationError("words", words, "at least one word to seed the noise with")
        self._generator = generator(*words)

    def _standard_normal(self, count: int) -> np.ndarray:
        return self._generator.standard_normal(count)

    def _standard_laplace(self, count: int) -> np.ndarray:
        return self._generator.laplace(size=count)

    def _standard_uniform(self, count: int) -> np.ndarray:
        return self._generator.random(count)


def gaussian_mechanism(
    arrays: Mapping[str, np.ndarray], clip: float, noise_multiplier: float, noise: NoiseSource
) -> Arrays:
    """Clip all arrays jointly to the L2 norm ``clip`` and add N(0, (noise_multiplier * clip)^2) to each coordinate.

    The L2 sensitivity is 2 * clip where one update is replaced by another, and clip where it is added or removed; see
    ``accounting.relative_to_sensitivity`` for the multiplier that the accountant needs.

    Args:
        arrays: floating point arrays of any shapes.
        clip: L2 norm, above 0 and finite where there is noise.
        noise_multiplier: standard deviation of the noise over ``clip``, from 0 (no noise, no protection) up.
        noise: where draws come from.

    Returns:
        Arrays of the same names, shapes and types: added in float64, then rounded.

    Raises:
        ConfigurationError: an argument is out of its range.
        RefusalError: an array is not of floating point or not finite (reason ``weights``).
    """
    scale = _scale(clip, noise_multiplier)
    clipped, _ = clip_l2(arrays, clip)
    return _add(clipped, lambda shape: noise.normal(shape, scale))


def laplace_mechanism(
    arrays: Mapping[str, np.ndarray], l1_clip: float, noise_multiplier: float, noise: NoiseSource
) -> Arrays:
    """Clip all arrays jointly to the L1 norm ``l1_clip`` and add Laplace noise to each coordinate.

    The noise has the scale noise_multiplier * l1_clip. The L1 sensitivity is 2 * l1_clip where one update is replaced
    by another, and l1_clip where it is added or removed; one release is 2 / noise_multiplier or 1 / noise_multiplier
    differentially private (Dwork et al., "Calibrating noise to sensitivity in private data analysis", 2006).

    Arguments, result and errors are those of ``gaussian_mechanism``.
    """
    scale = _scale(l1_clip, noise_multiplier)
    clipped, _ = clip_l1(arrays, l1_clip)
    return _add(clipped, lambda shape: noise.laplace(shape, scale))


def _scale(clip: float, noise_multiplier: Any) -> float:
    allowed.number("clip", clip, above=0, infinite=True)
    allowed.number("noise_multiplier", noise_multiplier, least=0)
    if noise_multiplier and not math.isfinite(noise_multiplier * clip):
        raise ConfigurationError("clip", clip, "finite where noise is measured against it")
    return noise_multiplier * clip if noise_multiplier else 0.0


def _add(arrays: Arrays, draw: Callable[[Shape], np.ndarray]) -> Arrays:
    """Arrays plus noise; in sorted order, so that the draws of a seeded source don't depend on the order of names."""
    return {name: np.asarray(arrays[name] + draw(arrays[name].shape), arrays[name].dtype) for name in sorted(arrays)}


def _key_stream(size: int) -> bytes:
    """Bytes of ChaCha20 under a key and a nonce that are used once."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

    # The first four bytes of the nonce are the block counter: from 0, a piece never reaches its end.
    cipher = Cipher(algorithms.ChaCha20(os.urandom(32), bytes(4) + os.urandom(12)), mode=None)
    return cipher.encryptor().update(bytes(size))

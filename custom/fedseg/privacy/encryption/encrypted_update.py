"""Updates as ciphertexts: sites encrypt weighted updates, the server adds them, sites decrypt the sum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from fedseg.networks.weights import Arrays
from fedseg.privacy.encryption.ciphertexts import Ciphertexts, decrypt, encrypt
from fedseg.privacy.encryption.context import EncryptionContext, EncryptionError
from fedseg.privacy.encryption.fixed_point import FixedPoint


def blocks_of(count: int, point: FixedPoint, context: EncryptionContext) -> int:
    """Ciphertexts that ``count`` numbers take."""
    return -(-point.slots(count) // context.parameters.degree)


def encrypt_update(
    update: Mapping[str, np.ndarray], weight: float, scale: float, point: FixedPoint, context: EncryptionContext
) -> Ciphertexts:
    """A site's weighted update, all arrays packed into one vector in the order of their names.

    Raises:
        RefusalError: see ``FixedPoint.encode``.
    """
    flat = np.concatenate([np.ravel(update[name]) for name in sorted(update)])
    return encrypt(point.encode(flat, weight, scale), context)


def decrypt_update(
    ciphertexts: Ciphertexts,
    like: Mapping[str, np.ndarray],
    weight: float,
    scale: float,
    point: FixedPoint,
    context: EncryptionContext,
) -> Arrays:
    """The weighted mean of the sites' updates.

    Args:
        ciphertexts: the sum of ``encrypt_update`` of all sites.
        like: arrays with the names and shapes of the update.
        weight: sum of the weights of the sites whose ciphertexts are in the sum; what dropped out is so made up for.
        scale, point: as at the encryption.
        context: with the secret key.

    Returns:
        float64 arrays.

    Raises:
        EncryptionError: the ciphertexts cannot be read, do not belong to arrays of these shapes, or the weight is
            zero.
    """
    count = sum(np.size(value) for value in like.values())
    if len(ciphertexts.blocks) != blocks_of(count, point, context):
        raise EncryptionError("The ciphertexts belong to a network of another size.")
    if not 0 < weight <= 1 + 1e-9:
        raise EncryptionError(f"The weights of the sites in the sum are {weight} together, but must be from 0 to 1.")
    flat = point.decode(decrypt(ciphertexts, context)[: point.slots(count)], count, scale) / weight
    return dict(_split(flat, like))


def _split(flat: np.ndarray, like: Mapping[str, np.ndarray]) -> Iterable[tuple[str, np.ndarray]]:
    start = 0
    for name in sorted(like):
        end = start + np.size(like[name])
        yield name, flat[start:end].reshape(np.shape(like[name]))
        start = end

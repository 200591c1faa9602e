"""Updates as ciphertexts: sites encrypt weighted updates, the server adds them, sites decrypt the sum."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedseg.errors import ConfigurationError
from fedseg.networks.weights import Arrays, flatten, unflatten
from fedseg.privacy.encryption.ciphertexts import Ciphertexts, decrypt, encrypt
from fedseg.privacy.encryption.context import EncryptionContext, EncryptionError
from fedseg.privacy.encryption.fixed_point import FixedPoint
from fedseg.privacy.encryption.sum_tag import SumTerms, append_tag, check_tag

_TAGS = 1


def blocks_of(count: int, point: FixedPoint, context: EncryptionContext) -> int:
    """Ciphertexts that ``count`` numbers and their tag take."""
    return -(-(point.slots(count) + _TAGS) // context.parameters.degree)


def encrypt_update(
    update: Mapping[str, np.ndarray], site: str, nonce: str, terms: SumTerms, context: EncryptionContext
) -> Ciphertexts:
    """A site's weighted update, all arrays packed into one vector in the order of their names, and its tag.

    Args:
        update: arrays by name.
        site: name of the site, which has a weight in ``terms``.
        nonce: text that is drawn for this ciphertext and no other.
        terms: of the sum for which it is encrypted.
        context: with the secret key.

    Raises:
        ConfigurationError: see ``SumTerms.point``.
        RefusalError: see ``FixedPoint.encode``.
    """
    slots = terms.point(context).encode(flatten(update), terms.weights[site], terms.scale)
    return encrypt(append_tag(slots, site, nonce, terms, context), context.of_run(terms.run))


def decrypt_update(
    ciphertexts: Ciphertexts,
    like: Mapping[str, np.ndarray],
    nonces: Mapping[str, str],
    terms: SumTerms,
    context: EncryptionContext,
) -> Arrays:
    """The weighted mean of the sites' updates.

    Args:
        ciphertexts: the sum of ``encrypt_update`` of the sites that ``nonces`` names.
        like: arrays with the names and shapes of the update.
        nonces: those with which these sites encrypted; the sum is divided by the weights of these sites, so that what
            dropped out is made up for.
        terms: of the sum.
        context: with the secret key.

    Returns:
        float64 arrays.

    Raises:
        EncryptionError: the ciphertexts cannot be read, do not belong to arrays of these shapes, or the weight is
            zero; or the terms are no such terms.
        ForgedSumError: the ciphertexts are not the sum of these sites' updates for these terms.
    """
    count, weight = sum(np.size(value) for value in like.values()), terms.weight(nonces)
    try:
        point = terms.point(context)
    except ConfigurationError as error:
        raise EncryptionError(str(error)) from None
    if len(ciphertexts.blocks) != blocks_of(count, point, context):
        raise EncryptionError("The ciphertexts belong to a network of another size.")
    if not 0 < weight <= 1 + 1e-9:
        raise EncryptionError(f"The weights of the sites in the sum are {weight} together, but must be from 0 to 1.")
    found = decrypt(ciphertexts, context.of_run(terms.run))
    slots = check_tag(found[: point.slots(count) + _TAGS], nonces, terms, context)
    return unflatten(point.decode(slots, count, terms.scale) / weight, like)

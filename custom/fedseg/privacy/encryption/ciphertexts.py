"""Vectors of integers as ciphertexts: encrypted and decrypted with the sites' key, added without one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import tenseal as ts

from fedseg.errors import RefusalError
from fedseg.networks.weights import Arrays
from fedseg.privacy.encryption.context import EncryptionContext, EncryptionError

_CONTENT, _LENGTHS = "ciphertexts", "lengths"


@dataclass(frozen=True)
class Ciphertexts:
    """A vector of slots in encrypted form: one serialised ciphertext for each block of as many slots as fit."""

    blocks: tuple[bytes, ...]

    @property
    def nbytes(self) -> int:
        """Size without the list of lengths."""
        return sum(map(len, self.blocks))

    def to_arrays(self) -> Arrays:
        """The form in which they travel and are stored: all bytes in one array, the length of each block in another.

        Both are plain bytes (lengths as 32-bit integers, little end first): whoever looks at a message sees at once
        that it holds nothing else.
        """
        return {
            _CONTENT: np.frombuffer(b"".join(self.blocks), np.uint8),
            _LENGTHS: np.array([len(block) for block in self.blocks], "<u4").view(np.uint8),
        }


def read_ciphertexts(arrays: Mapping[str, np.ndarray]) -> Ciphertexts:
    """The reverse of ``to_arrays``; whether the bytes are ciphertexts shows when they are added or decrypted.

    Raises:
        RefusalError: the arrays are others, or of other types, or the lengths do not add up (reason ``privacy``).
    """
    if set(arrays) != {_CONTENT, _LENGTHS}:
        raise RefusalError("privacy", "The arrays are not those of ciphertexts.")
    content, packed = np.asarray(arrays[_CONTENT]), np.asarray(arrays[_LENGTHS])
    if not all(array.dtype == np.uint8 and array.ndim == 1 for array in (content, packed)) or packed.size % 4:
        raise RefusalError("privacy", "The arrays of the ciphertexts are of another type or shape.")
    lengths = np.frombuffer(packed.tobytes(), "<u4").astype(np.int64)
    if lengths.size == 0 or lengths.min() == 0 or lengths.sum() != content.size:
        raise RefusalError("privacy", "The lengths of the ciphertexts do not add up.")
    ends = [0, *np.cumsum(lengths).tolist()]
    return Ciphertexts(tuple(content[start:end].tobytes() for start, end in pairwise(ends)))


def encrypt(slots: np.ndarray, context: EncryptionContext) -> Ciphertexts:
    """Encrypt a vector.

    One block at a time, so that the interpreter is never held for long.

    Args:
        slots: int64, from -t/2 to t/2; the last block is filled up with zeros.
        context: with the secret key.
    """
    degree = context.parameters.degree
    padded = np.zeros(-(-slots.size // degree) * degree, np.int64)
    padded[: slots.size] = slots
    return Ciphertexts(tuple(_encrypt(row.tolist(), context).serialize() for row in padded.reshape(-1, degree)))


def decrypt(ciphertexts: Ciphertexts, context: EncryptionContext) -> np.ndarray:
    """The slots of a vector, those with which it was filled up included: int64, from -t/2 to t/2.

    With another key than that of the encryption the result is noise; compare ``EncryptionContext.key`` before.

    Raises:
        EncryptionError: a block is no ciphertext of this context.
    """
    return np.concatenate([np.array(_load(block, context).decrypt(), np.int64) for block in ciphertexts.blocks])


class CiphertextSum:
    """Adds the vectors of several sites; needs no key. Memory: one vector for the sum, one for what is added."""

    def __init__(self, blocks: int, context: EncryptionContext) -> None:
        """Start with nothing.

        Args:
            blocks: of every vector.
            context: with or without the key.
        """
        self.blocks, self.context, self.count = blocks, context, 0
        self._sum: list[ts.BFVVector] = []

    def add(self, ciphertexts: Ciphertexts) -> None:
        """Add one vector, completely or not at all.

        Raises:
            RefusalError: it has another length, or holds something that is no ciphertext of this context
                (reason ``privacy``).
            EncryptionError: one more could spoil the sum.
        """
        if self.count == self.context.parameters.max_sites:
            raise EncryptionError(f"No more than {self.count} ciphertexts can be added.")
        if len(ciphertexts.blocks) != self.blocks:
            raise RefusalError(
                "privacy", f"The update has {len(ciphertexts.blocks)} ciphertexts, but must have {self.blocks}."
            )
        try:
            loaded = [_load(block, self.context) for block in ciphertexts.blocks]
        except EncryptionError as error:
            raise RefusalError("privacy", str(error)) from None
        if self._sum:
            for total, term in zip(self._sum, loaded, strict=True):
                total.add_(term)
        else:
            self._sum = loaded
        self.count += 1

    def result(self) -> Ciphertexts:
        """The sum.

        Raises:
            EncryptionError: nothing was added.
        """
        if not self._sum:
            raise EncryptionError("There are no ciphertexts to add.")
        return Ciphertexts(tuple(total.serialize() for total in self._sum))


def _encrypt(row: list[int], context: EncryptionContext) -> ts.BFVVector:
    # `ts.bfv_vector` takes the numbers through two more lists, which lasts almost as long as the encryption.
    return ts.BFVVector(data=ts._ts_cpp.BFVVector(context.native.data, row))


def _load(block: bytes, context: EncryptionContext) -> ts.BFVVector:
    try:
        vector = ts.bfv_vector_from(context.native, block)
        # TenSEAL believes the number of slots that a block states, and adds without looking whether there is one.
        parts = vector.ciphertext()
        fits = vector.size() == context.parameters.degree and len(parts) == 1 and parts[0].size() == 2
    except (ValueError, RuntimeError, IndexError) as error:
        raise EncryptionError(f"A ciphertext cannot be read ({error}).") from None
    if not fits:
        raise EncryptionError("A ciphertext has another size than those of this context.")
    return vector

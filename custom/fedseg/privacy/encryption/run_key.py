"""A secret key of its own for each run, which follows from the sites' key and the run's id.

TenSEAL has no way to set a secret key, but reads contexts that hold one. So a run's context is that of the sites with
other bytes in the place of the key. The polynomial of a run's key is uniform modulo each prime: with symmetric
encryption the noise of a ciphertext does not depend on the secret, and ring learning with errors is as hard with a
uniform secret as with a small one (Applebaum, Cash, Peikert and Sahai, CRYPTO 2009; the encryption standard allows a
somewhat larger modulus for it).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

_PRIVATE, _SECRET_KEY = 3, 1
"""Fields of TenSEAL's ``TenSEALContextProto`` and of the message in it."""
_NUMBER, _EIGHT, _BYTES = 0, 1, 2
"""Kinds of fields of protocol buffers: a number of variable length, eight bytes, and bytes with their length."""
# SEAL's header: magic number, its own size, major and minor version, compression (none), nothing, size of all.
_HEADER, _MAGIC = struct.Struct("<HBBBBHQ"), 0xA15E


def run_context(content: bytes, seed: bytes, primes: Sequence[int], degree: int, parms: Sequence[int]) -> bytes:
    """The context of the sites with a run's key in the place of their own.

    Args:
        content: the sites' context as TenSEAL serialises it.
        seed: 32 secret bytes that follow from the sites' key and the run's id.
        primes: of the whole coefficient modulus, in SEAL's order.
        degree: of the polynomials.
        parms: SEAL's four numbers that name the parameters to which a key belongs.

    Raises:
        ValueError: the content is no serialised context with a secret key.
    """
    fields = list(_fields(content))
    (private,) = (value for number, _, value in fields if number == _PRIVATE and isinstance(value, bytes))
    (before,) = (value for number, _, value in _fields(private) if number == _SECRET_KEY and isinstance(value, bytes))
    key = _secret_key(before, _uniform(seed, primes, degree), parms)
    # Without the marks of keys for multiplications, which TenSEAL would make anew at each reading.
    own = _joined([(_SECRET_KEY, _BYTES, key)])
    return _joined([(n, kind, own if n == _PRIVATE else value) for n, kind, value in fields])


def _uniform(seed: bytes, primes: Sequence[int], degree: int) -> np.ndarray:
    """Uniform numbers below each prime, ``degree`` for each, by drawing again what is not below it."""
    stream = Cipher(algorithms.ChaCha20(seed, bytes(16)), mode=None).encryptor()
    rows = []
    for prime in primes:
        found = np.empty(0, np.uint64)
        while found.size < degree:
            drawn = np.frombuffer(stream.update(bytes(16 * degree)), "<u8") & np.uint64(2 ** prime.bit_length() - 1)
            found = np.append(found, drawn[drawn < prime])
        rows.append(found[:degree])
    return np.concatenate(rows)


def _secret_key(like: bytes, values: np.ndarray, parms: Sequence[int]) -> bytes:
    """A secret key as SEAL serialises it, uncompressed, in the version of another one."""
    magic, _, major, minor, *_ = _HEADER.unpack_from(like)
    if magic != _MAGIC:
        raise ValueError("it holds no secret key of SEAL")
    scale = 1.0
    data = _with_header(struct.pack("<Q", values.size) + values.astype("<u8").tobytes(), major, minor)
    return _with_header(struct.pack("<4QQd", *parms, values.size, scale) + data, major, minor)


def _with_header(content: bytes, major: int, minor: int) -> bytes:
    return _HEADER.pack(_MAGIC, _HEADER.size, major, minor, 0, 0, _HEADER.size + len(content)) + content


Field = tuple[int, int, int | bytes]


def _fields(message: bytes) -> Iterator[Field]:
    """The fields of a message of protocol buffers: number, kind and value."""
    place = 0
    while place < len(message):
        tag, place = _read_number(message, place)
        number, kind = tag >> 3, tag & 7
        if kind == _NUMBER:
            value, place = _read_number(message, place)
            yield number, kind, value
            continue
        if kind not in (_EIGHT, _BYTES):
            raise ValueError("it is no serialised context")
        size, place = (8, place) if kind == _EIGHT else _read_number(message, place)
        if place + size > len(message):
            raise ValueError("it was cut off")
        yield number, kind, message[place : place + size]
        place += size


def _read_number(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if place >= len(message) or shift > 63:
            raise ValueError("it was cut off")
        byte = message[place]
        value, place, shift = value | (byte & 0x7F) << shift, place + 1, shift + 7
        if byte < 0x80:
            return value, place


def _joined(fields: Iterable[Field]) -> bytes:
    parts = []
    for number, kind, value in fields:
        parts.append(_number(number << 3 | kind))
        if isinstance(value, int):
            parts.append(_number(value))
        else:
            parts += [_number(len(value)) if kind == _BYTES else b"", value]
    return b"".join(parts)


def _number(value: int) -> bytes:
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])

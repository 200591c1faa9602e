"""Seeds: every random draw follows from the job's seed, the site, the round and where in the round it happens."""

from __future__ import annotations

import hashlib

import numpy as np


def derive_seed(*parts: int | str) -> int:
    """A seed (0 to 2**32 - 1) that depends on all parts and on nothing else, equal on every machine."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def generator(*parts: int | str) -> np.random.Generator:
    """A generator seeded by ``derive_seed(*parts)``."""
    return np.random.default_rng(derive_seed(*parts))

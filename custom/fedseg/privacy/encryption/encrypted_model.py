"""A model that only the sites can read: where it starts, and the encrypted sums that lead from there to it.

The server never has the weights after the first round. The model after round r is that of round r - 1 plus the
decrypted sum of round r divided by its weight; every site makes the same steps and so has the same bits.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedseg.errors import ConfigurationError, RefusalError
from fedseg.files.digest import model_digest
from fedseg.networks.weights import Arrays, apply_difference, is_averaged
from fedseg.privacy.encryption.ciphertexts import Ciphertexts, read_ciphertexts
from fedseg.privacy.encryption.context import EncryptionContext, EncryptionError
from fedseg.privacy.encryption.encrypted_update import decrypt_update
from fedseg.privacy.encryption.fixed_point import FixedPoint, choose_fields

_INITIAL, _ROUND = "initial/", "round-{:05d}/"


@dataclass(frozen=True)
class EncryptedRound:
    """The encrypted sum of one round, and what a site needs to decrypt it.

    Attributes:
        ciphertexts: the sum over the sites whose ciphertexts arrived.
        weight: sum of the weights of these sites.
        scale: largest absolute value of all sites' updates.
        sites: number of sites that were given a weight.
        mode: one of ``fixed_point.MODES``.
        key: name of the sites' key, see ``EncryptionContext``.
    """

    ciphertexts: Ciphertexts
    weight: float
    scale: float
    sites: int
    mode: str
    key: str

    def facts(self) -> dict[str, Any]:
        """Everything but the ciphertexts, as plain JSON."""
        return {name: getattr(self, name) for name in ("weight", "scale", "sites", "mode", "key")}

    def point(self, context: EncryptionContext) -> FixedPoint:
        """How the numbers lie in the slots."""
        return choose_fields(self.mode, self.sites, context.parameters.plain_modulus, context.parameters.max_sites)


def read_round(facts: Any, arrays: Mapping[str, np.ndarray]) -> EncryptedRound:
    """A round from its facts and the arrays of its ciphertexts, trusting neither.

    Raises:
        RefusalError: something is missing or of another type (reason ``privacy``).
    """
    kinds: dict[str, type] = {"weight": float, "scale": float, "sites": int, "mode": str, "key": str}
    content = facts if isinstance(facts, Mapping) else {}
    if set(content) != set(kinds) or not all(type(content[name]) is kind for name, kind in kinds.items()):
        raise RefusalError("privacy", "The facts of an encrypted round are missing, or of another version.")
    if not (0 < content["weight"] <= 1 + 1e-9 and 0 < content["scale"] < math.inf):
        raise RefusalError("privacy", "An encrypted round has a weight or a scale that is out of range.")
    return EncryptedRound(read_ciphertexts(arrays), **content)


def first_id(weights: Mapping[str, np.ndarray]) -> str:
    """Name of a model by its weights."""
    return model_digest(weights)


def next_id(before: str, added: EncryptedRound) -> str:
    """Name of the model that follows from another by one round."""
    digest = hashlib.sha256(json.dumps([before, added.facts()], sort_keys=True).encode())
    for block in added.ciphertexts.blocks:
        digest.update(hashlib.sha256(block).digest())
    return digest.hexdigest()


@dataclass(frozen=True)
class EncryptedModel:
    """A model as a task, or a file, carries it.

    Attributes:
        base: id of the model to which the rounds are added.
        rounds: in their order.
        initial: weights of the base, where it is the model that the run started from; None for readers who have the
            base, or one of the models on the way.
    """

    base: str
    rounds: tuple[EncryptedRound, ...] = ()
    initial: Arrays | None = None

    def to_arrays(self) -> Arrays:
        """All arrays by name; ``facts`` says the rest."""
        arrays = {_INITIAL + name: value for name, value in (self.initial or {}).items()}
        for number, added in enumerate(self.rounds):
            arrays |= {_ROUND.format(number) + name: value for name, value in added.ciphertexts.to_arrays().items()}
        return arrays

    def facts(self) -> dict[str, Any]:
        """Plain JSON; the reverse of both is ``read_encrypted_model``."""
        return {"base": self.base, "rounds": [added.facts() for added in self.rounds]}

    def ids(self) -> list[str]:
        """Ids of the base and of the model after each round."""
        ids = [self.base]
        for added in self.rounds:
            ids.append(next_id(ids[-1], added))
        return ids

    def decrypt(
        self, context: EncryptionContext, own: tuple[str, Mapping[str, np.ndarray]] | None = None
    ) -> tuple[str, Arrays]:
        """The model in the clear.

        Args:
            context: of the sites, with the secret key.
            own: id and weights of a model that the reader has already.

        Returns:
            The model's id and weights.

        Raises:
            RefusalError: the reader has no model to start from (reason ``history``); a round was encrypted with
                another key, or cannot be decrypted (``privacy``); the model would not be finite (``weights``).
        """
        ids = self.ids()
        if own is not None and own[0] in ids:
            start, weights = ids.index(own[0]), dict(own[1])
        elif self.initial is not None:
            start, weights = 0, dict(self.initial)
        else:
            raise RefusalError("history", "This site lacks the model to which the task adds; it needs all rounds.")
        for added in self.rounds[start:]:
            weights = _add(weights, added, context)
        return ids[-1], weights


def read_encrypted_model(arrays: Mapping[str, np.ndarray], facts: Any) -> EncryptedModel:
    """The reverse of ``to_arrays`` and ``facts``, trusting neither.

    Raises:
        RefusalError: something is missing, unknown or of another type, or the initial weights are not those of the
            base (reason ``privacy``).
    """
    content = facts if isinstance(facts, Mapping) else {}
    base, rounds = content.get("base"), content.get("rounds")
    if not isinstance(base, str) or not isinstance(rounds, Sequence) or set(content) != {"base", "rounds"}:
        raise RefusalError("privacy", "The encrypted model does not say what it consists of.")
    initial = _below(arrays, _INITIAL)
    parts = [_below(arrays, _ROUND.format(number)) for number in range(len(rounds))]
    if len(initial) + sum(map(len, parts)) != len(arrays):
        raise RefusalError("privacy", "The encrypted model holds arrays that nothing is known of.")
    if initial and first_id(initial) != base:
        raise RefusalError("privacy", "The encrypted model starts from other weights than it says.")
    read = tuple(read_round(each, part) for each, part in zip(rounds, parts, strict=True))
    return EncryptedModel(base, read, initial or None)


def _below(arrays: Mapping[str, np.ndarray], prefix: str) -> Arrays:
    return {name.removeprefix(prefix): np.asarray(value) for name, value in arrays.items() if name.startswith(prefix)}


def _add(weights: Arrays, added: EncryptedRound, context: EncryptionContext) -> Arrays:
    if added.key != context.key:
        raise RefusalError(
            "privacy", f"The round was encrypted with the key {added.key}, but this site has the key {context.key}."
        )
    like = {name: value for name, value in weights.items() if is_averaged(value)}
    try:
        point = added.point(context)
        update = decrypt_update(added.ciphertexts, like, added.weight, added.scale, point, context)
    except (EncryptionError, ConfigurationError) as error:
        raise RefusalError("privacy", str(error)) from None
    with np.errstate(over="ignore"):
        result = apply_difference(weights, update)
    if not all(np.isfinite(value).all() for value in result.values()):
        raise RefusalError("weights", "The decrypted model holds values that are not finite.")
    return result

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

from fedseg.errors import RefusalError
from fedseg.files.digest import model_digest
from fedseg.networks.weights import Arrays, apply_difference, is_averaged
from fedseg.privacy.encryption.ciphertexts import Ciphertexts, read_ciphertexts
from fedseg.privacy.encryption.context import EncryptionContext, EncryptionError
from fedseg.privacy.encryption.encrypt_update import decrypt_update
from fedseg.privacy.encryption.sum_tag import LEAST_SITES, SumTerms

_INITIAL, _ROUND = "initial/", "round-{:05d}/"


@dataclass(frozen=True)
class EncryptedRound:
    """The encrypted sum of one round, and what a site needs to decrypt it.

    Attributes:
        ciphertexts: the sum over the sites whose ciphertexts arrived.
        terms: for which these sites encrypted.
        nonces: of the sites in the sum: what each drew for its ciphertext.
        key: name of the sites' key, see ``EncryptionContext``.
    """

    ciphertexts: Ciphertexts
    terms: SumTerms
    nonces: Mapping[str, str]
    key: str

    def facts(self) -> dict[str, Any]:
        """Everything but the ciphertexts, as plain JSON."""
        terms = {name: getattr(self.terms, name) for name in _TERMS}
        return {**terms, "weights": dict(self.terms.weights), "nonces": dict(self.nonces), "key": self.key}


_TERMS: dict[str, type] = {"run": str, "before": str, "weights": dict, "scale": float, "mode": str}


def read_round(facts: Any, arrays: Mapping[str, np.ndarray]) -> EncryptedRound:
    """A round from its facts and the arrays of its ciphertexts, trusting neither.

    Raises:
        RefusalError: something is missing or of another type (reason ``privacy``).
    """
    kinds = {**_TERMS, "nonces": dict, "key": str}
    content = dict(facts) if isinstance(facts, Mapping) else {}
    if set(content) != set(kinds) or not all(type(content[name]) is kind for name, kind in kinds.items()):
        raise RefusalError("privacy", "The facts of an encrypted round are missing, or of another version.")
    weights, nonces = content["weights"], content["nonces"]
    named = all(type(name) is str for name in weights) and all(type(nonce) is str for nonce in nonces.values())
    if not named or not all(type(weight) is float and 0 <= weight <= 1 for weight in weights.values()):
        raise RefusalError("privacy", "An encrypted round has weights or sites that are out of range.")
    if not (0 < content["scale"] < math.inf and nonces and set(nonces) <= set(weights)):
        raise RefusalError("privacy", "An encrypted round has a scale or sites that are out of range.")
    terms = SumTerms(**{name: content[name] for name in _TERMS})
    return EncryptedRound(read_ciphertexts(arrays), terms, nonces, content["key"])


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
        self,
        context: EncryptionContext,
        run: str | None = None,
        own: tuple[str, Mapping[str, np.ndarray]] | None = None,
        least: int = LEAST_SITES,
    ) -> tuple[str, Arrays]:
        """The model in the clear; of each round that is added it is known that it is the sum that it is said to be.

        Args:
            context: of the sites, with the secret key.
            run: id of the run whose model it must be; None takes any.
            own: id and weights of a model that the reader has already.
            least: sites that every sum must hold.

        Returns:
            The model's id and weights.

        Raises:
            RefusalError: the reader has no model to start from (reason ``history``); a round was encrypted with
                another key, for another run, for another model than it is added to or by too few sites, or cannot be
                decrypted (``privacy``); the model would not be finite (``weights``).
            ForgedSumError: a round is not the sum that it is said to be.
        """
        ids = self.ids()
        for added, before in zip(self.rounds, ids, strict=False):
            _check_place(added, before, run, context)
            added.terms.check_sites(added.nonces, max(least, LEAST_SITES))
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


def _check_place(added: EncryptedRound, before: str, run: str | None, context: EncryptionContext) -> None:
    """Refuse a round that belongs elsewhere, as it says itself; whether it says so truly shows its tag."""
    if added.key != context.key:
        raise RefusalError(
            "privacy", f"The round was encrypted with the key {added.key}, but this site has the key {context.key}."
        )
    if run not in (None, added.terms.run):
        raise RefusalError("privacy", "The encrypted sum is one of another run.")
    if added.terms.before != before:
        raise RefusalError("privacy", "The encrypted sum is one of another round: it belongs to another model.")


def _add(weights: Arrays, added: EncryptedRound, context: EncryptionContext) -> Arrays:
    like = {name: value for name, value in weights.items() if is_averaged(value)}
    try:
        update = decrypt_update(added.ciphertexts, like, added.nonces, added.terms, context)
    except EncryptionError as error:
        raise RefusalError("privacy", str(error)) from None
    with np.errstate(over="ignore"):
        result = apply_difference(weights, update)
    if not all(np.isfinite(value).all() for value in result.values()):
        raise RefusalError("weights", "The decrypted model holds values that are not finite.")
    return result

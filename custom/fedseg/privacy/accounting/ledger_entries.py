"""The entries of a ledger: how releases and patients are written, and which releases concern whom."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from fedseg.data.datalist import same_patient
from fedseg.errors import ConfigurationError
from fedseg.files.hash_chain_check import Entry
from fedseg.privacy.accounting.epsilon import Release
from fedseg.privacy.accounting.ledger_errors import LedgerError

_INFINITE = "infinite"
WITHOUT = "without guarantee"
"""The kind of entry of what left without a guarantee."""

logger = logging.getLogger(__name__)


class Book:
    """The entries of a ledger, by kind.

    Attributes:
        releases: entries of releases with a guarantee, oldest first.
        without: entries of what left without one, oldest first.
        sets: the hashed patients of each set, by its identity.
        salt: of the ledger's hashes; None for a ledger without entries.
    """

    def __init__(self, entries: Sequence[Entry], simulated: bool) -> None:
        """Sort the entries.

        Args:
            entries: of a verified chain.
            simulated: which kind of ledger it must be.

        Raises:
            LedgerError: it is of the other kind, or holds what no ledger holds.
        """
        try:
            self.releases = [entry for entry in entries if entry["kind"] == "release"]
            self.without = [entry for entry in entries if entry["kind"] == WITHOUT]
            self.sets = {entry["set"]: frozenset(entry["patients"]) for entry in entries if entry["kind"] == "patients"}
            self.salt: str | None = entries[0]["salt"] if entries else None
            if strangers := {entry["kind"] for entry in entries} - {"opened", "patients", "release", WITHOUT}:
                raise KeyError(", ".join(sorted(strangers)))
            other = bool(entries) and bool(entries[0]["simulated"]) is not simulated
        except KeyError as error:
            logger.error("An entry of the privacy ledger lacks %s.", error)
            raise LedgerError("The site's privacy ledger holds entries that this version does not know.") from None
        if other:
            kinds = ("a real site", "a simulation")
            found, asked = kinds[not simulated], kinds[simulated]
            raise LedgerError(f"The privacy ledger was opened by {found} and cannot count for {asked}.")

    def on(self, members: frozenset[str]) -> tuple[list[Entry], list[Entry]]:
        """What left with any of these patients: releases with a guarantee, and what left without one."""
        touched = {identity for identity, others in self.sets.items() if not members.isdisjoint(others)}
        return self._among(self.releases, touched), self._among(self.without, touched)

    def of(self, dataset: str | None) -> tuple[list[Entry], list[Entry]]:
        """What left with any patient of whom anything ever left under a name; all for None."""
        if dataset is None:
            return self.releases, self.without
        named = {entry["patients"] for entry in (*self.releases, *self.without) if entry["dataset"] == dataset}
        return self.on(frozenset().union(*(self.sets[identity] for identity in named)))

    def _among(self, entries: Sequence[Entry], sets: Collection[str]) -> list[Entry]:
        return [entry for entry in entries if entry["patients"] in sets]


def normal(patients: Iterable[str]) -> set[str]:
    """Ids without what two spellings of one id may differ in: Unicode forms and outer spaces.

    Raises:
        ConfigurationError: there is none.
    """
    names = {same_patient(name) for name in patients}
    if not names:
        raise ConfigurationError("patients", [], "at least one patient: a release without any cannot be counted")
    return names


def hashed(salt: str, patient: str) -> str:
    """A patient as the ledger names him."""
    return hashlib.sha256(f"{salt}\n{patient}".encode()).hexdigest()


def identity_of(members: frozenset[str]) -> str:
    """The name of a set of hashed patients, equal for equal sets."""
    return hashlib.sha256("\n".join(sorted(members)).encode()).hexdigest()[:32]


def fields_of(release: Release) -> dict[str, Any]:
    """A release as values of JSON."""
    # JSON has no infinity.
    return asdict(release) | ({"epsilon": _INFINITE} if release.epsilon == math.inf else {})


def release_of(entry: Entry) -> Release:
    """The release of an entry; the reverse of ``fields_of``."""
    values: dict[str, Any] = {name: entry[name] for name in Release.__dataclass_fields__}
    if values["epsilon"] == _INFINITE:
        values["epsilon"] = math.inf
    return Release(**values)

"""A site's ledger: every release on its patients is entered before the result leaves, and none is forgotten.

One ledger serves all data sets and all jobs of a site. What counts together is decided by patients and not by names: a
release with a guarantee is composed with every earlier one whose patients include any of its own, whatever the data set
or the job is called. That is never less than what any single patient has spent in guaranteed releases, and it survives
restarts, since the ledger is the only memory. A round that is repeated (its result was lost) draws new noise and is
counted again. Jobs may be chosen after their predecessors' results were seen: the composition is a filter, see
``composition.adaptive``.

What leaves without a guarantee (plain updates, scores, statistics, features...) has no epsilon and stands beside: its
number is told with every epsilon, which then is a bound for the guaranteed releases alone.

Patients stand in it as SHA-256 of a salt of this ledger and their id. That keeps ids out of the file and ledgers of two
sites from being compared; a person who has the file can still test whether a known id is in it.

All epsilons are for neighbours by replacement. Their unit is that of ``accounting.epsilon``: releases of a site's
update count in full beside releases per patient, and the sum then is an epsilon per patient.
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedseg import allowed
from fedseg.errors import ConfigurationError
from fedseg.files.documents import load_json, write_json
from fedseg.files.hash_chain import HashChain
from fedseg.files.hash_chain_check import ORIGIN, ChainError, Entry
from fedseg.privacy.accounting.epsilon import ADAPTIVE, REPLACE, SITE_UPDATE, Release, common_unit, epsilon
from fedseg.privacy.accounting.ledger_entries import (
    WITHOUT,
    Book,
    fields_of,
    hashed,
    identity_of,
    normal,
    release_of,
)
from fedseg.privacy.accounting.ledger_errors import BudgetError, CountError, LedgerError

FOLDER, FILE = "ledger", "ledger.jsonl"
SCHEMA = "fedseg-ledger-1"
DEFAULT_LIMIT = 50.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Spent:
    """What has left of some patients.

    Attributes:
        epsilon: composed over all releases with a guarantee; infinite where one had no noise.
        delta: that epsilon belongs to.
        releases: how many were composed.
        unit: what the epsilon protects.
        neighbours: the convention of the epsilon.
        without_guarantee: how many releases on the same patients had no guarantee, so that epsilon does not cover them.
    """

    epsilon: float
    delta: float
    releases: int
    unit: str = SITE_UPDATE
    neighbours: str = REPLACE
    without_guarantee: int = 0


def spent_words(spent: Spent) -> str:
    """What has left of some patients, for people: no epsilon without the number of releases that it does not cover."""
    rest = f"{spent.without_guarantee} release(s) without a guarantee"
    if not spent.releases:
        return f"no guaranteed release; {rest}" + (", so no epsilon" if spent.without_guarantee else "")
    value = "endless" if math.isinf(spent.epsilon) else f"{spent.epsilon:.4g}"
    covered = ", which this epsilon does not cover" if spent.without_guarantee else ""
    return (
        f"epsilon {value} at delta {spent.delta:.3g} per {spent.unit}, of {spent.releases} guaranteed release(s); "
        f"{rest}{covered}"
    )


class Ledger:
    """The ledger in a folder. Two jobs at once on one site wait for each other; nothing is kept in memory."""

    def __init__(self, folder: Path, simulated: bool = False) -> None:
        """Name the folder; the file in it is made at the first charge.

        Args:
            folder: holds ``ledger.jsonl``; for a site the folder ``ledger`` in its state folder.
            simulated: a simulation's ledger. It cannot count for a real site, nor the other way round.
        """
        self.simulated = simulated
        # Beside the ledger's folder, so that one that is gone is not taken for one that never was.
        self._file, self._marker = folder / FILE, folder.with_name(f".{folder.name}-opened")
        self._chain = HashChain(folder / FILE)

    def charge(
        self,
        dataset: str,
        patients: Iterable[str],
        release: Release,
        *,
        job: str,
        run_id: str,
        round_number: int,
        delta: float,
        budget: float | None,
        limit: float | None = DEFAULT_LIMIT,
        clip: float | None = None,
    ) -> Spent:
        """Enter a release before it leaves, if all releases on its patients then cost no more than is allowed.

        Args:
            dataset: name of the data set at the site.
            patients: ids of all patients whose data went into the result, at least one.
            release: what is about to leave.
            job, run_id, round_number: where it happens; for the reader, they play no part in the sum.
            delta: above 0 and below 1.
            budget: largest epsilon that the site allows; None where its policy says nothing.
            limit: takes the place of a budget that is None; None for no limit.
            clip: the clipping norm, for the reader.

        Returns:
            What is spent, this release included. It is on the disk.

        Raises:
            BudgetError: it would cost more; nothing is entered.
            LedgerError: the ledger was changed, is of the other kind or cannot be written; nothing may leave.
            ConfigurationError: an argument is out of its range.
        """
        allowed.number("delta", delta, above=0, below=1)
        most = _most(budget, limit)
        place = {"dataset": dataset, "job": job, "run_id": run_id, "round": round_number}
        with self._entering(patients) as (book, members, append):
            earlier, without = book.on(members)
            spent = _composed([*map(release_of, earlier), release], delta, len(without))
            if not spent.epsilon <= most:
                raise BudgetError(spent.epsilon, delta, most, spent.releases - release.count)
            append({"kind": "release", **place, **fields_of(release), "clip": clip})
        return spent

    def enter(
        self,
        dataset: str,
        patients: Iterable[str],
        what: str,
        *,
        job: str,
        run_id: str,
        round_number: int,
        most: int | None = None,
    ) -> None:
        """Enter what is about to leave without a guarantee.

        Args:
            dataset, patients, job, run_id, round_number: see ``charge``.
            what: it is, in a word or two.
            most: how often this may leave of any of these patients; None for no limit.

        Raises:
            CountError: it has left as often already; nothing is entered.
            LedgerError: see ``charge``; nothing may leave.
        """
        place = {"dataset": dataset, "job": job, "run_id": run_id, "round": round_number}
        with self._entering(patients) as (book, members, append):
            earlier = sum(entry["what"] == what for entry in book.on(members)[1])
            if most is not None and earlier >= most:
                raise CountError(what, earlier, most)
            append({"kind": WITHOUT, **place, "what": what})

    @contextmanager
    def _entering(self, patients: Iterable[str]) -> Iterator[tuple[Book, frozenset[str], Callable[[Entry], None]]]:
        """The book, the hashed patients, and what writes one entry about them, while the ledger is open."""
        names = normal(patients)
        with self._open() as writer:
            book = Book(writer.entries, self.simulated)
            salt = book.salt or secrets.token_hex(32)
            members = frozenset(hashed(salt, name) for name in names)

            def append(entry: Entry) -> None:
                """After the first line of the ledger and the patients, where these are new."""
                if book.salt is None:
                    writer.append({"kind": "opened", "schema": SCHEMA, "salt": salt, "simulated": self.simulated})
                identity = identity_of(members)
                if identity not in book.sets:
                    writer.append({"kind": "patients", "set": identity, "patients": sorted(members)})
                writer.append({**entry, "patients": identity})

            yield book, members, append

    def spent(self, delta: float, *, patients: Iterable[str] | None = None, dataset: str | None = None) -> Spent:
        """What has been spent on given patients, or on all that were ever released under a data set's name.

        Args:
            delta: above 0 and below 1.
            patients: ids; None to go by ``dataset``.
            dataset: a name; None, without patients, for all releases of the site.

        Raises:
            LedgerError: the ledger was changed or is of the other kind.
            ConfigurationError: delta is out of its range, or both patients and a data set are given.
        """
        allowed.number("delta", delta, above=0, below=1)
        if patients is not None and dataset is not None:
            raise ConfigurationError("dataset", dataset, "null where patients are given")
        book = self._read()
        if patients is not None:
            members = frozenset(hashed(book.salt or "", name) for name in normal(patients))
            entries, without = book.on(members)
        else:
            entries, without = book.of(dataset)
        return _composed([release_of(entry) for entry in entries], delta, len(without))

    def history(self, dataset: str | None = None, guaranteed: bool = True) -> list[Entry]:
        """The releases of a data set or of all, oldest first; each entry also has ``patient_count``.

        Args:
            dataset: its name at the site; None for all.
            guaranteed: releases with a guarantee, or what left without one.

        Raises:
            LedgerError: the ledger was changed or is of the other kind.
        """
        book = self._read()
        return [
            {**entry, "patient_count": len(book.sets[entry["patients"]])}
            for entry in (book.releases if guaranteed else book.without)
            if dataset is None or entry["dataset"] == dataset
        ]

    def _read(self) -> Book:
        with _refusals():
            # Before the entries: another process may enter more in between.
            noted = self._noted()
            entries = self._chain.read()
            _refuse_older(entries, noted)
            return Book(entries, self.simulated)

    @contextmanager
    def _open(self) -> Iterator[Any]:
        if not self._file.exists() and self._marker.exists():
            raise LedgerError(
                "The site's privacy ledger is gone, so nothing leaves. Bring it back from a copy, or mount its disk; "
                "docs/how-to/trouble.md says what to do if there is no copy."
            )
        with _refusals(), self._chain.exclusive() as writer:
            _refuse_older(writer.entries, self._noted())
            yield writer
            last = writer.entries[-1]["hash"] if writer.entries else ORIGIN
            write_json(self._marker, {"count": len(writer.entries), "hash": last})

    def _noted(self) -> tuple[int, str]:
        """How many entries the note beside the ledger's folder knows, and the hash of the last; 0 without a note."""
        try:
            noted = load_json(self._marker)
            return int(noted["count"]), str(noted["hash"])
        except (OSError, ValueError, KeyError, TypeError):
            # Of a version before this note, or written only in part; then the chain's own head has to do.
            return 0, ORIGIN


def _refuse_older(entries: Sequence[Entry], noted: tuple[int, str]) -> None:
    """Refuse a ledger that is an older copy, such as of a backup: it has forgotten what left since.

    Args:
        entries: of the ledger.
        noted: how many there were when it was written last, and the hash of the last of them.

    Raises:
        LedgerError: they are not all there.
    """
    count, last = noted
    if count and (len(entries) < count or entries[count - 1]["hash"] != last):
        raise LedgerError(
            f"The site's privacy ledger is not the one that was written last, of {count} entries, so nothing "
            "leaves. Bring back the newest copy; docs/how-to/trouble.md says what to do if there is none."
        )


@contextmanager
def _refusals() -> Iterator[None]:
    """What goes wrong with the file, as a refusal whose text may leave the site."""
    try:
        yield
    except ChainError as error:
        raise LedgerError(f"The site's privacy ledger is not what was written, so nothing leaves. {error}") from None
    except OSError as error:
        logger.error("The privacy ledger cannot be used: %s", error)
        raise LedgerError("The site's privacy ledger cannot be read or written, so nothing leaves.") from None


def _most(budget: float | None, limit: float | None) -> float:
    for name, value in (("budget", budget), ("limit", limit)):
        allowed.optional(allowed.number, name, value, least=0, infinite=True)
    if budget is not None:
        return budget
    return math.inf if limit is None else limit


def _composed(releases: Sequence[Release], delta: float, without: int) -> Spent:
    total, count = epsilon(releases, delta, ADAPTIVE), sum(release.count for release in releases)
    return Spent(total, delta, count, common_unit(releases), without_guarantee=without)

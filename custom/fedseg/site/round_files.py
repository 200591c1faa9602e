"""Files that a site keeps of its last rounds, so that it can go back with the server and on after a crash."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from fedseg.contract.round_numbers import nth
from fedseg.errors import RefusalError
from fedseg.files.documents import LEFTOVER

DEFAULT_KEEP = 2

Values = TypeVar("Values")
logger = logging.getLogger(__name__)


class LostStateError(RefusalError):
    """What a site has kept of a run is gone or damaged, or cannot be read by this version."""

    def __init__(self, what: str) -> None:
        """Say what.

        Args:
            what: a sentence that names no file.
        """
        super().__init__(
            "state", f"{what} Restore the site's state folder, or let it go on without (workflow.fresh_states)."
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return RefusalError, (self.reason, str(self))


class RoundFiles(ABC, Generic[Values]):
    """A file for each round that the site finished; the last ones are kept.

    The file of round r holds what round r + 1 starts from. A round that is asked for again (its result was lost on
    the way) so starts from the same values as the first time. A run that goes back to an earlier round leaves files of
    the branch that it no longer follows; with ``lineage`` they are passed over.

    Attributes:
        folder: where the files lie.
        keep: how many of the last rounds are kept; 0 keeps all.
        start: which start of the server the present round belongs to; stored with the file.
        lineage: for each finished round of the run the start that made it; None where it is unknown.
        last: the last round in which this site took part, as the server knows it; None where it is unknown, or none.
        fresh: whether the site may go on without what it has lost.
        lost: whether it has done so since the last ``follow``.
    """

    ending: ClassVar[str]
    damaged: ClassVar[str]
    gone: ClassVar[str]
    too_old: ClassVar[str]
    """What is said of the file of a round, and where none leads to a round: its number, and how many are kept."""

    def __init__(
        self,
        folder: Path,
        keep: int = DEFAULT_KEEP,
        start: str | None = None,
        lineage: Sequence[str] | None = None,
        last: int | None = None,
        fresh: bool = False,
    ) -> None:
        self.folder, self.keep, self.start, self.lineage = folder, keep, start, lineage
        self.last, self.fresh, self.lost = last, fresh, False

    def follow(self, **place: Any) -> None:
        """Be where the run is now: new values of the attributes with which this was made."""
        self.lost = False
        vars(self).update(place)

    def load(self, before_round: int) -> Values | None:
        """The values of the newest round earlier than ``before_round``; None before any round.

        Raises:
            LostStateError: this site has been through that round, by its own files or by the server's word, but has
                none that lead to it; or a file is damaged.
        """
        rounds, last = self._rounds(), -1 if self.last is None else self.last
        for number in reversed([r for r in rounds if r < before_round]):
            if self._followed(number):
                if number < last < before_round:
                    break
                return self._read(number)
        if 0 <= last < before_round:
            raise LostStateError(self.gone.format(nth(last)))
        if rounds and self._facts(rounds[-1])[1] < before_round:
            raise LostStateError(self.too_old.format(nth(before_round), self.keep))
        return None

    def load_or_lose(self, before_round: int, dispensable: bool = False) -> Values | None:
        """See ``load``; None in the place of lost values if they are dispensable, or the site was told to go on."""
        try:
            return self.load(before_round)
        except LostStateError as error:
            if not (dispensable or self.fresh):
                raise
            logger.error("The round is trained without what was kept before it: %s", error)
            self.lost = True
            return None

    def save(self, round_number: int, values: Any) -> None:
        """Store what the next round starts from, complete or not at all; files of later rounds go away.

        Raises:
            RefusalError: it cannot be written (reason ``state``); the files of the rounds before are as they were.
        """
        first = min(round_number, self._first())
        for leftover in self.folder.glob(f"{LEFTOVER}*"):
            leftover.unlink(missing_ok=True)
        self._write(round_number, first, values)
        rounds = self._rounds()
        earlier = [r for r in rounds if r <= round_number]
        for other in (earlier[: -self.keep] if self.keep else []) + [r for r in rounds if r > round_number]:
            self._path(other).unlink(missing_ok=True)

    def _followed(self, number: int) -> bool:
        """Whether the run still follows the branch on which a file was written."""
        start, _ = self._facts(number)
        return self.lineage is None or number >= len(self.lineage) or start == str(self.lineage[number])

    def _first(self) -> float:
        """The first round in which the site took part, by its newest file that can be read; others are put aside."""
        for number in reversed(self._rounds()):
            try:
                return self._facts(number)[1]
            except LostStateError:
                self._path(number).replace(self.folder / f"damaged-{self._path(number).name}")
        return float("inf")

    def _damaged(self, number: int, error: object) -> LostStateError:
        """The refusal of a file; its name is for the site's log only."""
        logger.error("The file %s cannot be used: %s", self._path(number), error)
        return LostStateError(self.damaged.format(nth(number)))

    @abstractmethod
    def _facts(self, number: int) -> tuple[str, int]:
        """Start, and first round in which the site took part, as a file says.

        Raises:
            LostStateError: the file is damaged.
        """

    @abstractmethod
    def _read(self, number: int) -> Values:
        """The values of a file.

        Raises:
            LostStateError: the file is damaged.
        """

    @abstractmethod
    def _write(self, number: int, first: float, values: Any) -> None:
        """Write the file of a round; see ``save``."""

    def _path(self, number: int) -> Path:
        return self.folder / f"round-{number:05d}{self.ending}"

    def _rounds(self) -> list[int]:
        return sorted(int(path.stem.removeprefix("round-")) for path in self.folder.glob(f"round-*{self.ending}"))

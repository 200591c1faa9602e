"""Files that a site keeps of its last rounds, so that it can go back with the server and on after a crash."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from fedseg.errors import RefusalError
from fedseg.files.documents import LEFTOVER

DEFAULT_KEEP = 2

Values = TypeVar("Values")


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
    """

    ending: ClassVar[str]

    def __init__(
        self, folder: Path, keep: int = DEFAULT_KEEP, start: str | None = None, lineage: Sequence[str] | None = None
    ) -> None:
        self.folder, self.keep, self.start, self.lineage = folder, keep, start, lineage

    def load(self, before_round: int) -> Values | None:
        """The values of the newest round earlier than ``before_round``; None before any round.

        Raises:
            RefusalError: this site has been through that round, but keeps only files that do not lead to it, or a file
                is damaged (reason ``state``).
        """
        rounds = self._rounds()
        for number in reversed([r for r in rounds if r < before_round]):
            start, _, values = self._read(number)
            if self.lineage is None or number >= len(self.lineage) or str(start) == str(self.lineage[number]):
                return values
        if rounds and int(self._read(rounds[-1], facts=True)[1]) < before_round:
            raise RefusalError("state", self._gone(before_round))
        return None

    def save(self, round_number: int, values: Any) -> None:
        """Store what the next round starts from, complete or not at all; files of later rounds go away.

        Raises:
            RefusalError: it cannot be written (reason ``state``); the files of the rounds before are as they were.
        """
        rounds = self._rounds()
        first = min(round_number, int(self._read(rounds[-1], facts=True)[1])) if rounds else round_number
        for leftover in self.folder.glob(f"{LEFTOVER}*"):
            leftover.unlink(missing_ok=True)
        self._write(round_number, first, values)
        rounds = self._rounds()
        earlier = [r for r in rounds if r <= round_number]
        for other in (earlier[: -self.keep] if self.keep else []) + [r for r in rounds if r > round_number]:
            self._path(other).unlink(missing_ok=True)

    @abstractmethod
    def _read(self, number: int, facts: bool = False) -> tuple[Any, Any, Values]:
        """Start, first round in which the site took part, and values; only the first two are looked at for ``facts``.

        Raises:
            RefusalError: the file is damaged (reason ``state``).
        """

    @abstractmethod
    def _write(self, number: int, first: int, values: Any) -> None:
        """Write the file of a round; see ``save``."""

    @abstractmethod
    def _gone(self, before_round: int) -> str:
        """What a refusal says where no file leads to a round."""

    def _path(self, number: int) -> Path:
        return self.folder / f"round-{number:05d}{self.ending}"

    def _rounds(self) -> list[int]:
        return sorted(int(path.stem.removeprefix("round-")) for path in self.folder.glob(f"round-*{self.ending}"))

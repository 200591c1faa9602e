"""What a site did not send, kept on its own disk for the next round (error feedback).

Seide et al., Interspeech 2014; Karimireddy et al., ICML 2019: without it, coordinates that are always small are never
learned; with it, every coordinate's sum over the rounds travels sooner or later.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from fedseg.errors import RefusalError
from fedseg.files.arrays import save_whole
from fedseg.files.documents import LEFTOVER
from fedseg.networks.weights import Arrays
from fedseg.site.state import DEFAULT_KEEP

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResidualStore:
    """A file for each round in which the site sent something; the last ones are kept.

    As with ``training.state.SiteState``, a round that is asked for again starts from the residual of the round before
    it and not from its own, and files of a branch of the run that is no longer followed are passed over.

    Attributes:
        folder: where the files lie.
        keep: how many of the last rounds are kept; 0 keeps all.
        start: which start of the server the present round belongs to; stored with the file.
        lineage: for each finished round of the run the start that made it; None where nobody says.
    """

    folder: Path
    keep: int = DEFAULT_KEEP
    start: str | None = None
    lineage: Sequence[str] | None = None

    def load(self, before_round: int) -> Arrays:
        """The residual of the newest round earlier than ``before_round``; empty before any round.

        Raises:
            RefusalError: the site has been through that round, but keeps only later ones, or a file is damaged
                (reason ``state``).
        """
        rounds = self._rounds()
        for number in reversed([r for r in rounds if r < before_round]):
            header, arrays = self._read(number)
            if self.lineage is None or number >= len(self.lineage) or header["start"] == str(self.lineage[number]):
                return arrays
        if rounds and int(self._read(rounds[-1])[0]["first"]) < before_round:
            raise RefusalError("state", f"What this site had not sent before round {before_round} is gone.")
        return {}

    def save(self, round_number: int, residual: Mapping[str, np.ndarray]) -> None:
        """Store what the next round adds to its update, complete or not at all; later rounds' files go away."""
        rounds = self._rounds()
        first = min(round_number, int(self._read(rounds[-1])[0]["first"])) if rounds else round_number
        for leftover in self.folder.glob(f"{LEFTOVER}*"):
            leftover.unlink(missing_ok=True)
        save_whole(self._path(round_number), residual, {"start": str(self.start), "first": str(first)})
        rounds = self._rounds()
        earlier = [r for r in rounds if r <= round_number]
        for other in (earlier[: -self.keep] if self.keep else []) + [r for r in rounds if r > round_number]:
            self._path(other).unlink(missing_ok=True)

    def _read(self, number: int) -> tuple[dict[str, str], Arrays]:
        try:
            with safe_open(self._path(number), framework="numpy") as file:
                header = file.metadata()
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return {name: header[name] for name in ("start", "first")}, arrays
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            logger.error("The file %s cannot be read: %s", self._path(number), error)
            raise RefusalError("state", f"What this site had not sent in round {number} is damaged.") from None

    def _path(self, number: int) -> Path:
        return self.folder / f"round-{number:05d}.safetensors"

    def _rounds(self) -> list[int]:
        return sorted(int(path.stem.removeprefix("round-")) for path in self.folder.glob("round-*.safetensors"))

"""Checkpoints of a run at the server: one file per finished round, from which the run continues to the last bit."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedseg.contract.round_numbers import listed, nth
from fedseg.errors import FedsegError
from fedseg.files.arrays import read_arrays, read_sealed, save_sealed
from fedseg.networks.weights import Arrays

_FORMAT = "fedseg-checkpoint-1"
_BEST = "best_round"
# JSON lies among the arrays: a header of this format may not grow beyond 100 MB.
_VALUES = "values"

logger = logging.getLogger(__name__)


class CheckpointError(FedsegError):
    """A checkpoint is missing, damaged, or belongs to another run."""


class Checkpoints:
    """The checkpoints of one run; each holds arrays and plain JSON values in a single safetensors file."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        """Open a folder of checkpoints, which need not exist yet.

        Args:
            folder: the server's state folder of the run.
            keep: how many of the last rounds are kept (with the best model of each); 0 keeps all.
        """
        self.folder, self.keep = folder, keep
        self.unlock: Callable[[], object] = lambda: None

    def rounds(self) -> list[int]:
        """Rounds with a checkpoint, ascending."""
        return sorted(
            int(path.stem.removeprefix("checkpoint-")) for path in self.folder.glob("checkpoint-*.safetensors")
        )

    def resumable(self) -> list[int]:
        """Rounds from which the run can be continued: those for which the sites keep their states too, ascending."""
        return self.rounds()[-self.keep :] if self.keep else self.rounds()

    def lock(self) -> None:
        """Make sure that no other process works on this run, until this one ends, or ``unlock``.

        Raises:
            CheckpointError: another process does.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.folder / "lock", os.O_CREAT | os.O_RDWR)
        self.unlock = weakref.finalize(self, os.close, lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CheckpointError(
                f"The run {self.folder.name} is still going in another process; end that one first."
            ) from None

    def drop_after(self, round_number: int) -> None:
        """Remove the checkpoints of later rounds, which belong to a branch that is no longer followed."""
        for later in [r for r in self.rounds() if r > round_number]:
            self._path(later).unlink(missing_ok=True)

    def save(self, round_number: int, arrays: Arrays, values: Mapping[str, Any]) -> None:
        """Store the state after a round, complete or not at all; later rounds of an abandoned branch go away.

        Args:
            round_number: the finished round.
            arrays: see ``GlobalModel.arrays``.
            values: plain JSON; ``best_round`` in it names the checkpoint that holds the best model so far.
        """
        text = np.frombuffer(json.dumps(dict(values)).encode(), np.uint8)
        save_sealed(self._path(round_number), {**arrays, _VALUES: text}, {"format": _FORMAT})
        self.drop_after(round_number)
        self._prune()

    def _prune(self) -> None:
        """Remove what is neither among the last rounds nor the best model of one of them."""
        last = self.resumable()
        try:
            best = {self.load(r, False)[1].get(_BEST) for r in last}
        except CheckpointError as error:
            logger.warning("Nothing is removed: %s", error)
            return
        for old in set(self.rounds()) - {*last, *best}:
            self._path(old).unlink(missing_ok=True)

    def load(self, round_number: int, with_arrays: bool = True) -> tuple[Arrays, dict[str, Any]]:
        """Arrays and values of a round's checkpoint.

        Raises:
            CheckpointError: there is none, or it is damaged.
        """
        try:
            path = self._path(round_number)
            header, arrays = read_sealed(path) if with_arrays else read_arrays(path, [_VALUES])
            if header.get("format") != _FORMAT:
                raise CheckpointError(f"The checkpoint of round {nth(round_number)} is not one of this version.")
            return arrays, json.loads(arrays.pop(_VALUES).tobytes())
        except FileNotFoundError:
            raise CheckpointError(
                f"There is no checkpoint of round {nth(round_number)}; there are those of the rounds "
                f"{listed(self.rounds())}."
            ) from None
        except (OSError, KeyError, json.JSONDecodeError) as error:
            raise CheckpointError(f"The checkpoint of round {nth(round_number)} is damaged ({error}).") from None

    def _path(self, round_number: int) -> Path:
        return self.folder / f"checkpoint-{round_number:05d}.safetensors"

"""Checkpoints of a run at the server: one file per finished round, from which the run goes on to the last bit."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fedseg.errors import FedsegError
from fedseg.networks.weights import Arrays, contiguous

_FORMAT = "fedseg-checkpoint-1"
_BEST = "best_round"


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

    def rounds(self) -> list[int]:
        """Rounds with a checkpoint, ascending."""
        return sorted(
            int(path.stem.removeprefix("checkpoint-")) for path in self.folder.glob("checkpoint-*.safetensors")
        )

    def save(self, round_number: int, arrays: Arrays, values: Mapping[str, Any]) -> None:
        """Store the state after a round, complete or not at all; later rounds of an abandoned branch go away.

        Args:
            round_number: the finished round.
            arrays: see ``GlobalModel.arrays``.
            values: plain JSON; ``best_round`` in it names the checkpoint that holds the best model so far.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(round_number)
        temporary = path.with_suffix(".tmp")
        save_file(contiguous(arrays), temporary, {"format": _FORMAT, "values": json.dumps(dict(values))})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        for later in [r for r in self.rounds() if r > round_number]:
            self._path(later).unlink(missing_ok=True)
        if self.keep:
            last = self.rounds()[-self.keep :]
            needed = {*last, *(best for r in last if (best := self.load(r, False)[1].get(_BEST)) is not None)}
            for old in set(self.rounds()) - needed:
                self._path(old).unlink(missing_ok=True)

    def load(self, round_number: int, with_arrays: bool = True) -> tuple[Arrays, dict[str, Any]]:
        """Arrays and values of a round's checkpoint.

        Raises:
            CheckpointError: there is none, or it is damaged.
        """
        try:
            with safe_open(self._path(round_number), framework="numpy") as file:
                header = file.metadata() or {}
                names = list(file.keys()) if with_arrays else []
                arrays = {name: file.get_tensor(name) for name in names}
            if header.get("format") != _FORMAT:
                raise CheckpointError(f"The checkpoint of round {round_number} is not one of this version.")
            return arrays, json.loads(header["values"])
        except FileNotFoundError:
            raise CheckpointError(
                f"There is no checkpoint of round {round_number}; there are those of the rounds {self.rounds()}."
            ) from None
        except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
            raise CheckpointError(f"The checkpoint of round {round_number} is damaged ({error}).") from None

    def _path(self, round_number: int) -> Path:
        return self.folder / f"checkpoint-{round_number:05d}.safetensors"

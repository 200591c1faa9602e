"""The encrypted sums of a run at the server: one file a round, written once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from fedseg.contract.round_numbers import listed, nth
from fedseg.errors import RefusalError
from fedseg.files.arrays import read_arrays, save_whole
from fedseg.privacy.encryption.encrypted_model import EncryptedRound, next_id, read_round
from fedseg.workflows.run.checkpoint import CheckpointError

_PREFIX = "encrypted-"


class EncryptedHistory:
    """All encrypted rounds of a run, in files that lie beside its checkpoints and are never written again."""

    def __init__(self, folder: Path) -> None:
        """Open a folder, which need not exist yet."""
        self.folder = folder

    def rounds(self) -> list[int]:
        """Numbers of the stored rounds, ascending."""
        return sorted(int(path.stem.removeprefix(_PREFIX)) for path in self.folder.glob(f"{_PREFIX}*.safetensors"))

    def save(self, number: int, before: str, added: EncryptedRound) -> str:
        """Store a round, complete or not at all.

        Args:
            number: of the round.
            before: id of the model to which it is added.
            added: the round.

        Returns:
            The id of the model that it leads to.
        """
        result = next_id(before, added)
        header = {"facts": json.dumps(added.facts()), "id": result}
        save_whole(self._path(number), added.ciphertexts.to_arrays(), header)
        return result

    def load(self, number: int) -> EncryptedRound:
        """A stored round.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        header, arrays = self._read(number, with_arrays=True)
        try:
            return read_round(json.loads(header["facts"]), arrays)
        except (RefusalError, json.JSONDecodeError) as error:
            raise CheckpointError(f"The encrypted round {nth(number)} is damaged ({error}).") from None

    def id_after(self, number: int) -> str:
        """Id of the model after a stored round.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        return self._read(number, with_arrays=False)[0]["id"]

    def drop_after(self, number: int) -> None:
        """Remove later rounds, which belong to a branch that is no longer followed."""
        for later in [r for r in self.rounds() if r > number]:
            self._path(later).unlink(missing_ok=True)

    def _read(self, number: int, with_arrays: bool) -> tuple[dict[str, str], dict[str, np.ndarray]]:
        try:
            header, arrays = read_arrays(self._path(number), None if with_arrays else [])
        except FileNotFoundError:
            raise CheckpointError(
                f"The encrypted round {nth(number)} is missing; there are {listed(self.rounds())}."
            ) from None
        except OSError as error:
            raise CheckpointError(f"The encrypted round {nth(number)} is damaged ({error}).") from None
        if not {"facts", "id"} <= set(header):
            raise CheckpointError(f"The encrypted round {nth(number)} is damaged (its header is incomplete).")
        return header, arrays

    def _path(self, number: int) -> Path:
        return self.folder / f"{_PREFIX}{number:05d}.safetensors"

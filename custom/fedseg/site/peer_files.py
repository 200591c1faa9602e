"""What a site keeps where models go between sites: its update until the merged model is there, and merged models."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedseg.contract.round_numbers import nth
from fedseg.errors import RefusalError
from fedseg.files.arrays import read_sealed, save_sealed
from fedseg.files.digest import model_digest
from fedseg.networks.weights import Arrays

logger = logging.getLogger(__name__)
_FOLDER, _UPDATE, _MODEL = "peers", "update.safetensors", "model-{:05d}.safetensors"


@dataclass(frozen=True)
class HeldUpdate:
    """An update as it left the filters, which waits for a leader.

    Attributes:
        round: from 0.
        start: of the server that asked for the round.
        sites: of the round.
        take_over: seconds that a leader may take.
        meta: of the update's message: report, steps and form.
        arrays: of the update, in its form.
    """

    round: int
    start: str
    sites: tuple[str, ...]
    take_over: float
    meta: Mapping[str, Any]
    arrays: Arrays = field(repr=False)

    @property
    def digest(self) -> str:
        """Of the arrays."""
        return model_digest(self.arrays)


@dataclass(frozen=True)
class MergedModel:
    """The model after a round, and what was told of the merging.

    Attributes:
        round: from 0.
        digest: of the weights.
        facts: of the merging, see ``executors.peers.leading``.
        weights: all parameters and buffers.
    """

    round: int
    digest: str
    facts: Mapping[str, Any]
    weights: Arrays = field(repr=False)


class PeerFiles:
    """The files of one run at one site, each complete or not there.

    >>> import tempfile
    >>> import numpy as np
    >>> files = PeerFiles(Path(tempfile.mkdtemp()))
    >>> files.save_model(0, {"w": np.ones(2)}, {"leader": "a"})
    >>> files.model_of(0).facts, files.model_of(1)
    ({'leader': 'a'}, None)
    """

    def __init__(self, folder: Path) -> None:
        """Name the folder.

        Args:
            folder: of the run at this site.
        """
        self.folder = folder / _FOLDER

    def save_update(self, update: HeldUpdate) -> None:
        """Keep an update in place of that of the round before."""
        header = {"round": str(update.round), "start": update.start, "sites": json.dumps(update.sites)}
        header |= {"take_over": str(update.take_over), "meta": json.dumps(dict(update.meta))}
        save_sealed(self.folder / _UPDATE, update.arrays, header)

    def update_of(self, number: int) -> HeldUpdate:
        """The update of a round.

        Raises:
            RefusalError: none waits here, or it is damaged (reason ``state``).
        """
        header, arrays = _read(self.folder / _UPDATE) or ({}, {})
        if header.get("round") != str(number):
            raise RefusalError("state", f"No update of round {nth(number)} waits at this site.")
        sites, meta = json.loads(header["sites"]), json.loads(header["meta"])
        return HeldUpdate(number, header["start"], tuple(sites), float(header["take_over"]), meta, arrays)

    def save_model(self, number: int, weights: Arrays, facts: Mapping[str, Any]) -> None:
        """Keep the model after a round, in place of what was kept under this number."""
        header = {"model": model_digest(weights), "facts": json.dumps(dict(facts))}
        save_sealed(self.folder / _MODEL.format(number), weights, header)

    def model_of(self, number: int) -> MergedModel | None:
        """The model after a round; None where there is none that can be read."""
        found = _read(self.folder / _MODEL.format(number))
        if found is None:
            return None
        header, weights = found
        return MergedModel(number, header["model"], json.loads(header["facts"]), weights)

    def model_with(self, digest: str) -> MergedModel | None:
        """The model with a digest, of whatever round; None where it is not here."""
        found = (self.model_of(number) for number in reversed(self.rounds()))
        return next((model for model in found if model is not None and model.digest == digest), None)

    def rounds(self) -> list[int]:
        """The rounds whose models are here."""
        return sorted(int(path.stem.removeprefix("model-")) for path in self.folder.glob("model-*.safetensors"))

    def keep(self, wanted: Collection[str], last: int) -> None:
        """Remove all models but the last ones and those that are still wanted.

        Args:
            wanted: digests of models that stay.
            last: how many of the last ones stay; 0 for all.
        """
        for number in self.rounds()[:-last] if last else []:
            model = self.model_of(number)
            if model is None or model.digest not in wanted:
                self._remove(number)

    def go_back(self, number: int, start: str) -> None:
        """Remove the models of a round and of later ones that another start of the server has made."""
        for later in [each for each in self.rounds() if each >= number]:
            model = self.model_of(later)
            if model is None or later > number or model.facts.get("start") != start:
                self._remove(later)

    def _remove(self, number: int) -> None:
        (self.folder / _MODEL.format(number)).unlink(missing_ok=True)


def _read(path: Path) -> tuple[dict[str, str], Arrays] | None:
    try:
        return read_sealed(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        logger.error("A file of the swarm at this site cannot be read: %s", error)
        return None

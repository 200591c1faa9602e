"""Updates that have arrived and wait to be counted: on the server's disk, so that no crash of the server loses one."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from fedseg.contract.protocol import STEPS
from fedseg.contract.report import META_KEY
from fedseg.files.arrays import read_sealed, save_sealed

_FORMAT = "fedseg-arrival-1"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arrival:
    """An update that waits to be accepted.

    Attributes:
        number: of the arrival in this run, from 0.
        site: who sent it.
        round: of the model that the site received.
        start: the start of the server that sent that model.
        answer: the update.
        bytes: that came from the site, and went to it.
    """

    number: int
    site: str
    round: int
    start: str
    answer: FLModel
    bytes: tuple[int, int]


class Arrivals:
    """The files of arrivals, each written before anybody counts it and removed after a checkpoint holds what became of
    it.

    Attributes:
        next: number of the next arrival.
    """

    def __init__(self, folder: Path) -> None:
        """Open the folder, which need not exist yet."""
        self._folder = folder
        self.next = 0

    def put(self, site: str, begun: int, start: str, answer: FLModel, size: tuple[int, int]) -> Arrival:
        """Write an update down; see ``Arrival``."""
        arrival = Arrival(self.next, site, begun, start, answer, size)
        about = {"site": site, "round": begun, "start": start, "bytes": list(size), "diff": _is_difference(answer)}
        meta = {key: (answer.meta or {})[key] for key in (META_KEY, STEPS) if key in (answer.meta or {})}
        header = {"format": _FORMAT, "about": json.dumps(about), "meta": json.dumps(meta)}
        save_sealed(self._path(self.next), dict(answer.params or {}), header)
        self.next += 1
        return arrival

    def left(self, since: int, waiting: Collection[int]) -> Iterator[Arrival]:
        """What a former start has left: the arrivals that waited at its last checkpoint, and those that came after it.

        Files of other arrivals, which that checkpoint holds, are removed; damaged ones are logged and left out.

        Args:
            since: number of the first arrival after the checkpoint.
            waiting: numbers of those that waited then.
        """
        self.next = since
        for path in sorted(self._folder.glob("arrival-*.safetensors")):
            number = int(path.stem.removeprefix("arrival-"))
            self.next = max(self.next, number + 1)
            if number < since and number not in waiting:
                path.unlink(missing_ok=True)
                continue
            try:
                header, arrays = read_sealed(path)
                about, meta = json.loads(header["about"]), json.loads(header["meta"])
            except (OSError, KeyError, ValueError) as error:
                logger.error("The arrival %s cannot be read (%s); it is left out.", path, error)
                continue
            kind = ParamsType.DIFF if about["diff"] else None
            answer = FLModel(params_type=kind, params=arrays, meta=meta)
            up, down = about["bytes"]
            yield Arrival(number, about["site"], about["round"], about["start"], answer, (up, down))

    def remove(self, numbers: Collection[int]) -> None:
        """Forget arrivals of which a checkpoint holds what became of them."""
        for number in numbers:
            self._path(number).unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self._folder / f"arrival-{number:08d}.safetensors"


def _is_difference(answer: FLModel) -> bool:
    return bool(answer.params_type == ParamsType.DIFF)

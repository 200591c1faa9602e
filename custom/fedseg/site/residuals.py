"""What a site did not send, kept on its own disk for the next round (error feedback).

Seide et al., Interspeech 2014; Karimireddy et al., ICML 2019: without it, coordinates that are always small are never
learned; with it, every coordinate's sum over the rounds travels sooner or later.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedseg.contract.round_numbers import nth
from fedseg.errors import RefusalError
from fedseg.files.arrays import read_arrays, save_whole
from fedseg.networks.weights import Arrays
from fedseg.site.round_files import RoundFiles

logger = logging.getLogger(__name__)


class ResidualStore(RoundFiles[Arrays]):
    """What was not sent, for each round in which the site sent something."""

    ending = ".safetensors"

    def _write(self, number: int, first: int, values: Mapping[str, np.ndarray]) -> None:
        save_whole(self._path(number), values, {"start": str(self.start), "first": str(first)})

    def _read(self, number: int, facts: bool = False) -> tuple[Any, Any, Arrays]:
        try:
            header, arrays = read_arrays(self._path(number))
            return header["start"], int(header["first"]), arrays
        except (OSError, KeyError, ValueError) as error:
            logger.error("The file %s cannot be read: %s", self._path(number), error)
            raise RefusalError("state", f"What this site had not sent in round {nth(number)} is damaged.") from None

    def _gone(self, before_round: int) -> str:
        return f"What this site had not sent before round {nth(before_round)} is gone."

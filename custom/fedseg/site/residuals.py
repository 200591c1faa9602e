"""What a site did not send, kept on its own disk for the next round (error feedback).

Seide et al., Interspeech 2014; Karimireddy et al., ICML 2019: without it, coordinates that are always small are never
learned; with it, every coordinate's sum over the rounds travels sooner or later.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedseg.files.arrays import read_sealed, save_sealed
from fedseg.networks.weights import Arrays
from fedseg.site.round_files import RoundFiles


class ResidualStore(RoundFiles[Arrays]):
    """What was not sent, for each round in which the site sent something."""

    ending = ".safetensors"
    damaged = "What this site had not sent in round {} is damaged, or none of this software."
    gone = "What this site had not sent in round {} is gone."
    too_old = "What this site had not sent before round {} is gone."

    def _write(self, number: int, first: float, values: Mapping[str, np.ndarray]) -> None:
        save_sealed(self._path(number), values, {"start": str(self.start), "first": str(first)})

    def _facts(self, number: int) -> tuple[str, int]:
        return self._content(number)[:2]

    def _read(self, number: int) -> Arrays:
        return self._content(number)[2]

    def _content(self, number: int) -> tuple[str, int, Arrays]:
        try:
            header, arrays = read_sealed(self._path(number))
            return header["start"], int(header["first"]), arrays
        except (OSError, KeyError, ValueError) as error:
            raise self._damaged(number, error) from None

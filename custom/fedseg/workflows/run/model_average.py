"""An exponential moving average of the global models over the rounds, which the server keeps beside them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedseg.networks.weights import Arrays, is_averaged


class ModelAverage:
    """e <- d e + (1 - d) w after round t = 1, 2, ..., d = min(decay, (1 + t) / (10 + t)), from the model of the start.

    The training knows nothing of it: sites are always sent w. The formula is that of ``training.weight_average``, with
    rounds in the place of steps; its sources stand there. Counters are those of the last model.

    >>> average = ModelAverage(0.5)
    >>> average.begin({"w": np.zeros(1)})
    >>> average.take({"w": np.full(1, 11.0)}, 1)
    >>> average.weights
    {'w': array([9.])}

    Attributes:
        decay: share of the former average in the next once it has risen, from 0 (the last model) to below 1.
        weights: the average, in the types of the model; empty before the first round.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.weights: Arrays = {}

    def begin(self, weights: Mapping[str, np.ndarray]) -> None:
        """Begin with the model of the start; once it has begun this does nothing."""
        self.weights = self.weights or dict(weights)

    def take(self, weights: Mapping[str, np.ndarray], rounds: int) -> None:
        """Take in the model after so many rounds."""
        decay = min(self.decay, (1 + rounds) / (10 + rounds))
        self.weights = {name: _moved(self.weights[name], value, decay) for name, value in weights.items()}


def _moved(average: np.ndarray, value: np.ndarray, decay: float) -> np.ndarray:
    if not decay or not is_averaged(value):
        return value
    moved = decay * np.asarray(average, np.float64) + (1 - decay) * np.asarray(value, np.float64)
    return np.asarray(moved, value.dtype)

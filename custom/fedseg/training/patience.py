"""When training at a site ends by itself: after so many looks at a model that was no better than the best one."""

from __future__ import annotations

from fedseg.networks.weights import Arrays
from fedseg.tasks.objective import Score


class Watch:
    """How a model does at one site, and what it was at its best there.

    >>> from fedseg.tasks.objective import Score
    >>> watch = Watch(Score("dice", "Dice", highest=1.0), patience=2)
    >>> [watch.sees(score, {"w": score}) for score in (0.5, 0.6, 0.6, 0.4)], watch.weights
    ([False, False, False, True], {'w': 0.6})

    Attributes:
        weights: of the best model seen; the first one, where none has a score.
        tired: whether there were too many in a row that were no better.
    """

    def __init__(self, primary: Score, patience: int) -> None:
        """Begin with nothing seen.

        Args:
            primary: the score by which models are compared.
            patience: looks in a row without a better one.
        """
        self.tired = False
        self.weights: Arrays = {}
        self._primary, self._patience, self._since = primary, patience, 0
        self._score: float | None = None

    def sees(self, score: float | None, weights: Arrays) -> bool:
        """Look at a model; returns ``tired``.

        Args:
            score: of it; None where no case defines it.
            weights: of it.
        """
        better = score is not None and (self._score is None or self._primary.better(score, self._score))
        if better or not self.weights:
            self._score, self.weights, self._since = score, weights, 0
        else:
            self._since += 1
        self.tired = self._since >= self._patience
        return self.tired

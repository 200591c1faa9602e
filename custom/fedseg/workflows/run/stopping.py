"""When a run ends before its last round."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from fedseg.allowed import number, setting, whole
from fedseg.tasks.objective import Score


@dataclass(frozen=True)
class StoppingRules:
    """Asked after every round; the first rule that says stop ends the training, and the last models are scored.

    Scores are those of the model that the sites of a round RECEIVED, over all their validation cases: a rule on
    them speaks one round late, and the model that it speaks of is kept as the best one.

    Attributes:
        target_dice: stop once a model has reached this mean validation Dice, or primary score of another kind of task;
            None for never.
        patience: stop after this many rounds in a row without a better model; None for never.
        max_hours: start no round once this many hours have passed, those before a resume included; None for never.
        max_epsilon: start no round in which a site could exceed this epsilon, if each round costs it as much as its
            costliest so far; needs sites that report what they spend; None for never.
    """

    target_dice: float | None = setting(None, number, above=0, most=1, allowed="a Dice above 0 and up to 1")
    patience: int | None = setting(None, whole, allowed="a whole number of rounds of at least 1")
    max_hours: float | None = setting(None, number, above=0, allowed="hours above 0")
    max_epsilon: float | None = setting(None, number, above=0, allowed="an epsilon above 0")

    def __post_init__(self) -> None:
        check_fields(self, "workflow")

    def reason(self, rounds: Sequence[Mapping[str, Any]], hours: float, score: Score) -> str | None:
        """Why no further round should start, or None.

        Args:
            rounds: the finished rounds, as they stand in the run's summary.
            hours: time spent so far.
            score: the primary one of the kind of task.
        """
        values = [entry[f"val_{score.name}"] for entry in rounds]
        best = score.best(values)
        if self.target_dice is not None and best is not None and not score.better(self.target_dice, best):
            return f"a model reached the validation {score.title} {best:.4f}; the target was {self.target_dice}"
        if self.patience is not None and best is not None:
            without = len(values) - 1 - values.index(best)
            if without >= self.patience:
                return f"{without} rounds brought no model better than {best:.4f}"
        if self.max_hours is not None and hours >= self.max_hours:
            return f"{hours:.3g} hours have passed; {self.max_hours} were allowed"
        return self._privacy(rounds)

    def _privacy(self, rounds: Sequence[Mapping[str, Any]]) -> str | None:
        if self.max_epsilon is None:
            return None
        spent: dict[str, list[float]] = {}
        for entry in rounds:
            for site, values in entry["sites"].items():
                if values.get("epsilon") is not None:
                    spent.setdefault(site, [0.0]).append(values["epsilon"])
        for site, course in sorted(spent.items()):
            most = max(after - before for before, after in itertools.pairwise(course))
            if course[-1] + most > self.max_epsilon:
                return (
                    f"{site} has spent epsilon {course[-1]:.4g}, and another round could exceed the budget of "
                    f"{self.max_epsilon}"
                )
        return None


def check_fields(settings: Any, where: str) -> None:
    """Check an object of settings whose fields are made by ``allowed.setting``.

    Raises:
        ConfigurationError: names the first field that is wrong.
    """
    for each in fields(settings):
        if "check" in each.metadata:
            each.metadata["check"](f"{where}.{each.name}", getattr(settings, each.name))

"""What the server may set for a single round in place of the plan's settings, and how many steps a round then has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from fedseg.contract.settings import TrainingSettings
from fedseg.errors import RefusalError

META_KEY = "fedseg_round_settings"
_MOST_EPOCHS = 1000


def round_steps(settings: TrainingSettings, cases: int) -> int:
    """Optimizer steps of a round at a site: ``local_epochs`` times the batches that its training cases fill."""
    return settings.local_epochs * -(-cases // settings.batch_size)


@dataclass(frozen=True)
class RoundSettings:
    """Settings of one round; what is None stays as the plan has it.

    They travel in the meta of the task ``train``. A site trains with ``applied(plan.training)``, and the server holds
    the steps that it reports against ``round_steps`` of the same settings.

    >>> from fedseg.contract.settings import TrainingSettings
    >>> given = RoundSettings(local_epochs=3)
    >>> parse_round_settings(given.to_meta()) == given, RoundSettings().to_meta()
    (True, {})
    >>> round_steps(given.applied(TrainingSettings(batch_size=2)), 5)
    9

    Attributes:
        local_epochs: passes over the training cases in this round, 1 to 1000.
        learning_rate: peak of the schedule in this round, above 0 and up to 1.
        reset_optimizer: whether this round starts with a fresh optimizer.
    """

    local_epochs: int | None = None
    learning_rate: float | None = None
    reset_optimizer: bool | None = None

    def applied(self, settings: TrainingSettings) -> TrainingSettings:
        """The plan's settings with those of this round in their place."""
        return replace(settings, **self._given())

    def to_meta(self) -> dict[str, Any]:
        """The form in which they travel; empty where the plan's settings hold."""
        given = self._given()
        return {META_KEY: given} if given else {}

    def _given(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


def parse_round_settings(meta: Mapping[str, Any]) -> RoundSettings:
    """Read the settings of a round from a task's meta, trusting nothing.

    Raises:
        RefusalError: a name is unknown or a value is not allowed (reason ``plan``).
    """
    content = meta.get(META_KEY, {})
    known = {field.name for field in fields(RoundSettings)}
    if not isinstance(content, Mapping) or not set(content) <= known:
        raise RefusalError("plan", f"The settings of the round are not some of {sorted(known)}.")
    epochs, rate = content.get("local_epochs", 1), content.get("learning_rate", 1.0)
    if type(epochs) is not int or not 1 <= epochs <= _MOST_EPOCHS:
        raise RefusalError("plan", f"The round's local_epochs is not a whole number from 1 to {_MOST_EPOCHS}.")
    if type(rate) not in (int, float) or not 0 < rate <= 1:
        raise RefusalError("plan", "The round's learning_rate is not a number above 0 and up to 1.")
    if type(content.get("reset_optimizer", False)) is not bool:
        raise RefusalError("plan", "The round's reset_optimizer is not true or false.")
    return RoundSettings(**content)

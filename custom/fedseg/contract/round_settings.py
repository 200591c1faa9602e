"""What the server may set for a single round in place of the plan's settings, and how many steps a round then has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from fedseg.contract.settings import TrainingSettings
from fedseg.errors import RefusalError

META_KEY = "fedseg_round_settings"
MOST_EPOCHS, _MOST_CASES = 1000, 1_000_000


def round_steps(settings: TrainingSettings, cases: int, epoch_cases: int | None = None) -> int:
    """Optimizer steps of a round at a site: ``local_epochs`` times the batches that the patches of an epoch fill.

    Args:
        settings: of the round.
        cases: training cases of the site.
        epoch_cases: see ``RoundSettings``.
    """
    each = cases if epoch_cases is None else min(cases, epoch_cases)
    return settings.local_epochs * -(-each * settings.patches_per_case // settings.batch_size)


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
        epoch_cases: training cases of each local epoch at most, drawn anew for each; 1 to 1000000.
        patience: local epochs in a row without a better validation score at the site after which its round ends, with
            the model as it was at its best there; 1 to 1000. ``local_epochs`` is the most then.
        own_schedule: whether the learning rate's schedule spans this round alone, and not all rounds of the job.
    """

    local_epochs: int | None = None
    learning_rate: float | None = None
    reset_optimizer: bool | None = None
    epoch_cases: int | None = None
    patience: int | None = None
    own_schedule: bool | None = None

    def applied(self, settings: TrainingSettings) -> TrainingSettings:
        """The plan's settings with those of this round in their place."""
        of_plan = {each.name for each in fields(settings)}
        return replace(settings, **{name: value for name, value in self._given().items() if name in of_plan})

    def joined(self, other: RoundSettings) -> RoundSettings:
        """These settings, with those that ``other`` gives in their place."""
        return replace(self, **other._given())

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
    for name, most in (("local_epochs", MOST_EPOCHS), ("epoch_cases", _MOST_CASES), ("patience", MOST_EPOCHS)):
        count = content.get(name, 1)
        if type(count) is not int or not 1 <= count <= most:
            raise RefusalError("plan", f"The round's {name} is not a whole number from 1 to {most}.")
    rate = content.get("learning_rate", 1.0)
    if type(rate) not in (int, float) or not 0 < rate <= 1:
        raise RefusalError("plan", "The round's learning_rate is not a number above 0 and up to 1.")
    for name in ("reset_optimizer", "own_schedule"):
        if type(content.get(name, False)) is not bool:
            raise RefusalError("plan", f"The round's {name} is not true or false.")
    return RoundSettings(**content)

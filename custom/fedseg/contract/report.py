"""What a site reports beside its update: the one place where the scalars that travel in the meta are declared."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from fedseg.errors import RefusalError

META_KEY = "fedseg_report"
# What a job with a formal guarantee may still tell: data sets that differ in what one patient is have equal counts.
UNPROTECTED = ("num_samples", "num_steps", "val_cases", "seconds", "epsilon")
_LARGEST = 1e12


@dataclass(frozen=True)
class SiteReport:
    """Scalars of one site in one round.

    Attributes:
        num_samples: training cases.
        num_steps: optimizer steps of the round.
        train_loss: mean loss over the round's steps; None where the site withholds it.
        val_loss: mean loss of the received global model over the validation cases; None without such cases.
        val_dice: the received model's mean Dice per region, and ``mean`` over regions; values may be None.
        val_cases: validation cases.
        seconds: the site's own work, from task to result.
        seconds_training: the part of it spent in training steps.
        val_loss_after: mean loss of the site's own model after its local training over the validation cases; only
            with the setting ``validate_after``.
        val_dice_after: mean Dice of the same model; only with the setting ``validate_after``.
        personal_dice: mean Dice of the site's personal model over the validation cases, where a method keeps one.
        epsilon: privacy spent on the site's patients up to and including this round, where a mechanism runs.
        largest: largest absolute value of the update, in jobs that encrypt it: all sites take one scale from it.
    """

    num_samples: int
    num_steps: int
    train_loss: float | None
    val_loss: float | None
    val_dice: Mapping[str, float | None] = field(default_factory=dict)
    val_cases: int = 0
    seconds: float = 0.0
    seconds_training: float = 0.0
    val_loss_after: float | None = None
    val_dice_after: float | None = None
    personal_dice: float | None = None
    epsilon: float | None = None
    largest: float | None = None

    def to_meta(self) -> dict[str, Any]:
        """The form in which it travels, under ``META_KEY`` of the DXO's meta."""
        return {META_KEY: asdict(self)}

    def only(self, names: Collection[str]) -> SiteReport:
        """The report with these fields only; counts stay, since the server knows them from the start.

        Raises:
            KeyError: a name is not that of a field.
        """
        hidden: dict[str, Any] = {f.name: None for f in fields(self)} | {"val_dice": {}, "seconds": 0.0}
        hidden |= {"seconds_training": 0.0}
        for name in {"num_samples", "num_steps", "val_cases", *names}:
            del hidden[name]
        return replace(self, **hidden)


def parse_report(meta: Mapping[str, Any]) -> SiteReport:
    """Read a report from a DXO's meta, trusting nothing.

    Raises:
        RefusalError: the report is missing, has other fields, or a number is not finite (reason ``report``).
    """
    content = meta.get(META_KEY)
    if not isinstance(content, Mapping) or set(content) != {f.name for f in fields(SiteReport)}:
        raise RefusalError("report", "The result carries no report, or one of another version.")
    report = SiteReport(**content)
    if not isinstance(report.val_dice, Mapping):
        raise RefusalError("report", "The reported val_dice is not a Dice per region.")
    for name in ("num_samples", "num_steps", "val_cases"):
        if type(getattr(report, name)) is not int or getattr(report, name) < 0:
            raise RefusalError("report", f"The reported {name} is not a count.")
    numbers = [report.seconds, report.seconds_training]
    optional = (
        report.train_loss,
        report.val_loss,
        report.val_loss_after,
        report.val_dice_after,
        report.personal_dice,
        report.epsilon,
        report.largest,
    )
    numbers += [v for v in (*optional, *dict(report.val_dice).values()) if v is not None]
    if not all(isinstance(v, int | float) and abs(v) < _LARGEST for v in numbers):
        raise RefusalError("report", "The report holds a number that is not finite, or beyond reason.")
    if report.largest is not None and report.largest < 0:
        raise RefusalError("report", "The reported largest value is negative.")
    shares = (*report.val_dice.values(), report.val_dice_after, report.personal_dice)
    if not all(v is None or 0 <= v <= 1 for v in shares):
        raise RefusalError("report", "The report holds a Dice outside 0 to 1.")
    if report.num_samples == 0:
        raise RefusalError("report", "The site reports no training cases.")
    return report

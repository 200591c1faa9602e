"""How soon a run had a good model: the convergence score of the FeTS challenge, out of a run's summary."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedseg.errors import ConfigurationError, DataError
from fedseg.evaluation.summary import Summary, number, rows

WEEK = 7 * 24 * 3600.0


def convergence_score(dice: Sequence[float | None], seconds: Sequence[float], horizon: float) -> float:
    """The mean over time of the best validation Dice so far (FeTS challenge, Task 1, harness of 2022).

    With t and A starting at 0, each round r adds its duration and the best Dice b of any round up to it::

        t += seconds[r]
        A += b * seconds[r]
        score = ((horizon - t) * b + A) / horizon

    and no further round counts once t > horizon. What is left of the time is projected with the last b; a round that
    crosses the horizon counts up to it. So the score is the area under b over [0, horizon], divided by the horizon.

    Args:
        dice: of the model that the sites scored in each round, 0 to 1; None where nobody could: b stays as it was, and
            is 0 before the first score.
        seconds: duration of each round, 0 or more.
        horizon: the time T_max over which runs are compared, in seconds.

    Returns:
        The score, 0 to 1; larger is better.

    Raises:
        ConfigurationError: the horizon is no number above 0, a Dice or a duration is impossible, or there is not one
            duration for each Dice.
        DataError: no round has a Dice.
    """
    _check(dice, seconds, horizon)
    best = elapsed = area = score = 0.0
    for value, duration in zip(dice, seconds, strict=True):
        best = best if value is None else max(best, value)
        elapsed += duration
        area += best * duration
        score = ((horizon - elapsed) * best + area) / horizon
        if elapsed > horizon:
            break
    return score


def validation_dice(summary: Summary) -> list[float | None]:
    """The Dice of each round: mean over the regions and all validation cases, of the model that the sites received.

    As in FeTS, round r scores what round r - 1 made, and the model of the last round is not among them.

    Raises:
        DataError: no round has one.
    """
    values = [number(entry.get("val_dice")) for entry in rows(summary, "rounds")]
    if all(value is None for value in values):
        raise DataError("the summary holds no validation Dice of its rounds; a convergence score needs some.")
    return values


def measured_seconds(summary: Summary) -> list[float]:
    """The duration of each round at the server, in seconds, as it was.

    Raises:
        DataError: a round has none.
    """
    values = [number(entry.get("seconds")) for entry in rows(summary, "rounds")]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        raise DataError(f"the summary holds no duration of round {values.index(None)}; use the simulated clock.")
    return known


def _check(dice: Sequence[float | None], seconds: Sequence[float], horizon: float) -> None:
    if not (math.isfinite(horizon) and horizon > 0):
        raise ConfigurationError("horizon", horizon, "a number of seconds above 0")
    if len(dice) != len(seconds):
        raise ConfigurationError("seconds", list(seconds), f"{len(dice)} durations, one for each Dice")
    for value in dice:
        if value is not None and not 0 <= value <= 1:
            raise ConfigurationError("dice", value, "from 0 to 1, or None")
    for duration in seconds:
        if not (math.isfinite(duration) and duration >= 0):
            raise ConfigurationError("seconds", duration, "a finite number of at least 0")
    if all(value is None for value in dice):
        raise DataError("no round has a validation Dice; a convergence score needs some.")

"""Learning rates that run over all rounds of a job, wherever in a round a site is."""

from __future__ import annotations

from math import cos, pi

from fedseg.training.settings import TrainingSettings


def learning_rate(settings: TrainingSettings, progress: float) -> float:
    """Learning rate at a point of the whole job.

    Args:
        settings: peak, schedule and warm-up.
        progress: finished fraction of all steps of all rounds, 0 to 1; sites with more steps a round take smaller
            strides along the same curve.
    """
    peak, progress = settings.learning_rate, min(max(progress, 0.0), 1.0)
    if settings.schedule == "constant":
        return peak
    if settings.schedule == "polynomial":
        return peak * (1 - progress) ** 0.9
    if settings.schedule == "one_cycle" and progress < settings.warmup:
        return peak * (0.04 + 0.96 * progress / settings.warmup)
    start = settings.warmup if settings.schedule == "one_cycle" else 0.0
    return peak * 0.5 * (1 + cos(pi * (progress - start) / (1 - start)))

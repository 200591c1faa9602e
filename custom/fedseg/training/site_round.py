"""One round at one site: score the received model, train, and report. FLARE's executor and plain loops share it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from fedseg.contract.report import SiteReport
from fedseg.contract.round_settings import RoundSettings
from fedseg.contract.scores import patients_with, without_rare
from fedseg.networks.weights import Arrays, is_averaged, join_shared, split_shared
from fedseg.tasks.objective import MEAN, Objective, ScoredCase
from fedseg.training.trainer import SiteTrainer


def site_round(
    trainer: SiteTrainer,
    received: Mapping[str, np.ndarray],
    round_number: int,
    total_rounds: int,
    totals: Mapping[str, float] | None = None,
    settings: RoundSettings | None = None,
) -> tuple[Arrays, SiteReport]:
    """Everything that a site does between task and result.

    Args:
        trainer: the site.
        received: what the server sent: weights, and shared arrays under ``shared:``.
        round_number, total_rounds, totals, settings: see ``SiteTrainer.train_round``.

    Returns:
        The update, shared arrays included, and the report that travels with it.
    """
    start = time.perf_counter()
    weights, shared = split_shared(received)
    weights = trainer.own_model(weights, round_number)
    scored = trainer.validate(weights)
    result = trainer.train_round(weights, round_number, total_rounds, shared, totals, settings)
    after = trainer.validate(result.weights) if trainer.settings.validate_after else []
    steps = trainer.counted_steps()
    report = report_round(trainer, scored, steps, result.train_loss, start, result.seconds, after)
    return join_shared(result.update, result.shared), report


def report_round(
    trainer: SiteTrainer,
    scored: Sequence[ScoredCase],
    num_steps: int,
    train_loss: float | None,
    start: float,
    seconds_training: float,
    after: Sequence[ScoredCase] = (),
) -> SiteReport:
    """What a site tells of a round, of a whole network or of a part of one.

    Args:
        trainer: the site.
        scored: validation cases under the received model.
        num_steps: optimizer steps of the round.
        train_loss: mean loss over them; None where the site does not know it.
        start: when the round began, by ``time.perf_counter``.
        seconds_training: the part of it spent in training.
        after: validation cases under the site's own model, where it is scored.
    """
    told = {name: value for hook in trainer.hooks for name, value in hook.report(trainer).items()}
    return SiteReport(
        num_samples=trainer.count("training"),
        num_steps=num_steps,
        train_loss=train_loss,
        val_loss=mean_loss(scored),
        val_scores=scores_by_output(trainer.objective, scored, trainer.least_scored),
        val_cases=trainer.count("validation"),
        seconds=time.perf_counter() - start,
        seconds_training=seconds_training,
        val_loss_after=mean_loss(after),
        fresh_state=int(trainer.state is not None and trainer.state.lost),
        val_score_after=scores_by_output(trainer.objective, after, trainer.least_scored)[MEAN] if after else None,
        extras=told,
        incomplete_samples=sum(bool(case.missing) for case in trainer.datalist.training),
    )


def scores_by_output(
    kind: Objective, scored: Sequence[ScoredCase], least: int | None = None
) -> dict[str, float | None]:
    """The primary score per output, and its ``mean``.

    Args:
        kind: of the task.
        scored: the cases.
        least: fewest cases, and patients, of which a mean may be told; None for no limit, see
            ``contract.scores.without_rare``.
    """
    told = kind.summarise([case.score for case in scored])
    summary = without_rare(kind, told, least, patients_with(kind, scored))
    scores: dict[str, float | None] = summary[kind.primary.name]
    return scores


def mean_loss(scored: Sequence[ScoredCase]) -> float | None:
    """Mean loss over cases; None without cases."""
    return sum(case.loss for case in scored) / len(scored) if scored else None


def empty_round(trainer: SiteTrainer, received: Mapping[str, np.ndarray]) -> tuple[Arrays, SiteReport]:
    """The update and report of a site that could not train, where it may not say so: nothing moved."""
    weights, _ = split_shared(received)
    sent = {name: value for name, value in weights.items() if name not in trainer.withheld(trainer.round_number)}
    update = {name: np.zeros_like(value) for name, value in sent.items() if is_averaged(value)}
    samples, scored = trainer.count("training"), trainer.count("validation")
    return update, SiteReport(samples, trainer.counted_steps(), train_loss=None, val_loss=None, val_cases=scored)

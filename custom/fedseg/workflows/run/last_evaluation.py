"""The last evaluation: every site scores the last model, and the best one where it is another."""

from __future__ import annotations

from functools import partial
from typing import Any

from nvflare.app_common.abstract.fl_model import FLModel

from fedseg.contract.protocol import MODEL_NAME, SPLITS
from fedseg.errors import FedsegError, RefusalError
from fedseg.tasks.objective import MEAN, Objective
from fedseg.workflows.run.record import BEST_MODEL, LAST_MODEL
from fedseg.workflows.run.round_protocol import RoundProtocol
from fedseg.workflows.run.run_state import RunState
from fedseg.workflows.run.scores import Scored, is_better, readable, summarise_final, validation_scores

UNREADABLE = "sent scores that cannot be read; they were left out"


def beats_best(run: RunState, scored: Scored) -> bool:
    """Whether a model with these validation scores is the best so far, and can still be had later."""
    if not run.model.keeps_former:
        return False
    if run.best_round is None:
        return any(value is not None for value, _ in scored.values())
    score = run.plan.objective.primary
    return is_better(scored, validation_scores(run.rounds[run.best_round + 1], score), score) is True


def evaluate_run(run: RunState, protocol: RoundProtocol) -> None:
    """Score the last model, then the best one where it is another, and write the results."""
    last_round = len(run.rounds) - 1
    saved = run.save_final(LAST_MODEL, last_round)
    run.record.event("evaluate", model="last")
    last, on_validation = _evaluate(run, protocol, "last", last_round)
    last |= saved
    best: dict[str, Any] = {"model": None}
    run.write_results(final=last, best=best)
    if beats_best(run, on_validation):
        best = {**last, "round": last_round, **run.save_final(BEST_MODEL, last_round)}
    elif run.best_round is not None:
        run.record.event("evaluate", model="best")
        saved = run.save_final(BEST_MODEL, run.best_round)
        best = {**_evaluate(run, protocol, "best", run.best_round)[0], "round": run.best_round, **saved}
    run.write_results(final=last, best=best)
    means = (f"{which}_{run.plan.objective.primary.name}" for which in ("mean", "pooled"))
    run.record.finished(**{key: last[key] for key in means})


def _evaluate(run: RunState, protocol: RoundProtocol, name: str, number: int) -> tuple[dict[str, Any], Scored]:
    """Scores on the final split of every site, and each site's primary score on its validation cases."""
    kind = run.plan.objective
    splits = ["final", "validation"] if name == "last" else ["final"]
    meta = {SPLITS: splits, MODEL_NAME: name, **run.kept_meta()}
    answers = protocol.score(run, number, sorted(run.facts), meta, partial(_accept_scores, kind))
    if not answers:
        raise FedsegError(f"No site scored the {name} model; it is kept unscored.")
    content = summarise_final({site: answers[site].metrics["final"] for site in sorted(answers)}, number, kind)
    validation = {site: a.metrics["validation"] for site, a in sorted(answers.items()) if "validation" in a.metrics}
    told = ("loss", kind.primary.name)
    content["validation"] = {site: {key: part[key] for key in told if key in part} for site, part in validation.items()}
    return content, {site: (part[kind.primary.name][MEAN], part["cases"]) for site, part in validation.items()}


def _accept_scores(kind: Objective, site: str, answer: FLModel) -> None:
    if not readable(answer.metrics, kind):
        raise RefusalError("report", UNREADABLE)

"""The last evaluation: every site scores the last model, and the best one where it is another."""

from __future__ import annotations

from typing import Any

from nvflare.app_common.abstract.fl_model import FLModel

from fedseg.contract.protocol import MODEL_NAME, SPLITS
from fedseg.errors import FedsegError, RefusalError
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
        return any(dice is not None for dice, _ in scored.values())
    return is_better(scored, validation_scores(run.rounds[run.best_round + 1])) is True


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
    run.record.finished(mean_dice=last["mean_dice"], pooled_dice=last["pooled_dice"])


def _evaluate(run: RunState, protocol: RoundProtocol, name: str, number: int) -> tuple[dict[str, Any], Scored]:
    """Scores on the final split of every site, and each site's Dice on its validation cases."""
    splits = ["final", "validation"] if name == "last" else ["final"]
    answers = protocol.score(run, number, sorted(run.facts), {SPLITS: splits, MODEL_NAME: name}, _accept_scores)
    if not answers:
        raise FedsegError(f"No site scored the {name} model; it is kept unscored.")
    content = summarise_final({site: answers[site].metrics["final"] for site in sorted(answers)}, number)
    validation = {site: a.metrics["validation"] for site, a in answers.items() if "validation" in a.metrics}
    return content, {site: (part["dice"]["mean"], part["cases"]) for site, part in validation.items()}


def _accept_scores(site: str, answer: FLModel) -> None:
    if not readable(answer.metrics):
        raise RefusalError("report", UNREADABLE)

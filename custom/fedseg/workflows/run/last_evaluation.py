"""The last evaluation: every site scores the last model, the best one where it is another, and the average."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from fedseg.contract.protocol import FINE_TUNE, MODEL_NAME, SPLITS, TOTALS
from fedseg.contract.scores import is_withheld
from fedseg.errors import FedsegError
from fedseg.evaluation.cross_site import AVERAGE, BEST, LAST
from fedseg.files.digest import model_digest
from fedseg.networks.weights import Arrays
from fedseg.tasks.objective import MEAN
from fedseg.workflows.run.cross_site import CrossSiteScoring, Known, Send, send_to_score
from fedseg.workflows.run.personal_models import collect_personal_models
from fedseg.workflows.run.record import BEST_MODEL, LAST_MODEL
from fedseg.workflows.run.round_protocol import RoundProtocol
from fedseg.workflows.run.run_state import RunState
from fedseg.workflows.run.scores import Scored, accept_scores, is_better, summarise_final, validation_scores


def beats_best(run: RunState, scored: Scored) -> bool:
    """Whether a model with these validation scores is the best so far, and can still be had later."""
    if not run.model.keeps_former:
        return False
    if run.best_round is None:
        return any(value is not None for value, _ in scored.values())
    score = run.plan.objective.primary
    return is_better(scored, validation_scores(run.rounds[run.best_round + 1], score), score) is True


@dataclass(frozen=True)
class Evaluated:
    """One model after the rounds.

    Attributes:
        content: of the results.
        told: what each site that takes part in the training said of its final split.
        on_validation: each site's primary score on its validation cases.
    """

    content: dict[str, Any]
    told: dict[str, dict[str, Any]]
    on_validation: Scored


def evaluate_run(run: RunState, protocol: RoundProtocol) -> CrossSiteScoring | None:
    """Score the last model, then the best one where it is another, then the average where the job keeps one; collect
    the personal models that sites give; then score all that is to be scored across sites.

    Returns:
        The evaluation across sites; None where the run has none.
    """
    scored = _evaluate_rounds(run, protocol) if run.rounds else {}
    if not run.rounds:
        run.write_results(final={"model": None, **summarise_final({}, -1, run.plan.objective)}, best={"model": None})
    if run.rounds and run.settings.personal_models:
        run.write_results(**collect_personal_models(run))
    if not run.settings.cross_site and not run.participants.evaluators:
        return None
    across = CrossSiteScoring(run, protocol, lambda: run.write_results(**across.to_dict()))
    own = bool(run.model.own_models())
    if own:
        across.add_own(scored[LAST][1])
    else:
        _add_common(across, run, scored)
    if run.settings.cross_site:
        if scored and not own:
            across.add_sites(scored[LAST][1])
        across.add_files(run.place.models)
    return across


def _add_common(across: CrossSiteScoring, run: RunState, scored: Mapping[str, tuple[int, Known]]) -> None:
    """Add the models that all sites have in common, each with what the sites said of it."""
    for kind, (number, told) in scored.items():
        if kind == AVERAGE and run.model.average is not None:
            across.add_average(run.model.average.weights, told)
        else:
            across.add_global(kind, number, told)


def conclude(run: RunState) -> None:
    """Tell that the run is complete."""
    means = (f"{which}_{run.plan.objective.primary.name}" for which in ("mean", "pooled"))
    run.record.finished(**{key: run.outcome["final"][key] for key in means})


def _evaluate_rounds(run: RunState, protocol: RoundProtocol) -> Mapping[str, tuple[int, Known]]:
    """Score what the rounds have made; gives after which round each model was made, and what sites said of it."""
    last_round = len(run.rounds) - 1
    saved = run.save_final(LAST_MODEL, last_round)
    run.record.event("evaluate", model="last")
    last = _evaluate(run, LAST, last_round, partial(protocol.score, run, last_round))
    final, scored = {**last.content, **saved}, {LAST: (last_round, last.told)}
    run.write_results(final=final, best={"model": None})
    best: dict[str, Any] = {"model": None}
    if beats_best(run, last.on_validation):
        best = {**final, "round": last_round, **run.save_final(BEST_MODEL, last_round)}
        scored[BEST] = last_round, last.told
    elif run.best_round is not None:
        run.record.event("evaluate", model="best")
        saved = run.save_final(BEST_MODEL, run.best_round)
        found = _evaluate(run, BEST, run.best_round, partial(protocol.score, run, run.best_round))
        best = {**found.content, "round": run.best_round, **saved}
        scored[BEST] = run.best_round, found.told
    run.write_results(final=final, best=best)
    if run.model.average is not None:
        average = _evaluate_average(run, run.model.average.weights, last)
        run.write_results(average={**average.content, **run.save_average(last_round)})
        scored[AVERAGE] = last_round, average.told
    return scored


def _evaluate_average(run: RunState, weights: Arrays, last: Evaluated) -> Evaluated:
    """Score the average of the models of all rounds; where it is the last model, its scores are those."""
    number = len(run.rounds) - 1
    if model_digest(weights) == run.model.digest_after(number):
        return last
    run.record.event("evaluate", model=AVERAGE)
    return _evaluate(run, AVERAGE, number, partial(send_to_score, run, weights))


def _evaluate(run: RunState, name: str, number: int, send: Send) -> Evaluated:
    """Have every site that takes part in the training score a model on its final split, the last one and the average
    also on its validation cases.

    Args:
        run: the run.
        name: what sites call the model.
        number: of the round after which it was made.
        send: brings it to the sites.
    """
    kind = run.plan.objective
    splits = ["final"] if name == BEST else ["final", "validation"]
    meta = {SPLITS: splits, MODEL_NAME: name, **run.kept_meta()}
    if name == LAST and run.settings.fine_tune:
        meta |= {FINE_TUNE: run.settings.fine_tune, TOTALS: run.totals}
    answers = send(sorted(run.facts), meta, partial(accept_scores, kind))
    if not answers:
        raise FedsegError(f"No site scored the {name} model; it is kept unscored.")
    told = {site: answers[site].metrics["final"] for site in sorted(answers)}
    content = summarise_final(told, number, kind)
    parts = {site: answer.metrics.get("validation", {}) for site, answer in sorted(answers.items())}
    validation = {site: part for site, part in parts.items() if part and not is_withheld(part)}
    names = ("loss", kind.primary.name)
    content["validation"] = {site: {k: part[k] for k in names if k in part} for site, part in validation.items()}
    scores = {site: (part[kind.primary.name][MEAN], part["cases"]) for site, part in validation.items()}
    return Evaluated(content, told, scores)

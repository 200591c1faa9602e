"""What a round and the last evaluation say in a run's results."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from nvflare.app_common.abstract.fl_model import FLModel

from fedseg.contract.report import SiteReport, told_name
from fedseg.contract.scores import BESIDE, is_withheld, models_of, scores_fault
from fedseg.errors import RefusalError
from fedseg.evaluation.fairness import fairness, fairness_of_sites
from fedseg.tasks.objective import MEAN, Objective, Score
from fedseg.workflows.run.run_model import RunModel
from fedseg.workflows.run.selection_base import Selection

UNREADABLE = "sent scores that cannot be read; they were left out"


def describe_round(
    number: int,
    seconds: float,
    model: RunModel,
    traffic: Mapping[str, tuple[int, int]],
    chosen: Selection,
    kind: Objective,
) -> dict[str, Any]:
    """The entry of a finished round in ``rounds[]`` of the summary.

    Args:
        number: from 0.
        seconds: duration of the round.
        model: after ``finish_round``.
        traffic: bytes up and down of each site.
        chosen: who was asked, and why.
        kind: of task, whose primary score gives its keys their names.
    """
    decided, name = model.describe_round(), kind.primary.name
    costs = decided.pop("costs")
    reports = {site: model.reports[site] for site in sorted(model.reports)}
    return {
        "round": number,
        "seconds": seconds,
        **decided,
        "selection": chosen.reasons,
        "asked": chosen.sites,
        f"val_{name}": mean_over_cases([(r.val_scores.get(MEAN), r.val_cases) for r in reports.values()]),
        "sites": {
            site: {
                **_describe_report(report, costs[site], traffic.get(site, (0, 0)), name),
                "epoch_cases": chosen.settings[site].epoch_cases if site in chosen.settings else None,
                "privacy": [dict(step) for step in model.steps.get(site, ())],
            }
            for site, report in reports.items()
        },
    }


def _describe_report(report: SiteReport, cost: float | None, traffic: tuple[int, int], name: str) -> dict[str, Any]:
    """What a site reported; ``name`` is that of the primary score, ``traffic`` its bytes up and down."""
    return {
        "num_samples": report.num_samples,
        "incomplete_samples": report.incomplete_samples,
        "num_steps": report.num_steps,
        "train_loss": report.train_loss,
        "cost": cost,
        f"val_{name}": dict(report.val_scores),
        "val_cases": report.val_cases,
        "val_loss": report.val_loss,
        "val_loss_after": report.val_loss_after,
        f"val_{name}_after": report.val_score_after,
        f"personal_{name}": None,  # always there, also where no method declares it
        **{told_name(field, name): value for field, value in report.extras.items()},
        "epsilon": report.epsilon,
        "bytes_up": traffic[0],
        "bytes_down": traffic[1],
        "seconds": report.seconds,
        "seconds_training": report.seconds_training,
    }


Scored = Mapping[str, tuple[float | None, int]]


def validation_scores(entry: Mapping[str, Any], score: Score) -> dict[str, tuple[float | None, int]]:
    """Mean score and number of validation cases of each site that scored the model of a round's entry."""
    sites = entry["sites"].items()
    return {site: (part[f"val_{score.name}"].get(MEAN), part["val_cases"]) for site, part in sites}


def is_better(candidate: Scored, best: Scored, score: Score) -> bool | None:
    """Whether a model scored better than another, over the cases of the sites that scored both.

    Sites differ in how hard their cases are, so means over different sites say nothing of the models.

    Args:
        candidate, best: mean score and cases of each site.
        score: which one it is.

    Returns:
        None if no site scored both.
    """
    common = [site for site in candidate if site in best and None not in (candidate[site][0], best[site][0])]
    one, other = (mean_over_cases([scored[site] for site in common]) for scored in (candidate, best))
    return None if one is None or other is None else score.better(one, other)


def summarise_final(final: Mapping[str, Mapping[str, Any]], round_number: int, kind: Objective) -> dict[str, Any]:
    """Scores of one model at every site, and their two means; beside them those of the sites' own models.

    Sites without cases are left out; those that keep their scores to themselves are named under ``withheld``.
    """
    scored = {site: part for site, part in final.items() if not is_withheld(part) and part["cases"]}
    name = kind.primary.name
    beside = {own: [part[own] for part in scored.values() if own in part] for own in BESIDE}
    return {
        "split": "/".join(sorted({part["split"] for part in scored.values()})) or None,
        "sites": {s: {k: v for k, v in p.items() if k != "split"} for s, p in scored.items()},
        f"mean_{name}": _mean_of_sites(scored.values(), name),
        **{f"mean_{own}_{name}": _mean_of_sites(parts, name) for own, parts in beside.items() if parts},
        f"pooled_{name}": kind.pool(scored.values())[name][MEAN] if scored else None,
        "fairness": _fairness(scored, kind),
        "after_round": round_number,
        "withheld": sorted(site for site, part in final.items() if is_withheld(part)),
    }


def _fairness(scored: Mapping[str, Mapping[str, Any]], kind: Objective) -> dict[str, Any]:
    """Worst site, spread and means of the primary score, of each output and of their mean."""
    name, told = kind.primary.name, {MEAN: fairness_of_sites(kind, scored).to_dict()}
    for output in kind.outputs:
        means = {site: part[name].get(output) for site, part in scored.items()}
        counts = {site: part["defined"].get(output, 0) for site, part in scored.items()}
        told[output] = fairness(kind.primary, means, counts).to_dict()
    return told


def _mean_of_sites(parts: Collection[Mapping[str, Any]], name: str) -> float | None:
    means = [part[name][MEAN] for part in parts if part[name][MEAN] is not None]
    return sum(means) / len(means) if means else None


def readable(metrics: Any, kind: Objective) -> bool:
    """Whether a site's scores can be pooled and written as JSON."""
    try:
        parts = [part for part in (metrics or {}).values() if not is_withheld(part)]
        models = [each for part in parts for each in models_of(part)]
        if any(scores_fault(kind, part) for part in parts):
            return False
        kind.pool([each for each in models if each["cases"]])
        sound = all(MEAN in each[kind.primary.name] for each in models)
        return "final" in metrics and all(part["split"] for part in parts) and sound
    except (KeyError, TypeError, ValueError, AttributeError):
        return False


def accept_scores(kind: Objective, site: str, answer: FLModel) -> None:
    """Accept what a site says of a model, see ``Sites.ask``.

    Raises:
        RefusalError: it cannot be read (reason ``report``).
    """
    if not readable(answer.metrics, kind):
        raise RefusalError("report", UNREADABLE)


def mean_over_cases(scores: list[tuple[float | None, int]]) -> float | None:
    """Mean score of sites weighted by their cases: the one number by which models of a run are compared."""
    known = [(score, cases) for score, cases in scores if score is not None and cases > 0]
    return sum(score * cases for score, cases in known) / sum(cases for _, cases in known) if known else None

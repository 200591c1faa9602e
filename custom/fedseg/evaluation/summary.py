"""``summary.json``: what a run did and gave, in the form that reports and other programs read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from fedseg import allowed
from fedseg.contract.plan import Plan
from fedseg.contract.report import job_fields, told_name
from fedseg.errors import DataError
from fedseg.evaluation.cross_site import AVERAGE, CROSS_SITE
from fedseg.evaluation.privacy_summary import privacy_summary
from fedseg.files.documents import load_json, write_json
from fedseg.tasks.objective import MEAN, Objective, mean, objective_of
from fedseg.tasks.registry import resolve_task
from fedseg.tasks.task import Task

SCHEMA = "fedseg-summary-1"
OWN = "own"
"""Key of a site's last model with the arrays that it keeps for itself, under ``final.site_models``."""
PERSONAL_MODELS = "personal_models"
"""Key of the files of personal models that sites gave the run."""
# Described under other keys of the summary.
_ELSEWHERE = ("aggregator", "server_optimizer", "shared_arrays", "selection", "run_id", "resume", "resume_round")


class RunJob(Protocol):
    """What a summary says of a job; see ``fedseg.jobs.job.Job``."""

    name: str
    client: dict[str, Any]

    @property
    def plan(self) -> Plan: ...

    @property
    def workflow(self) -> dict[str, Any]: ...

    def hooks(self) -> list[dict[str, Any]]: ...

    def meanings(self) -> dict[str, str]: ...


def describe_run(
    job: RunJob,
    results: dict[str, Any],
    date: str,
    simulated: bool,
    versions: dict[str, str],
    seconds: float,
    peak_rss_mb: dict[str, float],
) -> dict[str, Any]:
    """The summary of any run.

    Args:
        job: as it ran.
        results: what the server recorded, with the scores of the last model.
        date: when, in ISO 8601.
        simulated: whether all sites were simulated on one machine.
        versions: package -> version, as far as known.
        seconds: from the start to the end.
        peak_rss_mb: largest resident memory per process in MiB, as far as known.
    """
    plan, rounds = job.plan, results["rounds"]
    traffic = {key: sum(s[key] for r in rounds for s in r["sites"].values()) for key in ("bytes_up", "bytes_down")}
    return {
        "schema": SCHEMA,
        "run_id": results["run_id"],
        "date": date,
        "empty_convention": plan.training.empty,
        "job": job.name,
        **_planned(plan),
        "versions": versions,
        "seed": plan.seed,
        "threads_per_site": plan.training.threads,
        "simulated": simulated,
        "sites": results["sites"],
        "evaluators": results.get("evaluators", []),
        "cases": results.get("cases", {}),
        "phantoms": results.get("phantoms", []),
        **_components(job),
        "selection": results["selection"],
        "rounds": rounds,
        "final": _with_folder(results["final"]),
        "best": _with_folder(results["best"]),
        **{key: _with_folder(results[key]) for key in (AVERAGE,) if key in results},
        "events": results["events"],
        **{key: results[key] for key in (CROSS_SITE,) if key in results},
        **_given(results),
        "privacy": privacy_summary(rounds, job.meanings()),
        "stopped": results["stopped"],
        "cost": {"wall_seconds": seconds, **traffic, "peak_rss_mb": peak_rss_mb},
    }


def _planned(plan: Plan) -> dict[str, Any]:
    """What was trained."""
    return {
        "task": plan.task.name,
        "task_declaration": plan.task.to_dict(),
        "method": plan.method,
        "network": plan.network.to_dict(),
        "training": plan.training.to_dict(),
        **({} if plan.split is None else {"split": plan.split.to_dict()}),
    }


def _components(job: RunJob) -> dict[str, Any]:
    """Arguments of the workflow and of the training hooks, and what these report beside the fixed fields."""
    hooks = [{"name": hook["path"].rpartition(".")[2], **hook.get("args", {})} for hook in job.hooks()]
    score = job.plan.objective.primary.name
    told = {told_name(name, score): each.meaning for name, each in job_fields(job.client).items()}
    return {
        "workflow": {key: value for key, value in job.workflow.items() if key not in _ELSEWHERE},
        "local_objectives": hooks,
        **({"reports": told} if told else {}),
    }


def _given(results: Mapping[str, Any]) -> dict[str, Any]:
    """The files of personal models that sites gave, as they lie in the run's folder."""
    given = results.get(PERSONAL_MODELS, {})
    return {PERSONAL_MODELS: {site: f"models/{file}" for site, file in given.items()}} if given else {}


def _with_folder(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The scores of a model whose files are named as they lie in the run's folder."""
    result = dict(scores)
    if result.get("model"):
        result["model"] = f"models/{result['model']}"
    if "models" in result:
        result["models"] = {site: f"models/{file}" for site, file in result["models"].items()}
    return result


def last_models(summary: Mapping[str, Any]) -> dict[str, str]:
    """The file of the last model that each site uses, in the run's folder.

    Sites with parts of their own have models of their own; one that has not sent its part has none here.
    """
    final = summary["final"]
    own = {site: files[OWN] for site, files in part(final, "site_models").items() if OWN in files}
    if final.get("model"):
        return dict.fromkeys(summary["sites"], final["model"]) | own
    return dict(final.get("models", {})) | own


def write_summary(summary: dict[str, Any], report: Path) -> Path:
    """Write ``summary.json`` into a run's report folder, as a whole or not at all."""
    return write_json(report / "summary.json", summary)


Summary = Mapping[str, Any]


def number(value: Any) -> float | None:
    """``value`` as a finite float; None for everything else (absent, None, NaN, text)."""
    return float(value) if allowed.is_number(value) else None


def part(summary: Any, *keys: str) -> dict[str, Any]:
    """The object at ``keys``; an empty one where it is absent or null."""
    for key in keys:
        summary = summary.get(key) if isinstance(summary, Mapping) else None
    return dict(summary) if isinstance(summary, Mapping) else {}


def rows(summary: Summary, key: str) -> list[Mapping[str, Any]]:
    """The list of objects at ``key``; an empty one where it is absent or null."""
    found = summary.get(key)
    return [entry for entry in found if isinstance(entry, Mapping)] if isinstance(found, list) else []


def task_of(summary: Summary) -> Task:
    """The task of a run, declared in the summary or built in."""
    return resolve_task(summary.get("task_declaration") or summary.get("task", ""))


def objective_of_run(summary: Summary) -> Objective:
    """The kind of task of a run."""
    return objective_of(task_of(summary))


def site_names(summary: Summary) -> list[str]:
    """The sites in the order of the summary, and after them those that only the results name."""
    listed = summary.get("sites") or []
    names = [str(part(site).get("name", site)) if isinstance(site, Mapping) else str(site) for site in listed]
    scored = [*part(summary, "final", "sites"), *part(summary, "best", "sites")]
    trained = [site for entry in rows(summary, "rounds") for site in part(entry, "sites")]
    return list(dict.fromkeys([*names, *scored, *trained]))


def participation(summary: Summary) -> list[str]:
    """Who took no part in the run and why, and who was missing in some rounds, in sentences; empty where all were
    there."""
    accepted, why = site_names(summary), {}
    for event in rows(summary, "events"):
        if (site := str(event.get("site"))) not in accepted and site != "server":
            why[site] = str(event.get("what"))
    sentences = []
    if why:
        told = "; ".join(f"{site} ({what.removesuffix('.')})" for site, what in why.items())
        count = len(accepted) + len(why)
        sentences.append(f"Of {count} connected sites {len(why)} took no part: {told}.")
    asked = [entry for entry in rows(summary, "rounds") if isinstance(entry.get("asked"), list)]
    for site in accepted:
        missing = [entry for entry in asked if site in entry["asked"] and site not in part(entry, "sites")]
        if missing:
            sentences.append(f"No update of {site} counts in {len(missing)} of {len(asked)} rounds.")
    return sentences


def mean_score(scores: Any) -> float | None:
    """The mean out of ``{output..., mean}`` (computed where ``mean`` is absent) or out of a plain number."""
    if not isinstance(scores, Mapping):
        return number(scores)
    if MEAN in scores:
        return number(scores[MEAN])
    return mean([number(value) for value in scores.values()])


SUMMARY = Path("report") / "summary.json"


def read_summary(run: Path) -> dict[str, Any]:
    """The summary of the run in the folder ``run``.

    Raises:
        DataError: the folder holds no summary, or one that is not a JSON object.
    """
    path = run / SUMMARY
    if not path.is_file():
        raise DataError(f"{run} is not the folder of a run: it has no {SUMMARY}.")
    try:
        summary = load_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not readable as JSON: {error}.") from None
    if not isinstance(summary, dict) or "task" not in summary:
        raise DataError(f"{path} is not the summary of a run: it names no task.")
    return summary

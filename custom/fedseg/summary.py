"""``summary.json``: what a run did and gave, in the form that reports and other programs read."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fedseg.evaluation.privacy import privacy_summary
from fedseg.jobs import Job
from fedseg.simulation import SimulationResult
from fedseg.version import __version__
from fedseg.withheld import with_own_scores

SCHEMA = "fedseg-summary-1"
# Described under other keys of the summary.
_ELSEWHERE = ("aggregator", "server_optimizer", "shared_arrays", "selection", "run_id", "resume", "resume_round")
_PACKAGES = ("nvflare", "monai", "torch", "numpy", "nibabel", "SimpleITK")


def versions() -> dict[str, str]:
    """Versions of fedseg, Python and the packages that decide about results."""
    found = {"fedseg": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def build_summary(job: Job, run: SimulationResult, state: Path) -> dict[str, Any]:
    """The summary of a simulated run, without what pictures and comparisons add.

    Args:
        job: as it ran.
        run: what the simulator left.
        state: folder of the simulated sites' states.
    """
    results = run.results
    results = {**results, "final": with_own_scores(results["final"], state, results["run_id"])}
    seconds = max(run.wall_seconds, results["seconds"])
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return describe_run(job, results, date, True, versions(), seconds, run.peak_rss_mb)


def describe_run(
    job: Job,
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
    final, best = dict(results["final"]), dict(results["best"])
    for scores in (final, best):
        if scores.get("model"):
            scores["model"] = f"models/{scores['model']}"
        if "models" in scores:
            scores["models"] = {site: f"models/{file}" for site, file in scores["models"].items()}
    traffic = {key: sum(s[key] for r in rounds for s in r["sites"].values()) for key in ("bytes_up", "bytes_down")}
    return {
        "schema": SCHEMA,
        "run_id": results["run_id"],
        "date": date,
        "empty_convention": plan.training.empty,
        "job": job.name,
        "task": plan.task.name,
        "task_declaration": plan.task.to_dict(),
        "method": plan.method,
        "network": plan.network.to_dict(),
        "training": plan.training.to_dict(),
        **({} if plan.split is None else {"split": plan.split.to_dict()}),
        "versions": versions,
        "seed": plan.seed,
        "threads_per_site": plan.training.threads,
        "simulated": simulated,
        "sites": results["sites"],
        "workflow": {key: value for key, value in job.workflow.items() if key not in _ELSEWHERE},
        "local_objectives": [
            {"name": component["path"].rpartition(".")[2], **component.get("args", {})} for component in job.hooks()
        ],
        "selection": results["selection"],
        "rounds": rounds,
        "final": final,
        "best": best,
        "events": results["events"],
        "privacy": privacy_summary(rounds),
        "stopped": results["stopped"],
        "cost": {"wall_seconds": seconds, **traffic, "peak_rss_mb": peak_rss_mb},
    }


def last_models(summary: Mapping[str, Any]) -> dict[str, str]:
    """The file of the last model that each site uses, in the run's folder.

    Sites with parts of their own have models of their own; one that has not sent its part has none here.
    """
    final = summary["final"]
    if final.get("model"):
        return dict.fromkeys(summary["sites"], final["model"])
    return dict(final.get("models", {}))


def write_summary(summary: dict[str, Any], report: Path) -> Path:
    """Write ``summary.json`` into a run's report folder, as a whole or not at all."""
    path = report / "summary.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(summary, indent=1) + "\n", "utf-8")
    os.replace(temporary, path)
    return path

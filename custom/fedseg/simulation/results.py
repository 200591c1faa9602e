"""The summary of a simulated run."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedseg.evaluation.summary import describe_run, versions
from fedseg.jobs.job import Job
from fedseg.simulation.simulator import SimulationResult
from fedseg.simulation.withheld import with_own_scores


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

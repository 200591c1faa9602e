"""Jobs of this repository on tiny images, run in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from fedseg.jobs.job import Job, read_job
from fedseg.networks.weights import Arrays
from fedseg.simulation.in_process import simulate_in_process
from fedseg.simulation.results import build_summary
from fedseg.simulation.run_folder import prepare_output
from tiny import PLAN

SITES = {"alpha": (4, 1), "beta": (2, 1), "gamma": (2, 1)}


def tiny_job(folder: Path, rounds: int = 2) -> Job:
    """The job with its own rule and training settings on a tiny task."""
    job = read_job(folder)
    parts = {key: value for key, value in job.declaration.get("network", {}).items() if key == "parts"}
    job.set("task", PLAN["task"])
    job.set("network", {**PLAN["network"], **parts})
    job.set("workflow.num_rounds", rounds)
    return job


def last_models(folder: Path) -> dict[str, Arrays]:
    """Arrays of the models that a run leaves: one, or one for each site."""
    found = {path.name: load_file(path) for path in sorted((folder / "models").glob("last*.safetensors"))}
    assert found
    return found


def simulated(job: Job, data: Path, out: Path) -> tuple[dict[str, Any], dict[str, Arrays]]:
    """Run a job in this process; its summary and its last models."""
    prepare_output(out, False)
    events: list[dict[str, Any]] = []
    result = simulate_in_process(job, data, out, sorted(SITES), events.append)
    assert events[-1]["event"] == "finished"
    return build_summary(job, result, out / "state"), last_models(out)

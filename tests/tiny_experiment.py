"""A tiny experiment on disk: sites of balls in noise, a job that learns them in seconds, and a definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from fedseg.jobs.job import read_job
from tiny import PLAN, make_sites

JOBS = Path(__file__).parents[1] / "jobs"
SITES = {"alpha": (4, 1), "beta": (2, 1), "gamma": (2, 1)}
ARMS: dict[str, dict[str, Any]] = {
    "central": {"kind": "central"},
    "local": {"kind": "local"},
    "ensemble": {"kind": "ensemble", "of": "local"},
    "iil": {"kind": "iil"},
    "ciil": {"kind": "ciil"},
    "fedavg": {"job": "job"},
}


def write_experiment(
    folder: Path, arms: dict[str, Any] | None = None, sizes: dict[str, tuple[int, int]] | None = None, **more: Any
) -> Path:
    """Write ``folder/tiny.yaml`` with its job and data; keys of ``more`` are those of a definition."""
    if not (folder / "data").exists():
        make_sites(folder / "data", sizes or SITES, with_test=True)
    if not (folder / "job").exists():
        write_job(folder / "job", "hippocampus_fedavg")
    content = {
        "experiment": "tiny",
        "job": "job",
        "data": {"folder": "data"},
        "seeds": [3],
        "budget": {"rounds": 2},
        "arms": ARMS if arms is None else arms,
        **more,
    }
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False), "utf-8")
    return file


def write_job(folder: Path, name: str) -> Path:
    """A job of the repository with the tiny task, network and training settings."""
    job = read_job(JOBS / name)
    for key in ("task", "network", "training"):
        job.set(key, PLAN[key])
    return job.write(folder)

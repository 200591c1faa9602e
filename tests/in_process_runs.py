"""Jobs of this repository on tiny images, run in this process."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nvflare.apis.shareable import Shareable
from safetensors.numpy import load_file

from fedseg.jobs.job import Job, read_job
from fedseg.networks.weights import Arrays
from fedseg.simulation import local_sites
from fedseg.simulation.in_process import simulate_in_process
from fedseg.simulation.results import build_summary
from fedseg.simulation.run_folder import prepare_output
from tiny import EXCLUSIVE, PLAN

SITES = {"alpha": (4, 1), "beta": (2, 1), "gamma": (2, 1)}


def tiny_job(folder: Path, rounds: int = 2) -> Job:
    """The job with its own rule and training settings on a tiny task, which keeps what the method asks of a task."""
    job = read_job(folder)
    parts = {key: value for key, value in job.declaration.get("network", {}).items() if key == "parts"}
    for part in parts.get("parts", []):
        if part["name"] == "modality_norm":
            part["sites"] = [["alpha", "beta"], ["alpha", "gamma"]]
    job.set("task", _tiny_task(job))
    job.set("network", {**PLAN["network"], **parts})
    job.set("workflow.num_rounds", rounds)
    return job


def _tiny_task(job: Job) -> dict[str, Any]:
    declared = job.declaration["task"]
    own = declared if isinstance(declared, dict) else {}
    distilled = "ConditionalDistillation" in json.dumps(job.client)
    kept = {"normalisation": "landmarks"} if own.get("normalisation") == "landmarks" else {}
    two = {"channels": ["a", "b"], "optional_channels": ["a", "b"]} if lacks_channels(own) else {}
    return {**(EXCLUSIVE if distilled else PLAN["task"]), **kept, **two}


def lacks_channels(task: str | dict[str, Any]) -> bool:
    """Whether cases of a task may lack a channel."""
    return isinstance(task, dict) and bool(task.get("optional_channels"))


def answers_of_sites(patch: pytest.MonkeyPatch) -> list[tuple[str, Shareable]]:
    """Every answer that leaves a site from now on, with the site's name, as it was when it left."""
    left: list[tuple[str, Shareable]] = []
    result = local_sites._Work.result

    def heard(work: local_sites._Work) -> Shareable:
        answer = result(work)
        left.append((work.site.name, copy.deepcopy(answer)))
        return answer

    patch.setattr(local_sites._Work, "result", heard)
    return left


def holds_arrays(value: Any) -> bool:
    """Whether there is an array, or something packed into bytes, anywhere in an answer."""
    if isinstance(value, dict):
        return any(map(holds_arrays, value.values()))
    return isinstance(value, np.ndarray | bytes) or (isinstance(value, list | tuple) and any(map(holds_arrays, value)))


def write_policies(data: Path, policies: Mapping[str, Any]) -> None:
    """The policy of each site; none for a site of None."""
    for site, policy in policies.items():
        if policy is not None:
            (data / site / "policy.json").write_text(json.dumps(policy))


def one_channel_each(data: Path, folder: Path) -> Path:
    """The same sites with two channels, of which every case has one; each site has cases of both."""
    for file in sorted(data.glob("*/datalist.json")):
        content = json.loads(file.read_text("utf-8"))
        for split in ("training", "validation", "test"):
            for number, case in enumerate(content.get(split, [])):
                images = [case["image"]] if isinstance(case["image"], str) else case["image"]
                image = str(file.parent / images[0])
                case["image"] = [None, image] if number % 2 else [image, None]
                case["label"] = str(file.parent / case["label"])
        (folder / file.parent.name).mkdir(parents=True)
        (folder / file.parent.name / file.name).write_text(json.dumps(content), "utf-8")
    return folder


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

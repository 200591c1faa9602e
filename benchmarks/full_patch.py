"""Peak memory of training on whole patches of 128 x 128 x 128 voxels with deep supervision: phantoms and real cases.

    python benchmarks/full_patch.py --data ../shared/data --out runs/benchmark-full-patch

Each run is a process of its own: one site prepares and keeps all cases, trains a few steps of the job's batch with the
job's augmentation, and reads the most memory that it ever had (``ru_maxrss``: Python, torch and prepared cases
included). The first step has the peak of the passes, the second one also what the optimizer keeps. The arms:

- ``fedavg``: ``jobs/brats_fedavg`` with the part ``deep_supervision``;
- ``nnunet``: ``jobs/brats_nnunet_recipe`` as it is;
- ``nnunet, activations kept``: the same without activation checkpointing, which takes more (not run unless named).

Wanted: at most 10 GB in every run. Every finished run is kept in OUT/runs as JSON, so that an interrupted benchmark
goes on where it was.
"""

import argparse
import contextlib
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from kept_runs import keep, kept, load, write_table

from fedseg.data.datalist import Datalist, read_datalist
from fedseg.data.intake.sources import read_source
from fedseg.data.phantoms.phantoms import make_phantoms
from fedseg.errors import AbortedError
from fedseg.jobs.job import Job, read_job
from fedseg.networks.weights import get_weights
from fedseg.training.demand import training_bytes
from fedseg.training.hooks import LocalTraining, TrainingHook
from fedseg.training.trainer import SiteTrainer, TrainerSetup

JOBS = Path(__file__).parents[1] / "jobs"
ARMS = ("fedavg", "nnunet", "nnunet, activations kept")
SETS = ("phantoms", "real")
WANTED_GB = 10.0
GB = 1e9


class Steps(TrainingHook):
    """Ends the training after so many steps."""

    def __init__(self, most: int) -> None:
        self.most, self.done = most, 0

    def after_step(self, training: LocalTraining) -> None:
        self.done += 1

    def over(self) -> bool:
        """Whether the training is to end."""
        return self.done >= self.most


def job_of(arm: str, patch: int | None) -> Job:
    """The job of an arm; ``patch`` voxels along each axis in the place of the task's."""
    job = read_job(JOBS / ("brats_fedavg" if arm == "fedavg" else "brats_nnunet_recipe"))
    if arm == "fedavg":
        job.set("network", {**job.plan.network.to_dict(), "parts": [{"name": "deep_supervision"}]})
    if arm == ARMS[2]:
        job.set("training.activation_checkpointing", False)
    if patch is not None:
        job.set("task.patch_size", [patch] * 3)
    return job


def cases_of(name: str, data: Path, out: Path) -> Datalist:
    """Seven phantoms, or the seven real cases, all of them to train on."""
    if name == "real":
        return Datalist(tuple(read_source(data / "BraTS2021", job_of("fedavg", None).plan.task)), ())
    if not (out / "phantoms").exists():
        make_phantoms("brats", sites=1, cases=7, out=out / "phantoms")
    found = read_datalist(next((out / "phantoms").glob("site-*")))
    return Datalist((*found.training, *found.validation), ())


def measure(arm: str, name: str, steps: int, patch: int | None, data: Path, out: Path) -> dict[str, Any]:
    """Train some steps in this process; its peak memory in GB, and how long a step took."""
    torch.set_num_threads(1)
    plan, counter = job_of(arm, patch).check(), Steps(steps)
    trainer = SiteTrainer(plan, "site", cases_of(name, data, out), TrainerSetup(hooks=(counter,), aborted=counter.over))
    for index in range(len(trainer.training_cases)):
        trainer.training_cases[index]
    prepared, begin = _peak(), time.process_time()
    with contextlib.suppress(AbortedError):
        trainer.train_round(get_weights(trainer.network), 0, 1)
    spent = time.process_time() - begin
    patches = [plan.training.batch_size, *plan.task.patch_size]
    estimate = training_bytes(plan, len(trainer.training_cases)) / GB
    found = {"cases": len(trainer.training_cases), "steps": counter.done, "patches": patches, "estimate": estimate}
    return {**found, "prepared_gb": prepared, "peak_gb": _peak(), "seconds_per_step": spent / max(1, counter.done)}


def _peak() -> float:
    """In GB; Linux tells kilobytes of 1024 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB


def run(arm: str, name: str, options: argparse.Namespace) -> None:
    """One run in a process of its own, whose result is kept."""
    path = kept(options.out, arm, name, options.steps, options.patch or "whole")
    if path.exists():
        return
    command = [sys.executable, __file__, "--data", str(options.data), "--out", str(options.out), "--one", arm, name]
    command += ["--steps", str(options.steps), *(["--patch", str(options.patch)] if options.patch else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    keep(path, {"arm": arm, "set": name, **found})
    print(f"{path.name}: {found['peak_gb']:.2f} GB", flush=True)


def table(results: list[dict[str, Any]]) -> list[str]:
    """Peak memory of every run."""
    lines = [
        "| training | cases | patches of a step | steps | before the first step (GB) | peak (GB) | estimate | seconds |"
    ]
    lines.append("|---" * 8 + "|")
    for r in sorted(results, key=lambda r: (ARMS.index(r["arm"]), r["set"], r["patches"])):
        size = f"{r['patches'][0]} of {' x '.join(map(str, r['patches'][1:]))}"
        cells = [r["arm"], f"{r['cases']} {r['set']}", size, str(r["steps"]), f"{r['prepared_gb']:.2f}"]
        cells += [f"{r['peak_gb']:.2f}", f"{r['estimate']:.2f}", f"{r['seconds_per_step']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> int:
    """Run what is asked for; 1 where a run of the job as it is takes more memory than wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", default=list(ARMS[:2]), choices=ARMS)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--steps", type=int, default=2, help="optimizer steps of a run (default: 2)")
    parser.add_argument("--patch", type=int, help="voxels along each axis in the place of the task's")
    parser.add_argument("--small", action="store_true", help="patches of 32, one step, phantoms: whether it runs")
    parser.add_argument("--one", nargs=2, metavar=("ARM", "SET"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one, options.steps, options.patch, options.data, options.out)))
        return 0
    if options.small:
        options.patch, options.steps, options.sets = 32, 1, ["phantoms"]
    for name in options.sets:
        for arm in options.arms:
            run(arm, name, options)
    results = load(options.out)
    write_table(options.out, [*table(results), "", f"Wanted: at most {WANTED_GB:g} GB."])
    return int(any(r["peak_gb"] > WANTED_GB for r in results if r["arm"] != ARMS[2]))


if __name__ == "__main__":
    sys.exit(main())

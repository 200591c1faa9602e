"""What the method of a job costs beside FedAvg of the same task: time of a step, and bytes of a round.

    python benchmarks/method_costs.py --out runs/method-costs
    python benchmarks/method_costs.py --out runs/method-costs --page docs/reference/method-table.md

Every job trains four rounds with its own network over BraTS phantoms at two sites, in patches of 32 x 32 x 32, and so
does the FedAvg job of its task. The bytes are those of the last round, since the first may do without what later ones
send. FedAvg and up to five jobs run in turns, ``--repeats`` times. Time is that of the processor, with one thread; a
site's time of a step is the least that it had in a round after the first of any repeat, since what a machine does
besides only makes steps longer. What a method does for every weight weighs more in patches this small than in those of
real training: its time is an upper bound. FedAvg is the FedAvg job of the task, or, where there is none, that of BraTS
with the job's task, network without parts, and training.

Without jobs one job of each method is measured, that of BraTS where there is one: the row of FedAvg itself tells the
noise that is left. Finished jobs are kept in OUT; one that cannot be measured, or in which something went wrong at a
site, has the reason in its row, and is tried again by the next call.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch
from experiment_tables import missing_marks, write_between_marks
from kept_runs import keep, kept

from fedseg.contract.plan import parse_plan
from fedseg.data.datalist import FILE_NAME, Datalist, read_datalist
from fedseg.data.phantoms.phantoms import make_phantoms
from fedseg.errors import FedsegError
from fedseg.jobs.job import Job, read_job
from fedseg.models.model_file import write_model
from fedseg.networks.weights import get_weights
from fedseg.simulation.in_process import InProcessFederation

JOBS = Path(__file__).parents[1] / "jobs"
TASK, PATCH, SITES, CASES, ROUNDS, EPOCHS = "brats", [32, 32, 32], 2, 3, 4, 3
TABLE = "method_costs"
# So many jobs share one run of FedAvg: more would put too much time between a job and what it is compared with.
TURN = 5
# Jobs of this task need its own phantoms: which channel a case has decides what a site trains.
OWN_PHANTOMS = ("abdomen",)


class Cost(NamedTuple):
    """The most that a site sent and received in the last round, in bytes, and the seconds of a step of each site."""

    up: float
    down: float
    steps: Mapping[str, float]


def task_of(folder: Path) -> str:
    """The task of a job's folder, by its name."""
    return folder.name.partition("_")[0]


def base_of(folder: Path) -> Job:
    """The FedAvg job with which a job is compared."""
    own = folder.parent / f"{task_of(folder)}_fedavg"
    if (own / "meta.json").is_file():
        return read_job(own)
    job, base = read_job(folder), read_job(JOBS / f"{TASK}_fedavg")
    base.set("task", job.plan.task.to_dict())
    base.set("network", {name: value for name, value in job.plan.network.to_dict().items() if name != "parts"})
    base.set("training", job.plan.training.to_dict())
    return base


def counted(job: Job, datalists: Mapping[str, Datalist], task: str = TASK) -> Cost:
    """Cost of a job's second round, with its network on small phantoms.

    Raises:
        FedsegError: the job cannot be run so, or something went wrong at a site.
    """
    if task not in OWN_PHANTOMS:
        job.set("task", TASK)
    job.set("task.patch_size", PATCH)
    job.set("training.local_epochs", EPOCHS)
    job.set("training.overlap", 0.0)
    job.set("workflow.num_rounds", ROUNDS)
    with tempfile.TemporaryDirectory() as folder:
        if any(part.name == "lora" for part in job.plan.network.parts):
            job.initial = whole_network(job, Path(folder) / "model.safetensors")
        federation = InProcessFederation(job, datalists)
        with patch("time.perf_counter", time.process_time):  # by which rounds are timed
            federation.run()
    if failed := [event for event in federation.events if event["site"] != "server"]:
        raise FedsegError(f"{failed[0]['site']}: {failed[0]['what']}")
    steps: dict[str, float] = {}
    for entry in federation.rounds[1:]:
        for site, told in entry["sites"].items():
            if told["num_steps"]:
                # Where the server takes part in every step, it tells its seconds.
                seconds = entry.get("seconds_per_iteration", told["seconds_training"] / told["num_steps"])
                steps[site] = min(seconds, steps.get(site, seconds))
    sites = federation.rounds[-1]["sites"].values()
    return Cost(max(site["bytes_up"] for site in sites), max(site["bytes_down"] for site in sites), steps)


def whole_network(job: Job, path: Path) -> Path:
    """A model of the job's network without its parts, from which adapters start."""
    network = {name: value for name, value in job.plan.network.to_dict().items() if name != "parts"}
    plan = parse_plan({**job.declaration, "network": network})
    return write_model(path, plan, get_weights(plan.build_network()), 0)


def of_a_step(costs: Sequence[Cost]) -> float:
    """Seconds of a step in repeated runs: each site's least, and of the sites the most; 0 where none made a step.

    >>> of_a_step([Cost(1, 1, {"a": 2.0, "b": 9.0}), Cost(1, 1, {"a": 8.0, "b": 3.0})])
    3.0
    """
    sites = {site for cost in costs for site in cost.steps}
    return max((min(cost.steps[site] for cost in costs if site in cost.steps) for site in sites), default=0.0)


def row(folder: Path, own: Sequence[Cost], base: Sequence[Cost]) -> str:
    """A line of the table, from the costs of a job and of FedAvg, measured in turns."""
    step, other = of_a_step(own), of_a_step(base)
    ratio = f"{step / other:.2f}" if step and other else "no step"
    return f"| `{folder.name}` | {ratio} | {own[-1].up / base[-1].up:.2f} | {own[-1].down / base[-1].down:.2f} |"


def measure(folders: Sequence[Path], datalists: Mapping[str, Datalist], repeats: int, out: Path) -> dict[Path, str]:
    """Lines of jobs with one FedAvg job, in turns; of one that fails the line has the reason."""
    own: dict[Path, list[Cost]] = {folder: [] for folder in folders}
    base: list[Cost] = []
    failed: dict[Path, str] = {}
    for _ in range(repeats):
        base.append(counted(base_of(folders[0]), datalists, task_of(folders[0])))
        for folder in [folder for folder in folders if folder not in failed]:
            try:
                own[folder].append(counted(read_job(folder), datalists, task_of(folder)))
            except FedsegError as error:
                failed[folder] = f"| `{folder.name}` | {str(error).splitlines()[0]} | | |"
    lines = {folder: row(folder, costs, base) for folder, costs in own.items() if folder not in failed}
    for folder, line in lines.items():
        keep(kept(out, folder.name, repeats), {"row": line})
    return lines | failed


def turns(folders: Sequence[Path]) -> list[list[Path]]:
    """Jobs that are measured together: at most ``TURN``, all with the same FedAvg job and phantoms."""
    same: dict[tuple[str, bool], list[Path]] = {}
    for folder in folders:
        base = base_of(folder)
        shared = (json.dumps(base.declaration, sort_keys=True), task_of(folder) in OWN_PHANTOMS)
        same.setdefault(shared, []).append(folder)
    return [jobs[first : first + TURN] for jobs in same.values() for first in range(0, len(jobs), TURN)]


def one_of_each_method(folders: Sequence[Path]) -> list[Path]:
    """One job folder of each method, which the name has after that of the task: that of BraTS where there is one.

    >>> [path.name for path in one_of_each_method([Path("abdomen_x"), Path("brats_x"), Path("hippocampus_y")])]
    ['brats_x', 'hippocampus_y']
    """
    chosen: dict[str, Path] = {}
    for folder in sorted(folders, key=lambda folder: (task_of(folder) != TASK, folder.name)):
        chosen.setdefault(folder.name.partition("_")[2], folder)
    return sorted(chosen.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", type=Path, nargs="*", help="job folders; without, one of each method")
    parser.add_argument("--out", type=Path, required=True, help="folder of phantoms and finished rows")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each, in turns (default: 3)")
    parser.add_argument("--page", type=Path, help="page that gets the table between its marks")
    arguments = parser.parse_args()
    if arguments.repeats < 1:
        parser.error("--repeats must be 1 or more")
    if arguments.page and (why := missing_marks(arguments.page, [TABLE])) is not None:
        parser.error(why)
    torch.set_num_threads(1)
    every = arguments.jobs or one_of_each_method([path.parent for path in JOBS.glob("*/meta.json")])
    rows = {folder: path for folder in every if (path := kept(arguments.out, folder.name, arguments.repeats)).exists()}
    lines = {folder: str(json.loads(path.read_text())["row"]) for folder, path in rows.items()}
    for folders in turns([folder for folder in every if folder not in lines]):
        task = task_of(folders[0]) if task_of(folders[0]) in OWN_PHANTOMS else TASK
        measured = measure(folders, phantoms(task, arguments.out / task), arguments.repeats, arguments.out)
        print("\n".join(measured.values()), flush=True)
        lines |= measured
    if arguments.page:
        table = ["| job | time of a step | bytes sent | bytes received |", "|---|---|---|---|"]
        write_between_marks(arguments.page, {TABLE: "\n".join([*table, *(lines[folder] for folder in every)])})


@cache
def phantoms(task: str, folder: Path) -> dict[str, Datalist]:
    """The sites of phantoms of a task, made once."""
    if not folder.exists():
        make_phantoms(task, SITES, CASES, folder)
    return {path.parent.name: read_datalist(path.parent) for path in sorted(folder.glob(f"*/{FILE_NAME}"))}


if __name__ == "__main__":
    main()

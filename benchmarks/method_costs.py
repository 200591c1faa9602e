"""What the method of a job costs beside FedAvg of the same task: bytes of a round, and the time of a step.

    python benchmarks/method_costs.py jobs/hippocampus_ditto jobs/hippocampus_apfl
    python benchmarks/method_costs.py --seconds --data runs/hippocampus-sites jobs/hippocampus_*

Bytes are counted: two rounds with the job's own network over phantoms at two sites; those of the second round count,
since the first may do without what later ones send. With ``--seconds`` the job's own task and patches are trained on
``--data``, folders of sites as for ``fedseg simulate``, and the time of training over the steps that are reported is
told as well: job and FedAvg run in turns, ``--repeats`` times, and the median of the ratios counts, so that what a
machine does beside them falls on both. All are multiples of FedAvg's. Without jobs all are tried; a job that cannot be
measured has the reason in its row. FedAvg is the FedAvg job of the task, or, where there is none, that of BraTS with
the job's task, network without parts, and training.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from fedseg.data.datalist import FILE_NAME, Datalist, read_datalist
from fedseg.data.phantoms.phantoms import make_phantoms
from fedseg.errors import FedsegError
from fedseg.jobs.job import Job, read_job
from fedseg.simulation.in_process import InProcessFederation

JOBS = Path(__file__).parents[1] / "jobs"
TASK, PATCH, SITES, CASES, ROUNDS = "brats", [32, 32, 32], 2, 3, 2
# Jobs of this task need its own phantoms: which channel a case has decides what a site trains.
OWN_PHANTOMS = ("abdomen",)


class Cost(NamedTuple):
    """The most that a site had in the last round: bytes that it sent and received, and seconds of a step."""

    up: float
    down: float
    step: float


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


def counted(job: Job, datalists: Mapping[str, Datalist], own_task: bool, task: str = TASK) -> Cost:
    """Cost of a job's round, on its own task or with its network on small phantoms of another."""
    if not own_task:
        if task not in OWN_PHANTOMS:
            job.set("task", TASK)
        job.set("task.patch_size", PATCH)
        job.set("training.local_epochs", 1)
    job.set("workflow.num_rounds", ROUNDS)
    federation = InProcessFederation(job, datalists)
    federation.run()
    sites = federation.rounds[-1]["sites"].values()
    steps = [site["seconds_training"] / site["num_steps"] for site in sites if site["num_steps"]]
    return Cost(
        max(site["bytes_up"] for site in sites), max(site["bytes_down"] for site in sites), max(steps, default=0.0)
    )


def median_ratio(pairs: Sequence[tuple[float, float]]) -> float:
    """The median over pairs of a job's seconds over FedAvg's, measured in turns.

    >>> median_ratio([(2.0, 1.0), (9.0, 1.0), (3.0, 2.0)])
    2.0
    """
    return median(own / base for own, base in pairs)


def row(folder: Path, datalists: Mapping[str, Datalist], repeats: int) -> str:
    """A line of the table; ``repeats`` above 0 measures seconds on the job's own task."""
    seconds, task, pairs = repeats > 0, task_of(folder), []
    try:
        for _ in range(max(1, repeats)):
            base = counted(base_of(folder), datalists, seconds, task)
            pairs.append((counted(read_job(folder), datalists, seconds, task), base))
    except FedsegError as error:
        return f"| {folder.name} | {str(error).splitlines()[0]} |"
    cost, base = pairs[0]
    cells = [f"{cost.up / base.up:.2f}", f"{cost.down / base.down:.2f}"]
    if seconds and all(own.step and other.step for own, other in pairs):
        cells.append(f"{median_ratio([(own.step, other.step) for own, other in pairs]):.2f}")
    return f"| {folder.name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", type=Path, nargs="*", help="job folders; all without")
    parser.add_argument("--seconds", action="store_true", help="also the time of a step, on the job's own task")
    parser.add_argument("--repeats", type=int, default=5, help="with --seconds: runs of each, in turns (default: 5)")
    parser.add_argument("--data", type=Path, help="folders of sites, for --seconds")
    arguments = parser.parse_args()
    if arguments.seconds and arguments.data is None:
        parser.error("--seconds needs --data")
    if arguments.repeats < 1:
        parser.error("--repeats must be 1 or more")
    folders = arguments.jobs or sorted(path.parent for path in JOBS.glob("*/meta.json"))
    with tempfile.TemporaryDirectory() as scratch:
        found: dict[str, dict[str, Datalist]] = {}
        print("| job | bytes sent | bytes received |" + (" seconds of a step |" if arguments.seconds else ""))
        print("|---|---|---|" + ("---|" if arguments.seconds else ""))
        for folder in folders:
            task = next((task for task in OWN_PHANTOMS if task == task_of(folder)), TASK)
            if task not in found:
                data = arguments.data or Path(scratch) / task
                if arguments.data is None:
                    make_phantoms(task, SITES, CASES, data)
                found[task] = {p.parent.name: read_datalist(p.parent) for p in sorted(data.glob(f"*/{FILE_NAME}"))}
            print(row(folder, found[task], arguments.repeats if arguments.seconds else 0), flush=True)


if __name__ == "__main__":
    main()

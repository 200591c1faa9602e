"""What the method of a job costs beside FedAvg of the same task: time of a step, and bytes of a round.

    python benchmarks/method_costs.py --out runs/method-costs
    python benchmarks/method_costs.py --out runs/method-costs --page docs/reference/method-table.md

Every job trains two rounds with its own network over BraTS phantoms at two sites, in patches of 32 x 32 x 32, and
so does the FedAvg job of its task. The second round counts, since the first may do without what later ones send. Job
and FedAvg run in turns, ``--repeats`` times, and the median of the ratios of the seconds of a step counts, so that what
a machine does beside them falls on both. What a method does for every weight weighs more in patches this small than in
those of real training: its time is an upper bound. FedAvg is the FedAvg job of the task, or, where there is none, that
of BraTS with the job's task, network without parts, and training.

Without jobs all are measured. Finished jobs are kept in OUT; one that cannot be measured, or in which something went
wrong at a site, has the reason in its row, and is tried again by the next call.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

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
TASK, PATCH, SITES, CASES, ROUNDS = "brats", [32, 32, 32], 2, 3, 2
TABLE = "method_costs"
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


def counted(job: Job, datalists: Mapping[str, Datalist], task: str = TASK) -> Cost:
    """Cost of a job's second round, with its network on small phantoms.

    Raises:
        FedsegError: the job cannot be run so, or something went wrong at a site.
    """
    if task not in OWN_PHANTOMS:
        job.set("task", TASK)
    job.set("task.patch_size", PATCH)
    job.set("training.local_epochs", 1)
    job.set("workflow.num_rounds", ROUNDS)
    with tempfile.TemporaryDirectory() as folder:
        if any(part.name == "lora" for part in job.plan.network.parts):
            job.initial = whole_network(job, Path(folder) / "model.safetensors")
        federation = InProcessFederation(job, datalists)
        federation.run()
    if failed := [event for event in federation.events if event["site"] != "server"]:
        raise FedsegError(f"{failed[0]['site']}: {failed[0]['what']}")
    last = federation.rounds[-1]
    sites = last["sites"].values()
    steps = [site["seconds_training"] / site["num_steps"] for site in sites if site["num_steps"]]
    if "seconds_per_iteration" in last:  # the server takes part in every step
        steps = [last["seconds_per_iteration"]]
    return Cost(
        max(site["bytes_up"] for site in sites), max(site["bytes_down"] for site in sites), max(steps, default=0.0)
    )


def whole_network(job: Job, path: Path) -> Path:
    """A model of the job's network without its parts, from which adapters start."""
    network = {name: value for name, value in job.plan.network.to_dict().items() if name != "parts"}
    plan = parse_plan({**job.declaration, "network": network})
    return write_model(path, plan, get_weights(plan.build_network()), 0)


def median_ratio(pairs: Sequence[tuple[float, float]]) -> float:
    """The median over pairs of a job's seconds over FedAvg's, measured in turns.

    >>> median_ratio([(2.0, 1.0), (9.0, 1.0), (3.0, 2.0)])
    2.0
    """
    return median(own / base for own, base in pairs)


def row(folder: Path, datalists: Mapping[str, Datalist], repeats: int) -> str:
    """A line of the table.

    Raises:
        FedsegError: see ``counted``.
    """
    task, pairs = task_of(folder), []
    for _ in range(repeats):
        base = counted(base_of(folder), datalists, task)
        pairs.append((counted(read_job(folder), datalists, task), base))
    cost, base = pairs[0]
    steps = [(own.step, other.step) for own, other in pairs]
    time = f"{median_ratio(steps):.2f}" if all(own and other for own, other in steps) else "no step"
    return f"| `{folder.name}` | {time} | {cost.up / base.up:.2f} | {cost.down / base.down:.2f} |"


def kept_row(folder: Path, datalists: Callable[[], Mapping[str, Datalist]], repeats: int, out: Path) -> str:
    """A line of the table, which is kept once it was measured; of a job that cannot be, the reason."""
    path = kept(out, folder.name, repeats)
    if not path.exists():
        try:
            keep(path, {"row": row(folder, datalists(), repeats)})
        except FedsegError as error:
            return f"| `{folder.name}` | {str(error).splitlines()[0]} | | |"
    return str(json.loads(path.read_text())["row"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", type=Path, nargs="*", help="job folders; all without")
    parser.add_argument("--out", type=Path, required=True, help="folder of phantoms and finished rows")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each, in turns (default: 5)")
    parser.add_argument("--page", type=Path, help="page that gets the table between its marks")
    arguments = parser.parse_args()
    if arguments.repeats < 1:
        parser.error("--repeats must be 1 or more")
    if arguments.page and (why := missing_marks(arguments.page, [TABLE])) is not None:
        parser.error(why)
    lines = ["| job | time of a step | bytes sent | bytes received |", "|---|---|---|---|"]
    for folder in arguments.jobs or sorted(path.parent for path in JOBS.glob("*/meta.json")):
        task = next((task for task in OWN_PHANTOMS if task == task_of(folder)), TASK)
        made = partial(phantoms, task, arguments.out / task)
        lines.append(kept_row(folder, made, arguments.repeats, arguments.out))
        print(lines[-1], flush=True)
    if arguments.page:
        write_between_marks(arguments.page, {TABLE: "\n".join(lines)})


@cache
def phantoms(task: str, folder: Path) -> dict[str, Datalist]:
    """The sites of phantoms of a task, made once."""
    if not folder.exists():
        make_phantoms(task, SITES, CASES, folder)
    return {path.parent.name: read_datalist(path.parent) for path in sorted(folder.glob(f"*/{FILE_NAME}"))}


if __name__ == "__main__":
    main()

"""What the method of a job costs beside FedAvg of the same task: bytes of a round, and the time of a step.

    python benchmarks/method_costs.py jobs/hippocampus_ditto jobs/hippocampus_apfl
    python benchmarks/method_costs.py --seconds --data runs/hippocampus-sites jobs/hippocampus_*

Bytes are counted: two rounds with the job's own network over phantoms at two sites; those of the second round count,
since the first may do without what later ones send. With ``--seconds`` the job's own task and patches are trained on
``--data``, folders of sites as for ``fedseg simulate``, and the time of training over the steps that are reported is
told as well. All are multiples of FedAvg's. Run nothing else meanwhile with ``--seconds``: what other programs take
counts too. Without jobs all are tried.
"""

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from fedseg.data.datalist import FILE_NAME, Datalist, read_datalist
from fedseg.data.phantoms.phantoms import make_phantoms
from fedseg.errors import FedsegError
from fedseg.jobs.job import Job, read_job
from fedseg.simulation.in_process import InProcessFederation

JOBS = Path(__file__).parents[1] / "jobs"
TASK, PATCH, SITES, CASES, ROUNDS = "brats", [32, 32, 32], 2, 3, 2


class Cost(NamedTuple):
    """The most that a site had in the last round: bytes that it sent and received, and seconds of a step."""

    up: float
    down: float
    step: float


def counted(job: Job, datalists: Mapping[str, Datalist], own_task: bool) -> Cost:
    """Cost of a job's round, on its own task or with its network on small phantoms."""
    if not own_task:
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


def row(folder: Path, base: Cost, datalists: Mapping[str, Datalist], seconds: bool) -> str:
    """A line of the table."""
    try:
        cost = counted(read_job(folder), datalists, seconds)
    except FedsegError as error:
        return f"| {folder.name} | {str(error).splitlines()[0]} |"
    cells = [f"{cost.up / base.up:.2f}", f"{cost.down / base.down:.2f}"]
    cells += [f"{cost.step / base.step:.2f}"] if seconds else []
    return f"| {folder.name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", type=Path, nargs="*", help="job folders; all without")
    parser.add_argument("--seconds", action="store_true", help="also the time of a step, on the job's own task")
    parser.add_argument("--data", type=Path, help="folders of sites, for --seconds")
    arguments = parser.parse_args()
    if arguments.seconds and arguments.data is None:
        parser.error("--seconds needs --data")
    folders = arguments.jobs or sorted(path.parent for path in JOBS.glob("*/meta.json"))
    with tempfile.TemporaryDirectory() as scratch:
        data = arguments.data if arguments.seconds else Path(scratch)
        if not arguments.seconds:
            make_phantoms(TASK, SITES, CASES, data)
        datalists = {path.parent.name: read_datalist(path.parent) for path in sorted(data.glob(f"*/{FILE_NAME}"))}
        print("| job | bytes sent | bytes received |" + (" seconds of a step |" if arguments.seconds else ""))
        print("|---|---|---|" + ("---|" if arguments.seconds else ""))
        base: dict[str, Cost] = {}
        for folder in folders:
            task = folder.name.partition("_")[0]
            if task not in base:
                base[task] = counted(read_job(JOBS / f"{task}_fedavg"), datalists, arguments.seconds)
            print(row(folder, base[task], datalists, arguments.seconds), flush=True)


if __name__ == "__main__":
    main()

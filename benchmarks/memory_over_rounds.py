"""Resident memory of every process of a real federation over a job of many short rounds.

    python benchmarks/memory_over_rounds.py [--rounds 100] [--epochs 12] [--job jobs/brats_fedcostwavg] --out DIR

A server and three sites with phantoms run as processes with mutual TLS; the job's network and patches are made small,
so that what would leak in a round of real size leaks here as often, and is seen sooner beside little else. Each
process's resident memory is read twice a second and dated by the rounds that the server has finished. Written:
``memory.csv`` (every reading), ``memory.png``, and a table: the median of the first rounds after the tenth against the
median of the last ones. A median over ten rounds, since single readings depend on what is being computed.

FLARE keeps every stream that it has received for another 65 s, with a thread that will forget it, so its processes hold
the more the quicker the rounds are. Memory is steady only when rounds have come at one pace for longer than that: ten
rounds must take more than 65 s (raise ``--epochs`` if they do not), and nothing else may work on the machine that makes
the first ones slower than the last.
"""

import argparse
import sys
import threading
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
import psutil

from fedseg.data.phantoms.phantoms import make_phantoms
from fedseg.data.site_folders import find_sites
from fedseg.deployment.kits.project_file import read_project
from fedseg.deployment.local.federation import LocalFederation, running
from fedseg.jobs.job import Job, read_job

ROOT = Path(__file__).resolve().parents[1]
TEMPLATES = ROOT / "workspace_templates"
SITES = 3
WARM = 10
WINDOW = 10


def short_rounds(folder: Path, rounds: int, epochs: int) -> Job:
    """The job with a small network and little to do in a round."""
    job = read_job(folder)
    job.set("workflow.num_rounds", rounds)
    job.set("network", {"name": "residual_unet", "channels": [4, 8, 8], "strides": [2, 2], "res_units": 1})
    for key, value in {
        "task.patch_size": [16, 16, 16],
        "training.local_epochs": epochs,
        "training.overlap": 0.0,
        "training.threads": 1,
    }.items():
        job.set(key, value)
    job.check()
    return job


class Watch(threading.Thread):
    """Reads memory until it is told to stop.

    Attributes:
        rows: seconds, finished rounds, role (``server`` or a site, parent or job process), megabytes.
    """

    def __init__(self, local: LocalFederation, checkpoints: Path) -> None:
        super().__init__(daemon=True)
        self.local, self.checkpoints = local, checkpoints
        self.rows: list[tuple[float, int, str, float]] = []
        self._ended = threading.Event()

    def run(self) -> None:
        """Two readings a second."""
        start, parents = time.monotonic(), {each.process.pid: each.kit.name for each in self.local.participants}
        folders = {str(kit.folder): kit.name for kit in self.local.federation.kits}
        while not self._ended.wait(0.5):
            finished = [int(path.stem.removeprefix("checkpoint-")) for path in self.checkpoints.glob("*/checkpoint-*")]
            number = max(finished, default=-1) + 1
            for process in self.local.processes():
                try:
                    names = [folders[word] for word in process.cmdline() if word in folders]
                    memory = process.memory_info().rss / 1e6
                except psutil.Error:
                    continue
                role = "parent" if process.pid in parents else "job"
                self.rows.append((time.monotonic() - start, number, f"{names[0]} {role}", memory))

    def end(self) -> pd.DataFrame:
        """Stop, and return all readings."""
        self._ended.set()
        self.join()
        return pd.DataFrame(self.rows, columns=["seconds", "finished_rounds", "process", "megabytes"])


def growth(readings: pd.DataFrame, rounds: int) -> pd.DataFrame:
    """Median memory in the first rounds after the warm-up and in the last ones, for each process."""
    rows = []
    for process, part in readings.groupby("process"):
        early = part[part.finished_rounds.between(WARM, WARM + WINDOW - 1)].megabytes.median()
        late = part[part.finished_rounds.between(rounds - WINDOW, rounds - 1)].megabytes.median()
        rows.append((process, early, late, 100 * (late / early - 1)))
    columns = ["process", f"rounds {WARM}-{WARM + WINDOW - 1} (MB)", f"last {WINDOW} rounds (MB)", "growth (%)"]
    return pd.DataFrame(rows, columns=columns)


def plot(readings: pd.DataFrame, file: Path) -> None:
    """One line for each process."""
    figure, axes = plt.subplots(figsize=(8, 4.5), constrained_layout=True)
    for process, part in readings.groupby("process"):
        medians = part.groupby("finished_rounds").megabytes.median()
        axes.plot(medians.index, medians, label=process, linestyle="--" if process.endswith("parent") else "-")
    axes.axvline(WARM, color="grey", linewidth=0.8)
    axes.set(xlabel="finished rounds", ylabel="resident memory (MB), median in a round", ylim=(0, None))
    axes.legend(fontsize="small", ncols=2)
    figure.savefig(file, dpi=120)


def main() -> None:
    """Run the federation and write what was read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=12, help="local epochs in a round: how long it takes")
    parser.add_argument("--job", type=Path, default=ROOT / "jobs" / "brats_fedcostwavg")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    options = parser.parse_args()
    if options.rounds < WARM + 2 * WINDOW:
        parser.error(f"--rounds {options.rounds}: at least {WARM + 2 * WINDOW}, or nothing can be compared")
    options.out.mkdir(parents=True)
    data = options.out / "data"
    job = short_rounds(options.job, options.rounds, options.epochs)
    make_phantoms("brats", SITES, 4, data, seed=0)
    policy = TEMPLATES / "site_policy" / "local"
    project = read_project(TEMPLATES / "three_hospitals")
    with running(project, policy, data, find_sites(data), options.out) as local, local.coordinator() as coordinator:
        watch = Watch(local, options.out / "state" / "server")
        watch.start()
        status = coordinator.wait(coordinator.submit(job))
        readings = watch.end()
    readings.to_csv(options.out / "memory.csv", index=False)
    plot(readings, options.out / "memory.png")
    table, pace = growth(readings, options.rounds), readings.groupby("finished_rounds").seconds.min()
    first, last = pace[WARM] - pace[1], pace[options.rounds] - pace[options.rounds - WINDOW]
    print(f"rounds 1 to {WARM} took {first:.0f} s, the last {WINDOW} {last:.0f} s")
    print(f"status: {status}\n{table.to_string(index=False, float_format=lambda value: f'{value:.1f}')}")
    sys.exit(0 if status == "FINISHED:COMPLETED" else 1)


if __name__ == "__main__":
    main()

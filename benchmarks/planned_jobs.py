"""What ``fedseg plan`` proposes beside the hand-made settings of the built-in tasks, trained with equal samples.

    python benchmarks/planned_jobs.py --data ../shared/data --out runs/benchmark-planned

Of each data set the sites tell their statistics, from which a job is proposed. Both arms then train the job of the task
with FedAvg, for the same rounds and local epochs, so that each sees as many patches: one of every case in each pass.

- ``hippocampus``: Task04 of the Decathlon at three sites;
- ``pancreas``: phantoms at two sites, at the job's voxel size or at the proposed one;
- ``brats``: phantoms of about 2 mm at two sites and the real BraTS 2021 cases at 2 mm instead of 1 mm, so that the 64 x
  64 x 64 voxels of a patch in both arms cover what 128 x 128 x 128 cover in the original. Behind all that sites with so
  few cases tell stand at least two patients.

Every finished run is kept in OUT/runs as JSON, so that an interrupted benchmark goes on where it was; ``--table`` only
writes the table.
"""

import argparse
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import SimpleITK as sitk
import torch
from kept_runs import keep, kept, load, spread
from multi_institution import JOBS, institutions

from fedseg.data.datalist import Case, Datalist
from fedseg.data.intake.sources import read_source
from fedseg.data.partition import partition_by_sizes
from fedseg.data.splits import split_by_patient
from fedseg.jobs.job import Job, read_job
from fedseg.planning.proposed_job import ProposedJob, propose_job
from fedseg.simulation.in_process import InProcessFederation
from fedseg.statistics.document import FederationStatistics
from fedseg.statistics.measuring import measure
from fedseg.statistics.site_statistics import released
from fedseg.tasks.registry import get_task

ARMS = ("hand-made", "planned")
SIZES = (30, 20, 10)  # training cases of the hippocampus at its sites
HELD_OUT = 0.25  # of the patients of each site
WATCHED = 0.01  # of them, at least one
VOXELS = {"hippocampus": 96**3, "pancreas": 96 * 96 * 64, "brats": 64**3}
COARSE = {"task.spacing": [2.0, 2.0, 2.0], "task.patch_size": [64, 64, 64]}
CHANGES: dict[str, dict[str, Any]] = {"hippocampus": {}, "pancreas": {}, "brats": COARSE}
MINIMUM = {"hippocampus": 5, "pancreas": 5, "brats": 2}  # fewest patients behind what a site tells


def sites_of(name: str, data: Path, out: Path, seed: int) -> dict[str, Datalist]:
    """Training, validation and test cases of each site; patients are drawn anew for every seed."""
    if name == "hippocampus":
        cases = list(read_source(data / "Task04_Hippocampus", get_task(name)))
        counts = {f"site-{number + 1}": round(size / (1 - HELD_OUT)) for number, size in enumerate(SIZES)}
        groups = partition_by_sizes(cases, counts, seed)
    else:
        groups = institutions(name, data, out)
    if name == "brats":
        groups["real"] = [halved(case, out / "halved") for case in groups["real"]]
    shares = {"validation": WATCHED, "test": HELD_OUT}
    return {site: Datalist(**split_by_patient(found, shares, seed)) for site, found in groups.items()}


def halved(case: Case, folder: Path) -> Case:
    """The case with voxels of twice the size: of images the mean of eight voxels, of labels the nearest one."""
    sources = [*case.files]
    *images, label = (folder / case.patient / source.name for source in sources)
    if not label.exists():
        label.parent.mkdir(parents=True, exist_ok=True)
        for source, target in zip(sources, images, strict=False):
            grid = sitk.BinShrink(sitk.ReadImage(source, sitk.sitkFloat32), [2, 2, 2])
            sitk.WriteImage(grid, target)
        drawn = sitk.ReadImage(sources[-1])
        sitk.WriteImage(sitk.Resample(drawn, grid, sitk.Transform(), sitk.sitkNearestNeighbor), label)
    return replace(case, images=tuple(images), label=label)


def plan_of(name: str, sites: Mapping[str, Datalist]) -> ProposedJob:
    """What is proposed from the statistics that the sites would tell; those with too few patients tell none."""
    task = get_task(name)
    told = {site: measure(task, found.training) for site, found in sites.items()}
    least = MINIMUM[name]
    enough = {site: released(found, least) for site, found in told.items() if len(found.patients) >= least}
    return propose_job(FederationStatistics(task, enough), VOXELS[name])


def job_of(name: str, arm: str, seed: int, rounds: int, sites: Mapping[str, Datalist]) -> Job:
    """The task's FedAvg job, with hand-made or with proposed settings."""
    job = read_job(JOBS / f"{name}_fedavg")
    if arm == "planned":
        plan = plan_of(name, sites).plan
        job.set("task", plan["task"])
        job.set("network", plan["network"])
        job.set("training.batch_size", plan["training"]["batch_size"])
    else:
        for key, value in CHANGES[name].items():
            job.set(key, value)
    job.set("workflow.num_rounds", rounds)
    job.set("seed", seed)
    return job


def run(name: str, arm: str, seed: int, options: argparse.Namespace) -> None:
    """One run, unless it is kept already."""
    path = kept(options.out, name, arm, seed, options.rounds)
    if path.exists():
        return
    start, sites = time.monotonic(), sites_of(name, options.data, options.out, seed)
    federation = InProcessFederation(job_of(name, arm, seed, options.rounds, sites), sites)
    federation.run(lambda entry: print(name, arm, seed, entry["round"], entry["val_dice"], flush=True))
    final = federation.evaluate(distances=False)
    plan = federation.plan
    keep(
        path,
        {
            "data": name,
            "arm": arm,
            "seed": seed,
            "rounds": options.rounds,
            "samples": sum(part["num_samples"] for entry in federation.rounds for part in entry["sites"].values())
            * plan.training.local_epochs,
            "dice": final["pooled_dice"],
            "cases": sum(part["cases"] for part in final["sites"].values()),
            "patch": list(plan.task.patch_size),
            "batch": plan.training.batch_size,
            "network": plan.network.to_dict()["name"],
            "seconds": time.monotonic() - start,
        },
    )


def table(out: Path) -> str:
    """Mean Dice over all test cases, and the range over seeds, of each arm."""
    runs = load(out)
    lines = ["| data set | arm | patch, batch, network | samples | Dice | seconds |", "|---|---|---|---|---|---|"]
    for name in sorted({each["data"] for each in runs}):
        means = {}
        for arm in ARMS:
            found = [each for each in runs if (each["data"], each["arm"]) == (name, arm)]
            if not found:
                continue
            first, seconds = found[0], sum(each["seconds"] for each in found) / len(found)
            means[arm] = sum(each["dice"] for each in found) / len(found)
            what = f"{' x '.join(map(str, first['patch']))}, {first['batch']}, {first['network']}"
            dice = spread([each["dice"] for each in found])
            lines.append(f"| {name} | {arm} | {what} | {first['samples']} | {dice} | {seconds:.0f} |")
        if len(means) == len(ARMS):
            lines.append(f"| {name} | difference | | | {means['planned'] - means['hand-made']:+.4f} | |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=list(VOXELS), choices=list(VOXELS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.table:
        for seed in range(options.seeds):
            for name in options.only:
                for arm in ARMS:
                    run(name, arm, seed, options)
    options.out.mkdir(parents=True, exist_ok=True)
    print(table(options.out))


if __name__ == "__main__":
    main()

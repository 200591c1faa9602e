"""FedAvg over true institutions: what a change of the defaults is worth, by cross-validation over patients.

    python benchmarks/multi_institution.py --data ../shared/data --out runs/benchmark-institutions

- ``lgg``: lower-grade glioma of four institutions at 4 x 4 x 1 mm, ``lgg_fine`` at 2 x 2 x 1 mm. Cases that lack a
  sequence are left out;
- ``hippocampus``: 50 whole hippocampi of OASIS and 36 of the Decathlon, whose two labels are merged, at 1 mm;
- ``pancreas``: phantoms of two scanners, with the settings of the pancreas job;
- ``brats``: phantoms of two scanners and the real BraTS 2021 cases as a third institution, with the settings of the
  BraTS jobs at 2 mm in patches of 64 x 64 x 64, four passes a round.

Seed s holds out the s-th third of every institution's patients, so that three seeds test every patient once. Every arm
has the same rounds, and beside its own settings the defaults of the code that runs it: an earlier version is an arm
too, run from its own checkout and named by ``--label``. Every finished run is kept in OUT/runs as JSON, so that an
interrupted benchmark goes on where it was; ``--table`` only writes the table.
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from kept_runs import keep, kept, load, spread

from fedseg.data.datalist import Case, Datalist, read_datalist
from fedseg.data.intake.sources import read_source
from fedseg.data.phantoms.phantoms import make_phantoms
from fedseg.jobs.job import Job, read_job
from fedseg.networks.weights import Arrays
from fedseg.randomness import generator
from fedseg.simulation.in_process import InProcessFederation
from fedseg.tasks.registry import get_task
from fedseg.training.trainer import SiteTrainer

JOBS = Path(__file__).parents[1] / "jobs"
FOLDS = 3
REFERENCE = "earlier"
SEQUENCES = ("t1", "flair", "t1ce")
LGG = {
    "name": "lgg",
    "modality": "MR",
    "channels": list(SEQUENCES),
    "labels": {"tumour": 1},
    "normalisation": "zscore_nonzero",
    "sampling": {"background": 1, "tumour": 1},
    "flip_axes": [0],
}
HIPPOCAMPUS = {
    "name": "whole_hippocampus",
    "modality": "MR",
    "channels": ["t1"],
    "labels": {"hippocampus": 1},
    "normalisation": "zscore",
    "patch_size": [48, 64, 48],
}
TASKS: dict[str, Any] = {
    "lgg": {**LGG, "spacing": [4.0, 4.0, 1.0], "patch_size": [64, 64, 16]},
    "lgg_fine": {**LGG, "patch_size": [128, 128, 16]},
    "hippocampus": HIPPOCAMPUS,
    "pancreas": None,
    "brats": {"name": "brats", "spacing": [2.0, 2.0, 2.0], "patch_size": [64, 64, 64]},
}
JOB_OF = {"pancreas": "pancreas_fedavg", "brats": "brats_fedavg"}
FULL, LIGHT = {"training.augmentation": "full"}, {"training.augmentation": "intensity"}


def pancreas(spacing: list[float], patch_size: list[int], overlap: float, **fields: Any) -> dict[str, Any]:
    """Settings of another grid of the pancreas, in mm, with patches in voxels."""
    task = {"name": "pancreas", "spacing": spacing, "patch_size": patch_size, **fields}
    return {"task": task, "training.overlap": overlap}


SLICES: tuple[Any, ...] = [2.0, 2.0, 2.5], [64, 64, 48], 0.25
GRIDS: dict[str, dict[str, Any]] = {
    "coarse": pancreas([2.0, 2.0, 4.0], [64, 64, 32], 0.5),
    # In patches of about as many voxels, which see less of the abdomen.
    "fine": pancreas([1.5, 1.5, 2.5], [64, 64, 32], 0.25),
    "between": pancreas([1.5, 1.5, 4.0], [80, 80, 24], 0.5),
    # In patches of about as many mm.
    "plane": pancreas([1.6, 1.6, 4.0], [80, 80, 32], 0.5),
    "slices": pancreas(*SLICES),
    "slices_organs": pancreas(*SLICES, sampling={"background": 1, "pancreas": 2, "tumour": 2}),
}
ARMS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "lr_4": {"training.learning_rate": 4e-3},
    "full_lr_4": {**FULL, "training.learning_rate": 4e-3},
    "light": LIGHT,
    "full": FULL,
    # What the BraTS jobs had in version 0.5.0.
    "light_lr_1": {**LIGHT, "training.learning_rate": 1e-3},
    **{f"{name}_light": {**settings, **LIGHT} for name, settings in GRIDS.items()},
    **{f"{name}_full": {**settings, **FULL} for name, settings in GRIDS.items()},
}
# Ways to predict with a model that is there.
PREDICTIONS: dict[str, dict[str, Any]] = {
    "overlap 0.5": {"training.overlap": 0.5},
    "mirrored": {"task.mirrored": True},
    "parts of 4 ml": {"task.components": {"foreground": 4}},
    "largest part": {"task.components": {"foreground": "largest"}},
}


def institutions(name: str, data: Path, out: Path) -> dict[str, list[Case]]:
    """The cases of every institution, in the order of their names."""
    if name == "pancreas":
        return _phantoms(name, 15, out)
    if name == "brats":
        return {**_phantoms(name, 6, out), "real": list(read_source(data / "BraTS2021", get_task("brats")))}
    return _hippocampi(data, out) if name == "hippocampus" else _gliomas(data)


def _phantoms(name: str, cases: int, out: Path) -> dict[str, list[Case]]:
    if not (out / name).exists():
        make_phantoms(name, sites=2, cases=cases, out=out / name)
    lists = {folder.name: read_datalist(folder) for folder in sorted((out / name).glob("site-*"))}
    return {site: [*found.training, *found.validation] for site, found in lists.items()}


def _gliomas(data: Path) -> dict[str, list[Case]]:
    found: dict[str, list[Case]] = {}
    for folder in sorted(path for path in (data / "LGG").glob("*/*") if path.is_dir()):
        images = [folder / f"{folder.name}_{sequence}.nii.gz" for sequence in SEQUENCES]
        if all(image.exists() for image in images):
            case = Case(tuple(images), folder / f"{folder.name}_seg.nii.gz", folder.name)
            found.setdefault(folder.parent.name, []).append(case)
    return found


def _hippocampi(data: Path, out: Path) -> dict[str, list[Case]]:
    oasis = read_datalist(data / "OASIS_hippocampus" / "dataset.json").training
    decathlon = read_source(data / "Task04_Hippocampus", get_task("hippocampus"))
    merged = []
    for case in decathlon[:36]:
        path = out / "hippocampus" / case.label.name
        if not path.exists():
            label = nib.load(case.label)
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image((np.asarray(label.dataobj) > 0).astype(np.uint8), label.affine), path)
        merged.append(Case(case.images, path, case.patient))
    return {"Decathlon": merged, "OASIS": list(oasis)}


def split(name: str, data: Path, out: Path, seed: int) -> dict[str, Datalist]:
    """Every institution's patients: one third to test on, one that the rounds are watched with, the others to train."""
    lists = {}
    for site, cases in institutions(name, data, out).items():
        patients = sorted({case.patient for case in cases})
        order = [patients[i] for i in generator(0, site, "folds").permutation(len(patients))]
        held = set(order[seed % FOLDS :: FOLDS])
        watched = next(patient for patient in patients if patient not in held)
        training = tuple(c for c in cases if c.patient not in {*held, watched})
        parts = (tuple(c for c in cases if c.patient in group) for group in ({watched}, held))
        lists[site] = Datalist(training, *parts)
    return lists


def make_job(name: str, settings: dict[str, Any], seed: int, rounds: int) -> Job:
    """FedAvg with two passes a round and otherwise the defaults of this version (or a job's own settings), and what an
    arm changes."""
    job = read_job(JOBS / JOB_OF.get(name, "hippocampus_fedavg"))
    if TASKS[name] is not None:
        job.declaration["task"] = TASKS[name]
    if name not in JOB_OF:
        job.declaration["training"] = {"local_epochs": 2}
    passes = {"training.local_epochs": 4} if name == "brats" else {}
    for key, value in {"seed": seed, "workflow.num_rounds": rounds, **passes, **settings}.items():
        job.set(key, value)
    return job


def run(name: str, arm: str, label: str, seed: int, rounds: int, data: Path, out: Path) -> Path:
    """One run; its result is kept in ``out/runs`` and its model in ``out/models``."""
    path = kept(out, name, label, seed, rounds)
    if path.exists():
        return path
    job, lists = make_job(name, ARMS[arm], seed, rounds), split(name, data, out, seed)
    start, busy = time.time(), time.process_time()
    federation = InProcessFederation(job, lists)
    federation.run()
    seconds, busy = time.time() - start, time.process_time() - busy
    model(out, path).parent.mkdir(exist_ok=True)
    np.savez(model(out, path), **federation.model.weights)
    described = {"set": name, "arm": label, "seed": seed, "rounds": rounds, "seconds": seconds}
    described |= {"processor_seconds": busy, **score(federation.trainers, federation.model.weights)}
    return keep(path, described)


def rescore(name: str, arm: str, label: str, seed: int, rounds: int, data: Path, out: Path) -> None:
    """Score a kept model with other ways to predict; the results are kept as arms of their own."""
    with np.load(model(out, kept(out, name, label, seed, rounds))) as arrays:
        weights = dict(arrays)
    for variant, settings in PREDICTIONS.items():
        path = kept(out, name, f"{label}, {variant}", seed, rounds)
        if not path.exists():
            plan, busy = make_job(name, {**ARMS[arm], **settings}, seed, rounds).check(), time.process_time()
            trainers = {site: SiteTrainer(plan, site, part) for site, part in split(name, data, out, seed).items()}
            found = score(trainers, weights)
            described = {"set": name, "arm": f"{label}, {variant}", "seed": seed, "rounds": rounds}
            keep(path, {**described, "processor_seconds": time.process_time() - busy, **found})


def model(out: Path, result: Path) -> Path:
    """Where the model of a run is kept."""
    return out / "models" / f"{result.stem}.npz"


def score(trainers: Mapping[str, SiteTrainer], weights: Arrays) -> dict[str, Any]:
    """Dice of every test case by institution, the means of these, and the mean of the means."""
    scored = {site: trainer.validate(weights, "test") for site, trainer in trainers.items()}
    cases = {site: {case.id: statistics.mean(case.score.dice.values()) for case in c} for site, c in scored.items()}
    sites = {site: statistics.mean(dice.values()) for site, dice in cases.items()}
    return {"dice": statistics.mean(sites.values()), "sites": sites, "cases": cases}


def table(results: list[dict[str, Any]]) -> str:
    """Every arm beside the reference: mean Dice over institutions, and its difference at equal seeds."""
    lines = []
    for name in TASKS:
        runs = [r for r in results if r["set"] == name]
        if not runs:
            continue
        sites = sorted({site for r in runs for site in r["sites"]})
        reference = {(r["seed"], r["rounds"]): r["dice"] for r in runs if r["arm"] == REFERENCE}
        lines += [f"## {name}", "", "| arm | rounds | mean Dice over institutions | minus earlier | seeds | "]
        lines[-1] += " | ".join(sites) + " | processor minutes |"
        lines.append("|---" * (len(sites) + 6) + "|")
        for arm, rounds in sorted({(r["arm"], r["rounds"]) for r in runs}, key=lambda a: (a[1], a[0])):
            own = [r for r in runs if (r["arm"], r["rounds"]) == (arm, rounds)]
            gaps = [r["dice"] - reference[r["seed"], rounds] for r in own if (r["seed"], rounds) in reference]
            gap = f"{statistics.mean(gaps):+.4f} ({min(gaps):+.4f} to {max(gaps):+.4f})" if gaps else ""
            means = [f"{statistics.mean(r['sites'][site] for r in own):.3f}" for site in sites]
            minutes = statistics.mean(r["processor_seconds"] for r in own) / 60
            cells = [arm, str(rounds), spread([r["dice"] for r in own]), gap, str(len(own)), *means, f"{minutes:.1f}"]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", default="lgg", choices=list(TASKS))
    parser.add_argument("--arms", nargs="+", default=["defaults"], choices=list(ARMS))
    parser.add_argument("--label", help="what the table calls the arm, for another version's code")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--rescore", action="store_true", help="also score the models with other ways to predict")
    parser.add_argument("--table", action="store_true", help="only write the table of what is there")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for seed in [] if options.table else options.seeds:
        for arm in options.arms:
            label = options.label or arm
            path = run(options.set, arm, label, seed, options.rounds, options.data, options.out)
            print(path.name, json.loads(path.read_text())["dice"], flush=True)
            if options.rescore:
                rescore(options.set, arm, label, seed, options.rounds, options.data, options.out)
    text = table(load(options.out))
    (options.out / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

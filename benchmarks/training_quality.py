"""How good fedseg's own training is: pooled hippocampus beside a plain loop with nnU-Net's recipe, in equal time.

    python benchmarks/training_quality.py --data ../shared/data/Task04_Hippocampus --out runs/benchmark-quality

Arms, trained on the same pooled cases (one volume stands for one patient) and scored on the same held-out fifth, each
image on its own grid:

- ``fedseg``: the built-in task with the settings of its FedAvg job, at one site that has all cases;
- ``recipe``: ``nnunet_recipe.py`` with nnU-Net's own width, rate and mirrors, in batches of two;
- ``recipe, searched``: the same with what a small search found best for so short a time (``--search``);
- ``fedseg, nnU-Net's settings``: the built-in task with network and training of the job ``brats_nnunet_recipe``.

Every arm trains for the same seconds of the processor with one thread. Its learning rate goes through its whole course
in that time. Reading and preparing the cases, and prediction, count in no arm. The search trains on the training cases
but for the last twentieth, on which it scores as the arms do on test cases: no arm is chosen on test cases. Every
finished run is kept in OUT/runs as JSON, so that an interrupted benchmark goes on where it was.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from kept_runs import keep, kept, load, spread, write_table
from nnunet_recipe import Recipe, load_cases, predictor, train

from fedseg.contract.plan import Plan
from fedseg.data.datalist import Case, Datalist
from fedseg.data.intake.sources import read_source
from fedseg.data.splits import split_by_patient
from fedseg.errors import AbortedError
from fedseg.jobs.job import read_job
from fedseg.networks.weights import get_weights
from fedseg.tasks.objective import Objective
from fedseg.training.hooks import LocalTraining, TrainingHook
from fedseg.training.optimisation import set_rate
from fedseg.training.patches import Sample
from fedseg.training.trainer import SiteTrainer, TrainerSetup

JOBS = Path(__file__).parents[1] / "jobs"
BUILT_IN, BUILT_IN_NNUNET, RECIPE, SEARCHED = "fedseg", "fedseg, nnU-Net's settings", "recipe", "recipe, searched"
SEARCH_ARM = "search, predicted as trained"
ARMS = (BUILT_IN, RECIPE, SEARCHED, BUILT_IN_NNUNET)
HELD_OUT, WATCHED = 0.2, 0.05
SEARCH = (
    Recipe(),
    Recipe(width=16),
    Recipe(width=16, learning_rate=0.1, momentum=0.9, mirrored=False),
    Recipe(width=16, learning_rate=0.3, momentum=0.9, mirrored=False),
    Recipe(width=8, mirrored=False),
    Recipe(width=8, learning_rate=0.03, momentum=0.9, mirrored=False),
    Recipe(width=8, learning_rate=0.1, momentum=0.9, mirrored=False),
    Recipe(width=8, learning_rate=0.3, momentum=0.9, mirrored=False),
    Recipe(width=8, learning_rate=1.0, momentum=0.9, mirrored=False),
)


class ProcessorTime(TrainingHook):
    """Ends the training when so many seconds of the processor are spent, and lets the rate follow them."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.begin, self.steps = seconds, 0.0, 0

    @property
    def spent(self) -> float:
        return time.process_time() - self.begin

    def batch(self, training: LocalTraining, batch: Sample) -> Sample:
        set_rate(training.optimizer, training.settings, self.spent / self.seconds)
        return batch

    def after_step(self, training: LocalTraining) -> None:
        self.steps += 1

    def over(self) -> bool:
        """Whether the training is to end."""
        return self.spent >= self.seconds


def built_in(arm: str, seed: int) -> Plan:
    """The plan of fedseg's own training in an arm."""
    job = read_job(JOBS / "hippocampus_fedavg")
    if arm == BUILT_IN_NNUNET:
        other = read_job(JOBS / "brats_nnunet_recipe")
        # Its levels for a smaller image.
        levels = {
            "features": [32, 64, 128, 256],
            "strides": [1, 2, 2, 2],
            "blocks": [1, 3, 4, 6],
            "blocks_up": [1, 1, 1],
        }
        job.set("network", {**other.plan.network.to_dict(), **levels})
        job.set("training", other.declaration["training"])
        # It spares memory, which is not short here, for time, which is.
        job.set("training.activation_checkpointing", False)
        job.set("task.mirrored", other.plan.task.mirrored)
    job.set("seed", seed)
    # The time ends the round, not its passes.
    job.set("training.local_epochs", 100_000)
    return job.check()


def train_built_in(plan: Plan, cases: Datalist, seconds: float) -> dict[str, Any]:
    """fedseg's own training for a time; steps, and Dice of the test cases by region."""
    clock = ProcessorTime(seconds)
    trainer = SiteTrainer(plan, "pooled", cases, TrainerSetup(hooks=(clock,), aborted=lambda: clock.over()))
    weights = get_weights(trainer.network)
    for index in range(len(trainer.training_cases)):
        trainer.training_cases[index]
    clock.begin = time.process_time()
    try:
        trainer.train_round(weights, 0, 1)
    except AbortedError:
        weights = get_weights(trainer.network)
    clock.seconds = float("inf")
    scored = trainer.validate(weights, "test")
    return {"steps": clock.steps, "dice": plan.objective.summarise([case.score for case in scored])["dice"]}


def train_recipe(recipe: Recipe, cases: Datalist, seed: int, seconds: float) -> dict[str, Any]:
    """The plain loop for a time; steps, and Dice of the test cases by region.

    It predicts with mirror images where it trained with them.
    """
    prepared = load_cases([case.images[0] for case in cases.training], [_label(case) for case in cases.training])
    network, steps = train(prepared, recipe, seed, seconds)
    kind = read_job(JOBS / "hippocampus_fedavg").plan.objective
    return {"steps": steps, "dice": score(kind, cases.test, predictor(network, recipe.mirrored))}


def score(kind: Objective, cases: Sequence[Case], predict: Callable[[Path], np.ndarray]) -> dict[str, float]:
    """Dice by region of label maps on the images' own grids, counted as fedseg counts its own."""
    scored = []
    for case in cases:
        label = nib.load(_label(case))
        reference = kind.reference(np.asarray(nib.load(case.images[0]).dataobj)[None], np.asarray(label.dataobj))
        spacing = tuple(float(size) for size in label.header.get_zooms()[:3])
        scored.append(kind.score(predict(case.images[0]), reference, spacing, {"empty": "brats"}, full=False))
    found: dict[str, float] = kind.summarise(scored)["dice"]
    return found


def _label(case: Case) -> Path:
    assert case.label is not None
    return case.label


def run(arm: str, recipe: Recipe | None, cases: Datalist, seed: int, seconds: float, out: Path) -> dict[str, Any]:
    """One run, whose result is kept in ``out``; without a recipe it is fedseg's own training.

    A kept run of fedseg's own training with another plan is made anew.
    """
    name = (arm, seed, f"{seconds:g}", *(asdict(recipe).values() if recipe else ()))
    path, plan = kept(out, *name), None if recipe else built_in(arm, seed)
    digest = plan.digest if plan else None
    if not path.exists() or json.loads(path.read_text()).get("plan") != digest:
        torch.set_num_threads(1)
        if recipe is not None:
            found = train_recipe(recipe, cases, seed, seconds)
        elif plan is not None:
            found = train_built_in(plan, cases, seconds)
        described = {"arm": arm, "recipe": asdict(recipe) if recipe else None, "plan": digest, "seed": seed}
        keep(path, {**described, "seconds": seconds, "cases": [len(cases.training), len(cases.test)], **found})
        print(f"{path.name}: {found['steps']} steps, {found['dice']['mean']:.4f}", flush=True)
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def watched(cases: Datalist) -> Datalist:
    """The training cases alone, of which the last twentieth stands in the place of the test cases."""
    count = max(1, round(WATCHED * len(cases.training)))
    return Datalist(cases.training[:-count], (), cases.training[-count:])


def search(cases: Datalist, tried: Sequence[Recipe], seconds: float, out: Path) -> Recipe:
    """The recipe that is best on training cases that it did not see, one seed."""
    results = [run(SEARCH_ARM, recipe, watched(cases), 0, seconds, out)["dice"]["mean"] for recipe in tried]
    return tried[results.index(max(results))]


def table(results: Sequence[dict[str, Any]]) -> list[str]:
    """Runs of the arms side by side, and the trials of the search."""
    lines = ["| training | mean Dice | anterior | posterior | minus recipe, searched | seeds | steps | seconds |"]
    lines.append("|---" * 8 + "|")
    for arm, seconds in sorted({(r["arm"], r["seconds"]) for r in results if r["arm"] in ARMS}):
        own = sorted((r for r in results if (r["arm"], r["seconds"]) == (arm, seconds)), key=lambda r: r["seed"])
        beside = {r["seed"]: r for r in results if (r["arm"], r["seconds"]) == (SEARCHED, seconds)}
        gaps = [r["dice"]["mean"] - beside[r["seed"]]["dice"]["mean"] for r in own if r["seed"] in beside]
        dice = [spread([r["dice"][region] for r in own]) for region in ("mean", "anterior", "posterior")]
        steps = round(statistics.mean(r["steps"] for r in own))
        cells = [*dice, spread(gaps) if gaps else "", str(len(own)), str(steps), f"{seconds:g}"]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    trials = sorted({r["seconds"] for r in results if r["arm"] == SEARCH_ARM})
    if trials:
        lines += ["", f"Each trial of the search trained for {' or '.join(f'{each:g}' for each in trials)} s."]
    lines += ["", "| tried for the recipe | mean Dice on watched training cases | steps | seconds |", "|---" * 4 + "|"]
    for r in sorted((r for r in results if r["arm"] == SEARCH_ARM), key=lambda r: -r["dice"]["mean"]):
        told = ", ".join(f"{name} {value}" for name, value in r["recipe"].items())
        lines.append(f"| {told} | {r['dice']['mean']:.4f} | {r['steps']} | {r['seconds']:g} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of Task04_Hippocampus")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=[BUILT_IN, RECIPE, SEARCHED], choices=ARMS)
    parser.add_argument("--seconds", type=float, default=240, help="of the processor, for each training (default: 240)")
    parser.add_argument("--search-seconds", type=float, help="for each of its trials (default: half of them)")
    parser.add_argument("--table", action="store_true", help="only write the table of what is there")
    parser.add_argument("--small", action="store_true", help="12 cases, 3 seconds, one seed: whether it runs")
    options = parser.parse_args()
    seconds, seeds, tried = options.seconds, options.seeds, SEARCH
    found = list(read_source(options.data, read_job(JOBS / "hippocampus_fedavg").plan.task))
    if options.small:
        found, seconds, seeds = found[:12], 3.0, seeds[:1]
        tried = (replace(SEARCH[-1], mirrored=True), SEARCH[-1])
    if not options.table:
        cases = Datalist(**split_by_patient(found, {"validation": 0.0, "test": HELD_OUT}, 0))
        best = search(cases, tried, options.search_seconds or seconds / 2, options.out)
        recipes = {RECIPE: Recipe(), SEARCHED: best}
        for seed in seeds:
            # In turns, so that what the machine does besides falls on all arms.
            for arm in options.arms[:: -1 if seed % 2 else 1]:
                run(arm, recipes.get(arm), cases, seed, seconds, options.out)
    write_table(options.out, table(load(options.out)))


if __name__ == "__main__":
    main()

"""All aggregation rules on the real hippocampus images, benign and under attack.

    python benchmarks/aggregation_rules.py --data ../shared/data/Task04_Hippocampus --out runs/benchmark-rules

Five sites of 100, 50, 25, 15 and 10 volumes with simulated scanner shift, a fifth of each held out. Parts:

- ``rules``: every rule, three seeds, a small network at 2 mm;
- ``attack``: the robust rules and FedAvg, the 25-volume site sending its update times -10, three seeds;
- ``attacks``: the same with other bad updates, one seed;
- ``full``: five rules with the job's own network and settings at 1 mm, in 6 rounds;
- ``flare``: FedCostWAvg as ``full``, through FLARE's simulator, to be compared with the same run in one process.

``--rules`` names those that ``rules`` runs. All but the last run as a loop in one process, which a test proves equal
to the simulator. Every finished run is kept in OUT/runs as JSON, so that an interrupted benchmark goes on where it
was; ``--table`` only writes the tables.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import nibabel as nib
import numpy as np
from kept_runs import keep, kept, load, run_all, spread

from fedseg.data.datalist import Case, Datalist, read_datalist, write_datalist
from fedseg.data.intake.sources import read_source
from fedseg.data.partition import partition_by_sizes
from fedseg.data.site_folders import write_sites
from fedseg.evaluation.fets.clocks import OWN_PROFILES, simulated_seconds
from fedseg.evaluation.fets.convergence import convergence_score, validation_dice
from fedseg.jobs.job import Job, read_job
from fedseg.randomness import generator
from fedseg.simulation.in_process import InProcessFederation

matplotlib.use("Agg")
import matplotlib.pyplot as plt

JOB = Path(__file__).parents[1] / "jobs" / "hippocampus_fedavg"
SIZES = {"site-1": 100, "site-2": 50, "site-3": 25, "site-4": 15, "site-5": 10}
ATTACKER = "site-3"
SHIFT = 0.5
SMALL = {
    "workflow.num_rounds": 15,
    "task": {"name": "hippocampus", "spacing": [2.0, 2.0, 2.0], "patch_size": [24, 32, 24]},
    "network": {"name": "residual_unet", "channels": [8, 16, 32], "strides": [2, 2], "res_units": 1},
    "training.local_epochs": 1,
    "training.learning_rate": 0.02,
    "training.cache": "disk",
}
LARGE = {"training.cache": "disk", "workflow.num_rounds": 6}
SGD = {
    "training.optimizer": "sgd",
    "training.momentum": 0.0,
    "training.learning_rate": 0.2,
    "training.schedule": "constant",
    "training.gradient_clip": 10.0,
}


def rule(path: str, **arguments: object) -> dict:
    """Settings that put an aggregation rule into the job."""
    return {"workflow.aggregator": {"path": f"fedseg.aggregators.{path}", "args": arguments}}


def part(name: str, path: str, **arguments: object) -> dict:
    """Settings that add a server optimizer, a selection or shared arrays to the job."""
    return {f"workflow.{name}": {"path": f"fedseg.{path}", "args": arguments}}


def hook(path: str, **arguments: object) -> dict:
    """Settings that add a local objective to the job; ``hook`` is read by ``make_job``."""
    return {"hook": {"id": "objective", "path": f"fedseg.training.{path}", "args": arguments}}


AFTER = {"training.validate_after": True}
RULES: dict[str, dict] = {
    "FedAvg": rule("fedavg.FedAvg"),
    "uniform": rule("fedavg.FedAvg", weight_by="uniform"),
    "half FedAvg, half uniform": rule("fedavg.FedAvg", uniform_share=0.5),
    "FedCostWAvg": rule("fedcostwavg.FedCostWAvg", alpha=0.5, cost="train_loss"),
    "FedCostWAvg (val_loss)": {**rule("fedcostwavg.FedCostWAvg", alpha=0.5, cost="val_loss"), **AFTER},
    "FedPIDAvg": rule("fedpidavg.FedPIDAvg"),
    "FedPIDAvg, Poisson selection": {
        **rule("fedpidavg.FedPIDAvg"),
        **part("selection", "workflows.selection.PoissonBySize"),
    },
    "FedPIDAvg, fewer iterations": {
        **rule("fedpidavg.FedPIDAvg"),
        **part("selection", "workflows.selection.PoissonBySize", fewer="iterations"),
    },
    "FedPIDAvg (abs)": rule("fedpidavg.FedPIDAvg", negative_drop="abs"),
    "FedPID": rule("fedpidavg.FedPID"),
    "FedPOD": {**rule("fedpod.FedPOD"), **AFTER},
    "SimAgg": rule("similarity.SimAgg"),
    "RegAgg": rule("similarity.RegAgg"),
    "RegAgg (sum)": rule("similarity.RegAgg", distance="sum"),
    "FedFocus (our reading)": rule("loss_focused.LossFocused"),
    "FedMix weighting": rule("fedmix.FedMix"),
    "staleness, 3 random sites": {
        **rule("staleness.Staleness"),
        **part("selection", "workflows.selection.RandomSites", k=3),
    },
    "FedAvg, 3 random sites": {**rule("fedavg.FedAvg"), **part("selection", "workflows.selection.RandomSites", k=3)},
    "FedAvg unbiased, 3 random sites": {
        **rule("fedavg.FedAvg", unbiased=True),
        **part("selection", "workflows.selection.RandomSites", k=3),
    },
    "uniform, 3 sites by size": {
        **rule("fedavg.FedAvg", weight_by="uniform"),
        **part("selection", "workflows.selection.SitesBySize", k=3),
    },
    "FedAvg, 3 largest sites": {**rule("fedavg.FedAvg"), **part("selection", "workflows.selection.LargestSites", k=3)},
    "DOS": rule("dos.DOS"),
    "DOS (mean temperature)": rule("dos.DOS", temperature="mean"),
    "coordinate median": rule("robust.CoordinateMedian"),
    "trimmed mean": rule("robust.TrimmedMean", trim=0.2),
    "geometric median": rule("robust.GeometricMedian"),
    "geometric median (samples)": rule("robust.GeometricMedian", weight_by="samples"),
    "Krum": rule("krum.Krum", byzantine=1, select=1),
    "multi-Krum": rule("krum.Krum", byzantine=1, select=3),
    "norm clipping": rule("norm_clipping.NormClipped"),
    "FedAvgM": part("server_optimizer", "aggregators.server_optimizers.FedAvgM", learning_rate=1.0, momentum=0.9),
    "FedAvgM (default)": part("server_optimizer", "aggregators.server_optimizers.FedAvgM"),
    "FedAvgM (0.2)": part("server_optimizer", "aggregators.server_optimizers.FedAvgM", learning_rate=0.2, momentum=0.9),
    "FedAdam (0.05)": part("server_optimizer", "aggregators.server_optimizers.FedAdam", learning_rate=0.05),
    "FedAdam": part("server_optimizer", "aggregators.server_optimizers.FedAdam", learning_rate=0.01),
    "FedAdam (0.001)": part("server_optimizer", "aggregators.server_optimizers.FedAdam", learning_rate=0.001),
    "FedAdam (0.003)": part("server_optimizer", "aggregators.server_optimizers.FedAdam", learning_rate=0.003),
    "FedAdam (0.01, tau 0.001)": part(
        "server_optimizer", "aggregators.server_optimizers.FedAdam", learning_rate=0.01, tau=1e-3
    ),
    "FedAdam (0.03, tau 0.03)": part(
        "server_optimizer", "aggregators.server_optimizers.FedAdam", learning_rate=0.03, tau=0.03
    ),
    "FedYogi": part("server_optimizer", "aggregators.server_optimizers.FedYogi", learning_rate=0.01),
    "FedAdagrad": part("server_optimizer", "aggregators.server_optimizers.FedAdagrad", learning_rate=0.03),
    "FedProx": hook("fedprox.FedProx", mu=0.01),
    "MOON": hook("moon.MOON"),
    "FedMax": hook("fedmax.FedMax"),
    "class weights": hook("class_weights.ClassWeights"),
    "FedAvg (SGD)": SGD,
    "FedNova (SGD)": {**rule("fednova.FedNova", momentum=0.0), **SGD},
    "SCAFFOLD (SGD)": {
        **rule("fedavg.FedAvg", weight_by="uniform"),
        **SGD,
        **hook("scaffold.Scaffold"),
        **part("shared_arrays", "aggregators.control_variates.ControlVariates"),
    },
}
ROBUST = (
    "FedAvg", "DOS", "coordinate median", "trimmed mean", "geometric median", "geometric median (samples)",
    "multi-Krum", "norm clipping", "Krum", "DOS (mean temperature)",
)  # fmt: skip
ATTACKS = ("times -10", "scaled", "sign-flipped", "random", "swapped labels")
DRAWN = (
    "FedAvg", "half FedAvg, half uniform", "FedCostWAvg", "FedPIDAvg", "FedPIDAvg, Poisson selection", "FedPOD",
    "SimAgg", "RegAgg", "DOS", "DOS (mean temperature)", "geometric median", "Krum",
)  # fmt: skip
FULL = ("FedAvg", "half FedAvg, half uniform", "FedCostWAvg", "FedPIDAvg", "DOS")


def make_job(name: str, seed: int, full: bool) -> Job:
    """The job of a rule."""
    job = read_job(JOB)
    settings = dict(RULES[name])
    added = settings.pop("hook", None)
    if added is not None:
        job.client["components"].append(added)
        job.client["executors"][0]["executor"]["args"]["hooks"] = [added["id"]]
    for key, value in {**(LARGE if full else SMALL), "seed": seed, **settings}.items():
        job.set(key, value)
    return job


class Attack:
    """What the attacking site does to its update on the way."""

    def __init__(self, kind: str | None, seed: int) -> None:
        self.kind, self.seed = kind, seed

    def __call__(self, site: str, number: int, update: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        factors = {"times -10": -10.0, "scaled": 10.0, "sign-flipped": -1.0}
        if site != ATTACKER or self.kind in (None, "swapped labels"):
            return update
        if self.kind == "random":
            draw = generator(self.seed, "attack", number)
            return {name: draw.normal(0, 1, array.shape).astype(np.float32) for name, array in update.items()}
        return {name: array * np.float32(factors[self.kind]) for name, array in update.items()}


def run(name: str, attack: str | None, seed: int, full: bool, out: Path) -> Path:
    """One run of one rule; its result is kept in ``out/runs``."""
    path = kept(out, name, attack or "benign", seed, "full" if full else "small")
    if path.exists():
        return path
    lists = {folder.name: read_datalist(folder) for folder in sorted((out / "sites").iterdir())}
    if attack == "swapped labels":
        lists[ATTACKER] = read_datalist(out / "swapped")
    start = time.time()
    federation = InProcessFederation(
        make_job(name, seed, full), lists, cache=out / "cache", tamper=Attack(attack, seed)
    )
    error = None
    try:
        federation.run()
    except Exception as failure:
        error = f"{type(failure).__name__}: {failure}"
    result = {
        "rule": name, "attack": attack, "seed": seed, "full": full, "seconds": time.time() - start, "error": error,
        "rounds": federation.rounds, "events": federation.events, "final": federation.evaluate(distances=full),
    }  # fmt: skip
    return keep(path, result)


def prepare(data: Path, out: Path) -> None:
    """Site folders, and the attacker's datalist with swapped training labels."""
    job = read_job(JOB)
    if not (out / "sites").exists():
        parts = partition_by_sizes(read_source(data, job.plan.task), SIZES, seed=0)
        notes: dict[str, dict[str, str]] = {}
        write_sites(parts, out / "sites", job.plan.task, {"validation": 0.2, "test": 0.0}, 0, SHIFT, notes)
    if not (out / "swapped").exists():
        datalist = read_datalist(out / "sites" / ATTACKER)
        folder = out / "swapped.new"
        folder.mkdir(exist_ok=True)
        training = []
        for number, case in enumerate(datalist.training):
            image = nib.load(case.label)
            swapped = np.array([0, 2, 1], np.uint8)[np.asarray(image.dataobj).astype(int)]
            nib.save(nib.Nifti1Image(swapped, image.affine), folder / f"label-{number}.nii.gz")
            training.append(Case(case.images, (out / "swapped" / f"label-{number}.nii.gz").resolve(), case.patient))
        folder.rename(out / "swapped")
        write_datalist(Datalist(tuple(training), datalist.validation), out / "swapped" / "datalist.json")


def through_flare(out: Path) -> Path:
    """FedCostWAvg at full size through FLARE's simulator, every site a process."""
    path = out / "flare" / "report" / "summary.json"
    if not path.exists():
        job = JOB.parent / "hippocampus_fedcostwavg"
        command = [sys.executable, "-m", "fedseg", "simulate", str(job), "--data", str(out / "sites"), "--seed", "0"]
        command += ["--rounds", str(LARGE["workflow.num_rounds"]), "--out", str(out / "flare"), "--overwrite"]
        subprocess.run(command, check=True)
    return path


def work(parts: list[str], seeds: list[int], rules: list[str]) -> Iterator[tuple[str, str | None, int, bool]]:
    """Every run of the asked parts, in their order."""
    for part in parts:
        if part == "rules":
            yield from ((name, None, seed, False) for seed in seeds for name in rules)
        elif part == "attack":
            yield from ((name, ATTACKS[0], seed, False) for seed in seeds for name in ROBUST)
        elif part == "attacks":
            yield from ((name, attack, seeds[0], False) for name in ROBUST for attack in ATTACKS[1:])
        elif part == "full":
            yield from ((name, None, seeds[0], True) for name in FULL)


# ---------------------------------------------------------------------- tables


def clock(result: dict) -> list[float]:
    """Seconds of each round by the simulated clock of the FeTS challenge, with our table of sites."""
    validation = {site: part["cases"] for site, part in result["final"]["sites"].items()}
    summary = {"sites": list(SIZES), "rounds": result["rounds"], "training": {"local_epochs": 1}}
    return simulated_seconds(summary, OWN_PROFILES, validation)


def convergence(result: dict, horizon: float) -> float:
    """The FeTS convergence score up to the time that the slowest rule takes."""
    return convergence_score(validation_dice({"rounds": result["rounds"]}), clock(result), horizon)


def write_tables(out: Path) -> None:
    """``table.md``, ``table.json`` and the figures, from all finished runs."""
    results = load(out)
    small = [r for r in results if not r["full"]]
    benign = {name: [r for r in small if r["rule"] == name and not r["attack"]] for name in RULES}
    horizon = max(sum(clock(r)) for runs in benign.values() for r in runs)
    lines = [
        "## All rules, benign",
        "",
        f"Pooled Dice over {sum(SIZES.values()) // 5} held-out volumes: mean over seeds (lowest to highest seed).",
        "Difference to FedAvg: mean of the differences at equal seeds, with their range.",
    ]
    lines += ["", "| rule | pooled Dice | minus FedAvg | " + " | ".join(SIZES) + " | convergence score | failed |"]
    lines.append("|---" * (len(SIZES) + 5) + "|")
    reference = {r["seed"]: r["final"]["pooled_dice"] for r in benign["FedAvg"]}
    for name, runs in benign.items():
        if not runs:
            continue
        pooled = [r["final"]["pooled_dice"] for r in runs]
        gaps = [r["final"]["pooled_dice"] - reference[r["seed"]] for r in runs if r["seed"] in reference]
        gap = f"{statistics.mean(gaps):+.4f} ({min(gaps):+.4f} to {max(gaps):+.4f})" if gaps else "n/a"
        sites = [statistics.mean(r["final"]["sites"][s]["dice"]["mean"] for r in runs) for s in SIZES]
        score = statistics.mean(convergence(r, horizon) for r in runs)
        failed = sum(1 for r in runs if r["error"])
        lines.append(
            f"| {name} | {spread(pooled)} | {gap} | "
            + " | ".join(f"{d:.3f}" for d in sites)
            + f" | {score:.4f} | {failed} |"
        )
    lines += [
        "",
        f"## {ATTACKER} attacks",
        "",
        "Pooled Dice, and in brackets its ratio to the clean FedAvg of the same seed.",
        "",
    ]
    lines += ["| rule | benign | " + " | ".join(ATTACKS) + " |", "|---" * (len(ATTACKS) + 2) + "|"]
    for name in ROBUST:
        cells = []
        for attack in (None, *ATTACKS):
            runs = [r for r in small if r["rule"] == name and r["attack"] == attack]
            ratios = [r["final"]["pooled_dice"] / reference[r["seed"]] for r in runs if r["seed"] in reference]
            dice = [r["final"]["pooled_dice"] for r in runs]
            cells.append(f"{statistics.mean(dice):.3f} ({statistics.mean(ratios):.3f})" if ratios else "n/a")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    full = [r for r in results if r["full"]]
    if full:
        lines += ["", "## Full size (1 mm, the job's network, 6 rounds of 2 epochs)", ""]
        lines += ["| rule | pooled Dice | " + " | ".join(SIZES) + " | last weights |", "|---" * (len(SIZES) + 3) + "|"]
        for r in sorted(full, key=lambda r: FULL.index(r["rule"])):
            sites = [f"{r['final']['sites'][s]['dice']['mean']:.3f}" for s in SIZES]
            weights = ", ".join(f"{w:.3f}" for w in r["rounds"][-1]["weights"].values())
            lines.append(f"| {r['rule']} | {r['final']['pooled_dice']:.4f} | " + " | ".join(sites) + f" | {weights} |")
    control = out / "flare" / "report" / "summary.json"
    same = [r for r in full if r["rule"] == "FedCostWAvg"]
    if control.exists() and same:
        flare = json.loads(control.read_text())
        largest = max(
            abs(a["weights"][s] - b["weights"][s])
            for a, b in zip(flare["rounds"], same[0]["rounds"], strict=True)
            for s in SIZES
        )
        lines += ["", f"FedCostWAvg through FLARE: pooled Dice {flare['final']['pooled_dice']:.6f}, in one process "]
        lines[-1] += f"{same[0]['final']['pooled_dice']:.6f}; largest difference of a weight {largest:.1e}."
    (out / "table.md").write_text("\n".join(lines) + "\n")
    (out / "table.json").write_text(json.dumps(results))
    print("\n".join(lines))
    draw_weights(benign, out / "weights.png")


def draw_weights(benign: dict[str, list[dict]], path: Path) -> None:
    """The sites' weights over the rounds, first seed, for the rules of ``DRAWN``."""
    shown = {name: benign[name][0] for name in DRAWN if benign[name]}
    figure, axes = plt.subplots(3, 4, figsize=(12, 6.5), sharex=True, sharey=True)
    for axis, (name, result) in zip(axes.flat, shown.items(), strict=False):
        for site, size in SIZES.items():
            weights = [entry["weights"].get(site, np.nan) for entry in result["rounds"]]
            axis.plot(weights, label=f"{site} ({size * 4 // 5} cases)", marker=".")
        axis.set_title(name, fontsize=9)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="upper center", ncol=len(SIZES), fontsize=8)
    figure.supxlabel("round", fontsize=9)
    figure.supylabel("weight of a site", fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 0.95))
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of Task04_Hippocampus")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", default=["rules", "attack", "attacks", "full", "flare"])
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES), metavar="RULE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2, help="runs at a time")
    parser.add_argument("--table", action="store_true", help="only write the tables of what is there")
    options = parser.parse_args()
    if not options.table:
        prepare(options.data, options.out)
        run_all(
            run, ((*item, options.out) for item in work(options.parts, options.seeds, options.rules)), options.workers
        )
        if "flare" in options.parts:
            through_flare(options.out)
    write_tables(options.out)


if __name__ == "__main__":
    main()

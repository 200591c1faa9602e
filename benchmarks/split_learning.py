"""Split learning against federated averaging and central training, at three levels of heterogeneity.

    python benchmarks/split_learning.py --data ../shared/data/Task04_Hippocampus --out runs/benchmark-split

180 real hippocampus volumes at four sites, a fifth of each held out:

- ``even``: sites of one size, images as they are;
- ``scanners``: the same cases, each site with a simulated scanner of its own (strength 1);
- ``mixed``: scanners, sites of 100, 45, 22 and 13 volumes, and one site whose training labels show the anterior part
  alone (its held-out volumes show both).

A small network at 2 mm, three seeds. Every method sees the same number of samples, 15 times the number of training
volumes; with the same optimizer, learning rate and schedule. ``central`` has all volumes in one place and takes the
batches of a site; ``central, batch of all`` the batches that SplitAVG concatenates. The loop in one process is the one
that the jobs equal to the last bit (tests). Parts:

- ``methods``: every method, level and seed;
- ``rates``: the learning rates among which that of ``methods`` was chosen, on a seed that is not used there;
- ``flare``: jobs at full size through FLARE's simulator, at the first and the last level, and central training;
- ``speed``: iterations of ``hippocampus_splitavg`` over FLARE against the same computation as a plain loop on the same
  processors, in turns; only on a machine that does nothing else.

Every finished run is kept in OUT/runs, so that an interrupted benchmark goes on where it was; ``--table`` only writes
table and figure.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import nibabel as nib
import numpy as np
from kept_runs import keep, kept, load, run_all, spread

from fedseg.data.datalist import Datalist, read_datalist, write_datalist
from fedseg.data.intake.sources import read_source
from fedseg.data.partition import partition_by_sizes
from fedseg.data.site_folders import write_sites
from fedseg.jobs.job import Job, read_job
from fedseg.simulation.in_process import InProcessFederation, score_sites
from fedseg.training.split.halves import plan_cost
from fedseg.training.trainer import SiteTrainer, TrainerSetup

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from split_bytes import step_bytes
from split_in_process import CYCLIC, POOLED, SPLIT, SplitInProcess

matplotlib.use("Agg")
import matplotlib.pyplot as plt

JOBS = Path(__file__).parents[1] / "jobs"
EVEN = {f"site-{number}": 45 for number in range(1, 5)}
MIXED = {"site-1": 100, "site-2": 45, "site-3": 22, "site-4": 13}
ONE_STRUCTURE, MISSING_CLASS = "site-2", 2
LEVELS: dict[str, tuple[dict[str, int], float]] = {"even": (EVEN, 0.0), "scanners": (EVEN, 1.0), "mixed": (MIXED, 1.0)}
PASSES, BATCH = 15, 2
SMALL = {
    "task": {"name": "hippocampus", "spacing": [2.0, 2.0, 2.0], "patch_size": [24, 32, 24]},
    "network": {"name": "residual_unet", "channels": [8, 16, 32], "strides": [2, 2], "res_units": 1},
    "training": {
        "local_epochs": 1, "batch_size": BATCH, "optimizer": "adamw", "learning_rate": 0.01, "schedule": "one_cycle",
        "augmentation": "full", "threads": 1, "cache": "disk",
    },
}  # fmt: skip
RATES = (0.002, 0.005, 0.01, 0.02)
RATE_SEED = 7

Method = tuple[str, dict[str, Any]]
CENTRAL, CENTRAL_LARGE, FEDAVG, SPLITAVG = "central", "central, batch of all", "FedAvg", "SplitAVG"
METHODS: dict[str, Method] = {
    CENTRAL: ("merged", {}),
    CENTRAL_LARGE: ("merged", {"training.batch_size": BATCH * len(EVEN)}),
    FEDAVG: ("federated", {}),
    "FedProx": ("federated", {"hook": ("fedprox.FedProx", {"mu": 0.01})}),
    "FedBN (private norm layers)": ("federated", {"filter": ("layers.PrivateLayers", {"kind": "norm"})}),
    "cyclic weight transfer": (CYCLIC, {}),
    "SplitNN": (SPLIT, {"split.site_update": "handed_on"}),
    SPLITAVG: (SPLIT, {}),
    "SplitAVG, averaged": (SPLIT, {"split.site_update": "averaged"}),
    "SplitAVG, summed": (SPLIT, {"split.site_update": "summed"}),
    "SplitAVG, mean gradient": (SPLIT, {"split.cut_gradient": "mean"}),
    "SplitAVG, Dice of each sample": (SPLIT, {"training.batch_dice": False}),
    "SplitAVG, private labels": (SPLIT, {"split.labels": "private", "training.batch_dice": False}),
    "SplitAVG, cut behind the bottom": (SPLIT, {"split.cut": "bottom"}),
}
COMPARED_RATES = (CENTRAL, FEDAVG, "SplitNN", SPLITAVG)


def make_job(method: str, seed: int, rounds: int) -> Job:
    """The job of a method, with the small network."""
    kind, settings = METHODS[method]
    settings = dict(settings)
    job = read_job(JOBS / ("hippocampus_splitavg" if kind == SPLIT else "hippocampus_fedavg"))
    hook, private = settings.pop("hook", None), settings.pop("filter", None)
    if hook:
        job.client["components"].append({"id": "hook", "path": f"fedseg.training.{hook[0]}", "args": hook[1]})
        job.client["executors"][0]["executor"]["args"]["hooks"] = ["hook"]
    if private:
        chain = [{"path": f"fedseg.filters.{private[0]}", "args": private[1]}]
        restore = [{"path": "fedseg.filters.restore.RestoreUpdate", "args": {}}]
        job.client["task_result_filters"] = [{"tasks": ["train"], "direction": "out", "filters": chain}]
        job.server["task_result_filters"] = [{"tasks": ["train"], "direction": "in", "filters": restore}]
    for key, value in {**SMALL, "seed": seed, "workflow.num_rounds": rounds, **settings}.items():
        job.set(key, value)
    return job


def read_sites(out: Path, level: str) -> dict[str, Datalist]:
    """The sites of a level."""
    return {folder.name: read_datalist(folder) for folder in sorted((out / "sites" / level).iterdir())}


def merged(sites: dict[str, Datalist]) -> dict[str, Datalist]:
    """All training cases at one place."""
    return {"all": Datalist(tuple(case for site in sorted(sites) for case in sites[site].training))}


def run(level: str, method: str, seed: int, out: Path, rate: float | None = None) -> Path:
    """One run; its result is kept."""
    path = kept(out, level, method, seed, *([] if rate is None else [rate]))
    if path.exists():
        return path
    sites, kind = read_sites(out, level), METHODS[method][0]
    job = make_job(method, seed, PASSES)
    if rate is not None:
        job.set("training.learning_rate", rate)
    plan, cases = job.check(), sum(len(datalist.training) for datalist in sites.values())
    began = time.perf_counter()
    if kind == "federated":
        federation = InProcessFederation(job, sites, cache=out / "cache")
        federation.run()
        seconds = time.perf_counter() - began
        steps = [values["num_steps"] for entry in federation.rounds for values in entry["sites"].values()]
        traffic = [
            values["bytes_up"] + values["bytes_down"]
            for entry in federation.rounds for values in entry["sites"].values()
        ]  # fmt: skip
        facts = {"iterations": sum(steps), "samples": PASSES * cases, "bytes": sum(traffic) / len(sites)}
        final = federation.evaluate(distances=False)
        assert not federation.events, federation.events
    else:
        loop = SplitInProcess(plan, merged(sites) if kind == "merged" else sites, _loop(kind), out / "cache")
        # All sites together: as many iterations as see the samples of a pass over all cases.
        steps_a_round = round(cases / (BATCH * len(sites))) if kind == SPLIT else None
        for _ in range(PASSES):
            loop.run_round(PASSES, steps_a_round)
        seconds = time.perf_counter() - began
        size = statistics.mean([sum(both) for both in loop.bytes.values()]) if loop.bytes else 0.0
        if kind == CYCLIC or (plan.split is not None and plan.split.in_turn):
            # The part, or the network, goes to every site and comes back once a round.
            size += _handed_on(loop, kind)
        facts = {
            "iterations": sum(entry["iterations"] for entry in loop.rounds),
            "samples": sum(entry["samples"] for entry in loop.rounds),
            "bytes": size,
        }
        final = evaluate(loop, sites, out) if kind == "merged" else loop.evaluate()
    result = {
        "level": level, "method": method, "seed": seed, "rate": rate, "seconds": seconds, **facts, "final": final,
    }  # fmt: skip
    return keep(path, result)


def _loop(kind: str) -> str:
    return POOLED if kind == "merged" else kind


def _handed_on(loop: SplitInProcess, kind: str) -> float:
    site = next(iter(loop.trainers))
    arrays = loop.weights(site) if kind == CYCLIC else loop.site_part(site)
    return 2.0 * PASSES * sum(value.nbytes for value in arrays.values())


def evaluate(loop: SplitInProcess, sites: dict[str, Datalist], out: Path) -> dict[str, Any]:
    """The scores of the model of central training at every site."""
    weights = loop.weights("all")
    trainers = {
        site: SiteTrainer(loop.plan, site, sites[site], TrainerSetup(cache=out / "cache")) for site in sorted(sites)
    }
    return score_sites(trainers, lambda site: weights, PASSES - 1, False)


# ---------------------------------------------------------------------- data


def prepare(data: Path, out: Path) -> None:
    """The sites of every level."""
    task = read_job(JOBS / "hippocampus_fedavg").plan.task
    for level, (sizes, shift) in LEVELS.items():
        folder, made = out / "sites" / level, out / f"{level}.new"
        if folder.exists():
            continue
        shutil.rmtree(made, ignore_errors=True)
        parts = partition_by_sizes(read_source(data, task), sizes, seed=0)
        write_sites(parts, made, task, {"validation": 0.2, "test": 0.0}, 0, shift)
        if level == "mixed":
            forget_class(made / ONE_STRUCTURE)
        folder.parent.mkdir(parents=True, exist_ok=True)
        made.rename(folder)


def forget_class(site: Path) -> None:
    """Training labels without one structure, as of a hospital that never draws it; held-out ones stay as they are."""
    datalist, labels = read_datalist(site), site / "labels"
    labels.mkdir()
    cases = []
    for case in datalist.training:
        assert case.label is not None
        image: Any = nib.load(case.label)
        values = np.asanyarray(image.dataobj).copy()
        values[values == MISSING_CLASS] = 0
        target = labels / case.label.name
        nib.save(nib.Nifti1Image(values, image.affine, image.header), target)
        cases.append(replace(case, label=target))
    write_datalist(replace(datalist, training=tuple(cases)), site / "datalist.json")


# ---------------------------------------------------------------------- through FLARE


def full_job(name: str, level: str, passes: int) -> Job:
    """A job at full size for about ``passes`` times the samples of all sites."""
    job, sizes = read_job(JOBS / name), LEVELS[level][0]
    cases = [size - round(size / 5) for size in sizes.values()]
    a_round = sum(cases) if name == "hippocampus_fedavg" else len(cases) * max(cases)
    job.set("workflow.num_rounds", round(passes * sum(cases) / a_round))
    job.set("training.local_epochs", 1)
    return job


def simulate(job: Job, out: Path, level: str, *name: Any) -> dict[str, Any]:
    """A run of the job through FLARE's simulator; its summary, kept with the run."""
    run_folder = out / "flare" / "-".join(map(str, (job.name, level, *name)))
    path = run_folder / "report" / "summary.json"
    if not path.exists():
        written = run_folder.with_suffix(".job")
        shutil.rmtree(written, ignore_errors=True)
        command = [sys.executable, "-m", "fedseg", "simulate", str(job.write(written))]
        options = ["--data", str(out / "sites" / level), "--out", str(run_folder), "--overwrite"]
        subprocess.run([*command, *options, *(["--no-probe"] if job.plan.split else [])], check=True)
    return json.loads(path.read_text())


def through_flare(out: Path, passes: int) -> None:
    """Jobs at full size at the first and the last level, and central training on as many samples."""
    for level in ("even", "mixed"):
        sites = read_sites(out, level)
        cases = sum(len(datalist.training) for datalist in sites.values())
        path = kept(out / "flare", level, "central")
        if not path.exists():
            job = full_job("hippocampus_fedavg", level, passes)
            job.set("training.threads", 2)
            job.set("training.cache", "disk")
            loop = SplitInProcess(job.check(), merged(sites), POOLED, out / "cache")
            for _ in range(passes):
                loop.run_round(passes)
            final, samples = evaluate(loop, sites, out), sum(entry["samples"] for entry in loop.rounds)
            keep_full(path, level, "central training", samples, final)
        for name in ("hippocampus_splitavg", "hippocampus_fedavg"):
            path = kept(out / "flare", level, name)
            if path.exists():
                continue
            job = full_job(name, level, passes)
            summary = simulate(job, out, level)
            rounds = int(job.workflow["num_rounds"])
            samples = rounds * cases
            if job.plan.split is not None:
                assert not summary["events"], summary["events"]
                samples = sum(entry["iterations"] for entry in summary["rounds"]) * BATCH * len(sites)
            keep_full(path, level, name, samples, summary["final"])


def keep_full(path: Path, level: str, name: str, samples: int, final: dict[str, Any]) -> None:
    """Keep the result of a run at full size."""
    path.parent.parent.mkdir(parents=True, exist_ok=True)
    keep(path, {"level": level, "run": name, "samples": samples, "final": final})


def measure_speed(out: Path, repetitions: int) -> None:
    """The second of two rounds, over FLARE and as a loop, in turns; the first one reads and prepares the images."""
    for number in range(repetitions):
        path = kept(out / "speed", number)
        if path.exists():
            continue
        job = read_job(JOBS / "hippocampus_splitavg")
        job.set("workflow.num_rounds", 2)
        last = simulate(job, out, "even", "speed", number)["rounds"][-1]
        # The loop has both processors to itself, as the processes of the simulator have together.
        job.set("training.threads", 2)
        loop = SplitInProcess(job.check(), read_sites(out, "even"), SPLIT)
        for _ in range(2):
            loop.run_round(2)
        plain = loop.rounds[-1]["seconds"] / loop.rounds[-1]["iterations"]
        path.parent.parent.mkdir(parents=True, exist_ok=True)
        foretold = step_bytes(plan_cost(job.plan, job.plan.split), job.plan.split, BATCH)
        keep(
            path,
            {
                "flare": last["seconds_per_iteration"],
                "plain": plain,
                "bytes": {
                    site: [up / last["iterations"] / foretold.up, down / last["iterations"] / foretold.down]
                    for site, (up, down) in last["bytes_in_iterations"].items()
                },
            },
        )


# ---------------------------------------------------------------------- tables


def as_drawn(level: str, final: dict[str, Any]) -> float:
    """Mean over sites of the Dice of those structures that the site's training labels show."""
    found = []
    for site, scores in final["sites"].items():
        dice = scores["dice"]
        found.append(dice["anterior"] if level == "mixed" and site == ONE_STRUCTURE else dice["mean"])
    return statistics.mean(found)


def by_seed(results: list[dict[str, Any]], level: str, method: str, drawn: bool = True) -> dict[int, float]:
    """Mean Dice by seed: of what the sites draw, or of both structures at every site."""
    return {
        r["seed"]: as_drawn(level, r["final"]) if drawn else r["final"]["mean_dice"]
        for r in results if r["level"] == level and r["method"] == method and r["rate"] is None
    }  # fmt: skip


def write_tables(out: Path) -> None:
    """``table.md`` and ``split_learning.png`` from all finished runs."""
    results = load(out)
    lines = [
        "Mean Dice over the four sites' held-out volumes, every site with its own model: mean over seeds (lowest to",
        f"highest seed). {PASSES} passes over {sum(EVEN.values())} volumes, a fifth held out. At the level mixed",
        f"of {ONE_STRUCTURE} the structure that its training labels show; in the last column both.",
        "",
        f"| method | {' | '.join(LEVELS)} | mixed, both structures |",
        "|---" * (len(LEVELS) + 2) + "|",
    ]
    for method in METHODS:
        found = [by_seed(results, level, method) for level in LEVELS]
        found.append(by_seed(results, "mixed", method, drawn=False))
        if any(found):
            row = [spread(list(values.values())) if values else "" for values in found]
            lines.append(f"| {method} | {' | '.join(row)} |")
    lines += _against(results) + _costs(results) + _by_site(results) + _rates(results)
    lines += _full_size(out) + _speed(out)
    (out / "table.md").write_text("\n".join(lines) + "\n")
    draw(results, out / "split_learning.png")
    print("\n".join(lines))


def _against(results: list[dict[str, Any]]) -> list[str]:
    """SplitAVG over central training and minus averaging, seed by seed."""
    lines = ["", "## SplitAVG, each seed against the same seed", ""]
    lines += [f"| against | {' | '.join(LEVELS)} |", "|---" * (len(LEVELS) + 1) + "|"]
    for other, sign in ((CENTRAL, "over"), (CENTRAL_LARGE, "over"), (FEDAVG, "minus")):
        row = []
        for level in LEVELS:
            mine, its = by_seed(results, level, SPLITAVG), by_seed(results, level, other)
            both = sorted(set(mine) & set(its))
            values = [mine[s] / its[s] if sign == "over" else mine[s] - its[s] for s in both]
            row.append(spread(values) if values else "")
        lines.append(f"| {sign} {other} | {' | '.join(row)} |")
    return lines


def _costs(results: list[dict[str, Any]]) -> list[str]:
    """What a site sends and receives in a whole run, and how long an iteration takes in one process."""
    lines = [
        "",
        "## costs",
        "",
        "| method | MB a site | iterations | samples in one | seconds for one |",
        "|---" * 5 + "|",
    ]
    for method in METHODS:
        runs = [r for r in results if r["method"] == method and r["rate"] is None]
        if runs:
            row = [
                f"{statistics.mean(r['bytes'] for r in runs) / 1e6:.1f}",
                f"{statistics.median(r['iterations'] for r in runs):.0f}",
                f"{statistics.median(r['samples'] / r['iterations'] for r in runs):.0f}",
                f"{statistics.median(r['seconds'] / r['iterations'] for r in runs):.3f}",
            ]
            lines.append(f"| {method} | {' | '.join(row)} |")
    return lines


def _by_site(results: list[dict[str, Any]]) -> list[str]:
    """Means over seeds at the level mixed."""
    regions = ("anterior", "posterior")
    header = [f"{site}, {region}" for site in MIXED for region in regions]
    lines = ["", "## level mixed, by site", "", f"| method | {' | '.join(header)} |", "|---" * (len(header) + 1) + "|"]
    for method in METHODS:
        runs = [r for r in results if r["level"] == "mixed" and r["method"] == method and r["rate"] is None]
        if runs:
            sites = [[r["final"]["sites"][site]["dice"] for r in runs] for site in MIXED]
            row = [f"{statistics.mean(d[region] for d in dice):.3f}" for dice in sites for region in regions]
            lines.append(f"| {method} | {' | '.join(row)} |")
    return lines


def _rates(results: list[dict[str, Any]]) -> list[str]:
    lines = ["", f"## learning rates, level even, seed {RATE_SEED}", ""]
    lines += [f"| method | {' | '.join(f'{rate:g}' for rate in RATES)} |", "|---" * (len(RATES) + 1) + "|"]
    for method in COMPARED_RATES:
        found = {r["rate"]: r["final"]["mean_dice"] for r in results if r["method"] == method and r["rate"] is not None}
        lines.append(f"| {method} | {' | '.join(f'{found[r]:.4f}' if r in found else '' for r in RATES)} |")
    return lines


def _full_size(out: Path) -> list[str]:
    lines = ["", "## full size, through FLARE", ""]
    lines += ["| level | run | samples seen | what the sites draw | both structures |", "|---" * 5 + "|"]
    for r in load(out / "flare"):
        level, final = r["level"], r["final"]
        values = f"{as_drawn(level, final):.4f} | {final['mean_dice']:.4f}"
        lines.append(f"| {level} | {r['run']} | {r['samples']} | {values} |")
    return lines


def _speed(out: Path) -> list[str]:
    runs = load(out / "speed")
    if not runs:
        return []
    flare, plain = (statistics.median(r[key] for r in runs) for key in ("flare", "plain"))
    shares = [share for r in runs for both in r["bytes"].values() for share in both]
    return [
        "",
        "## speed at full size",
        "",
        f"Median of {len(runs)}: {flare:.3f} s an iteration over FLARE, {plain:.3f} s as a plain loop; iterations per "
        f"second over FLARE: {plain / flare:.2f} of the loop's. Bytes on the wire over those of describe-split: "
        f"{min(shares):.4f} to {max(shares):.4f}.",
    ]


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Mean Dice of every method at every level."""
    figure, axes = plt.subplots(figsize=(8.5, 4.6), constrained_layout=True)
    shown = [method for method in METHODS if any(r["method"] == method and r["rate"] is None for r in results)]
    for place, level in enumerate(LEVELS):
        for row, method in enumerate(shown):
            values = list(by_seed(results, level, method).values())
            if values:
                y = row + 0.22 * (place - 1)
                axes.plot([min(values), max(values)], [y, y], color=f"C{place}", linewidth=2)
                label = level if row == 0 else None
                axes.plot(statistics.mean(values), y, "o", color=f"C{place}", markersize=5, label=label)
    axes.set_yticks(range(len(shown)), shown)
    axes.invert_yaxis()
    axes.set_xlabel("mean Dice over sites of the structures that a site draws (line: lowest to highest seed)")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, title="level", loc="lower left")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def work(parts: list[str], seeds: list[int], out: Path) -> Iterator[tuple[Any, ...]]:
    """Every run in one process of the asked parts; all methods of a seed before the next seed."""
    if "rates" in parts:
        for method in COMPARED_RATES:
            yield from (("even", method, RATE_SEED, out, rate) for rate in RATES)
    if "methods" in parts:
        for seed in seeds:
            for level in LEVELS:
                yield from ((level, method, seed, out) for method in METHODS)


def main() -> None:
    """Parse, run what is missing, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Task04_Hippocampus of the Decathlon")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", default=["rates", "methods", "flare"], help="also: speed")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each with one thread")
    parser.add_argument("--passes", type=int, default=12, help="of the runs at full size, over all samples")
    parser.add_argument("--repetitions", type=int, default=3, help="of the measurement of speed")
    parser.add_argument("--table", action="store_true", help="only write the table from finished runs")
    options = parser.parse_args()
    if not options.table:
        options.out.mkdir(parents=True, exist_ok=True)
        prepare(options.data, options.out)
        run_all(run, work(options.parts, options.seeds, options.out), options.jobs)
        if "flare" in options.parts:
            through_flare(options.out, options.passes)
        if "speed" in options.parts:
            measure_speed(options.out, options.repetitions)
    write_tables(options.out)


if __name__ == "__main__":
    main()

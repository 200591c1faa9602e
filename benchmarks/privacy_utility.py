"""What privacy costs: Dice against the fraction shared, against epsilon, and for layers that stay at the site.

    python benchmarks/privacy_utility.py --data ../shared/data/Task04_Hippocampus --out runs/benchmark-privacy

Four sites of 70, 50, 35 and 25 hippocampus volumes with simulated scanner shift, a fifth of each held out, and 20
volumes that stand for cases declared public. A small network at 2 mm, three seeds, 15 rounds. Parts:

- ``sharing``: fractions of the update, with and without error feedback, and fewer bits a value;
- ``layers``: layers that stay at the site (FLOP, FedBN) and layers that alone are shared (LG-Fed);
- ``noise``: a model pre-trained on the public cases is trained on in a small shared part, without noise and with the
  Gaussian and Laplace mechanisms and the sparse vector technique; for comparison with noise on the whole network;
- ``flare``: one run through FLARE's simulator, to be compared with the same run in one process.

All but the last as a loop in one process, which a test proves equal to the simulator. Every finished run is kept in
OUT/runs as JSON, so that an interrupted benchmark goes on where it was; ``--table`` only writes table and figure.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
from kept_runs import keep, kept, load, run_all, spread

from fedseg.data.datalist import read_datalist
from fedseg.data.intake.sources import read_source
from fedseg.data.partition import partition_by_sizes
from fedseg.data.site_folders import write_sites
from fedseg.evaluation.privacy_summary import privacy_summary
from fedseg.jobs.job import Job, read_job
from fedseg.models.model_file import write_model
from fedseg.privacy.accounting.epsilon import Release, epsilon, noise_for
from fedseg.simulation.in_process import InProcessFederation

matplotlib.use("Agg")
import matplotlib.pyplot as plt

JOB = Path(__file__).parents[1] / "jobs" / "hippocampus_fedavg"
SIZES = {"site-1": 70, "site-2": 50, "site-3": 35, "site-4": 25}
PUBLIC = 20
SHIFT = 0.5
ROUNDS, DELTA = 15, 1e-5
SMALL = {
    "workflow.num_rounds": ROUNDS,
    "task": {"name": "hippocampus", "spacing": [2.0, 2.0, 2.0], "patch_size": [24, 32, 24]},
    "network": {"name": "residual_unet", "channels": [8, 16, 32], "strides": [2, 2], "res_units": 1},
    "training.local_epochs": 1,
    "training.learning_rate": 0.02,
    "training.cache": "disk",
}

Setting = dict[str, Any]


def filters(*named: tuple[str, dict[str, Any]]) -> Setting:
    """Settings that put filters into the job; ``filters`` is read by ``make_job``."""
    return {"filters": [{"path": f"fedseg.filters.{path}", "args": arguments} for path, arguments in named]}


def share(fraction: float, **arguments: Any) -> Setting:
    """The largest fraction of the update."""
    return filters(("share_fraction.ShareFraction", {"fraction": fraction, **arguments}))


SHARING: dict[str, Setting] = {
    "FedAvg": {},
    **{f"{100 * f:g} %": share(f) for f in (0.01, 0.05, 0.1, 0.4, 1.0)},
    "1 %, error feedback": share(0.01, error_feedback=True),
    "10 %, error feedback": share(0.1, error_feedback=True),
    "10 % of each layer": share(0.1, per_layer=True),
    "float16": filters(("quantize.QuantizeUpdate", {"bits": 16})),
    "int8": filters(("quantize.QuantizeUpdate", {"bits": 8})),
    "10 %, int8": filters(
        ("share_fraction.ShareFraction", {"fraction": 0.1}), ("quantize.QuantizeUpdate", {"bits": 8})
    ),
}
LAYERS: dict[str, Setting] = {
    "FLOP (output convolution stays)": filters(("layers.PrivateLayers", {"last": 1})),
    "FLOP (last 3 layers stay)": filters(("layers.PrivateLayers", {"last": 3})),
    "FedBN (normalisations stay)": filters(("layers.PrivateLayers", {"kind": "norm"})),
    "LG-Fed (last 3 layers shared)": filters(("layers.SharedLayers", {"last": 3})),
}
SMALL_PART = ("layers.SharedLayers", {"last": 1, "kind": "norm", "frozen": True})


def multiplier(budget: float) -> float:
    """Noise over the clip with which all rounds cost ``budget``, under replacement (sensitivity twice the clip)."""
    return 2 * noise_for(budget, DELTA, ROUNDS)


def laplace_multiplier(budget: float) -> float:
    """The same for Laplace noise, by bisection on the accountant."""
    low, high = 1e-3, 1e6
    while high / low > 1 + 1e-6:
        middle = (low * high) ** 0.5
        enough = epsilon([Release("laplace", middle, count=ROUNDS)], DELTA) <= budget
        low, high = (low, middle) if enough else (middle, high)
    return 2 * high


def onward(*named: tuple[str, dict[str, Any]], **more: Any) -> Setting:
    """From the public start, in small steps."""
    return {**filters(*named), "start": True, "training.schedule": "constant", **more}


def patient(budget: float, clip: float = 0.1) -> tuple[str, dict[str, Any]]:
    """DP-SGD: the unit is one patient."""
    return ("dp_sgd.DPSGD", {"clip": clip, "noise_multiplier": multiplier(budget), "delta": DELTA})


def update_noise(budget: float, clip: float) -> tuple[str, dict[str, Any]]:
    """Gaussian noise on the update: the unit is all that a site sends."""
    return ("noise.GaussianNoise", {"clip": clip, "noise_multiplier": multiplier(budget), "delta": DELTA})


def sparse_vector(budget: float) -> tuple[str, dict[str, Any]]:
    """The sparse vector technique with a pure epsilon that adds up to ``budget``; 10 %, split as Li et al. did."""
    each = budget / ROUNDS
    split = {"epsilon_threshold": each / 4, "epsilon_query": each / 4, "epsilon_release": each / 2}
    return (
        "sparse_vector.SparseVector",
        {"fraction": 0.1, "clip": 1e-4, "threshold": 5e-5, "delta": DELTA, **split},
    )


NOISE: dict[str, Setting] = {
    "all layers, no noise": onward(),
    "small part, no noise": onward(SMALL_PART),
    **{f"small part, per patient, epsilon {e:g}": onward(SMALL_PART, patient(e)) for e in (1, 3, 10)},
    "all layers, per patient, epsilon 10": onward(patient(10)),
    **{f"small part, per update, epsilon {e:g}": onward(SMALL_PART, update_noise(e, 0.003)) for e in (1, 3, 10)},
    "all layers, per update, epsilon 10": onward(update_noise(10, 0.003)),
    "small part, Laplace per update, epsilon 10": onward(
        SMALL_PART,
        ("noise.LaplaceNoise", {"clip": 0.003, "noise_multiplier": laplace_multiplier(10), "delta": DELTA}),
    ),
    "small part, sparse vector per update, epsilon 10": onward(SMALL_PART, sparse_vector(10)),
    "all layers, sparse vector per update, epsilon 10": onward(sparse_vector(10)),
}
CORE = (
    "FedAvg", "1 %", "5 %", "10 %", "40 %", "100 %", "10 %, error feedback", "FLOP (output convolution stays)",
    "FedBN (normalisations stay)", "LG-Fed (last 3 layers shared)", "small part, no noise",
    "small part, per patient, epsilon 1", "small part, per patient, epsilon 3", "small part, per patient, epsilon 10",
    "small part, per update, epsilon 10", "small part, Laplace per update, epsilon 10",
    "small part, sparse vector per update, epsilon 10",
)  # fmt: skip
PARTS = {"sharing": SHARING, "layers": LAYERS, "noise": NOISE}


def make_job(setting: Setting, seed: int) -> Job:
    """The job of a setting."""
    job, settings = read_job(JOB), dict(setting)
    chain = settings.pop("filters", [])
    settings.pop("start", None)
    if chain:
        restore = {"path": "fedseg.filters.restore.RestoreUpdate", "args": {}}
        job.client["task_result_filters"] = [{"tasks": ["train"], "direction": "out", "filters": chain}]
        job.server["task_result_filters"] = [{"tasks": ["train"], "direction": "in", "filters": [restore]}]
    for key, value in {**SMALL, "seed": seed, **settings}.items():
        job.set(key, value)
    return job


def run(part: str, name: str, seed: int, out: Path) -> Path:
    """One run of one setting; its result is kept."""
    path = kept(out, name, seed)
    if path.exists():
        return path
    lists = {folder.name: read_datalist(folder) for folder in sorted((out / "sites").iterdir())}
    setting = PARTS[part][name]
    job = make_job(setting, seed)
    if setting.get("start"):
        job.initial = out / f"start-{seed}.safetensors"
    began = time.time()
    federation = InProcessFederation(job, lists, cache=out / "cache")
    start = federation.evaluate(distances=False)
    federation.run()
    result = {
        "part": part, "setting": name, "seed": seed, "seconds": time.time() - began, "events": federation.events,
        "rounds": federation.rounds, "privacy": privacy_summary(federation.rounds),
        "start": start["pooled_dice"], "final": federation.evaluate(distances=False),
    }  # fmt: skip
    return keep(path, result)


def prepare(data: Path, out: Path, seeds: list[int]) -> None:
    """Folders of the sites and of the public cases, and a model per seed that is trained on the public ones alone."""
    task = read_job(JOB).plan.task
    if not (out / "public").exists():
        parts = partition_by_sizes(read_source(data, task), {"public": PUBLIC, **SIZES}, seed=0)
        public = {"public": parts.pop("public")}
        fractions = {"validation": 0.2, "test": 0.0}
        write_sites(parts, out / "sites", task, fractions, 0, SHIFT)
        write_sites(public, out / "public", task, fractions, 0)
    for seed in seeds:
        path = out / f"start-{seed}.safetensors"
        if not path.exists():
            lists = {"public": read_datalist(out / "public" / "public")}
            federation = InProcessFederation(make_job({}, seed), lists, cache=out / "cache")
            federation.run()
            write_model(path, federation.plan, federation.model.weights, ROUNDS - 1)


def through_flare(out: Path) -> Path:
    """10 % shared with error feedback, every site a process of FLARE's simulator."""
    path = out / "flare" / "report" / "summary.json"
    if not path.exists():
        job = make_job(SHARING["10 %, error feedback"], 0)
        written = out / "flare-job"
        if not written.exists():
            job.write(written)
        command = [sys.executable, "-m", "fedseg", "simulate", str(written), "--data", str(out / "sites")]
        subprocess.run([*command, "--out", str(out / "flare"), "--overwrite"], check=True)
    return path


# ---------------------------------------------------------------------- tables


def mean_of(result: dict[str, Any], key: str) -> float:
    """Mean of a number of the rounds' sites."""
    return statistics.mean(values[key] for entry in result["rounds"] for values in entry["sites"].values())


def write_tables(out: Path) -> None:
    """``table.md`` and ``privacy_utility.png`` from all finished runs."""
    results = load(out)
    full = {r["seed"]: r["final"]["pooled_dice"] for r in results if r["setting"] == "FedAvg"}
    dense = statistics.mean(mean_of(r, "bytes_up") for r in results if r["setting"] == "FedAvg")
    lines = [
        f"Pooled Dice over the held-out volumes of all sites after {ROUNDS} rounds: mean over seeds (lowest to highest",
        "seed). Bytes: of one update on the wire, over those of a dense float32 update. Filter: median time of all",
        "filters for one update, on a machine that did other work besides.",
    ]
    for part, settings in PARTS.items():
        lines += ["", f"## {part}", ""]
        columns = ["pooled Dice", "over FedAvg" if part != "noise" else "minus start", "bytes", "filter", "epsilon"]
        lines += [f"| setting | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        if part == "noise":
            starts = {r["seed"]: r["start"] for r in results if r["part"] == part}
            if starts:
                lines.append(f"| the start, as it is | {spread(list(starts.values()))} | 0 | | | 0 |")
        for name in settings:
            runs = [r for r in results if r["setting"] == name and r["seed"] in full]
            if not runs:
                continue
            dice = [r["final"]["pooled_dice"] for r in runs]
            if part == "noise":
                gaps = [r["final"]["pooled_dice"] - r["start"] for r in runs]
                compared = f"{statistics.mean(gaps):+.4f} ({min(gaps):+.4f} to {max(gaps):+.4f})"
            else:
                compared = f"{statistics.mean(d / full[r['seed']] for d, r in zip(dice, runs, strict=True)):.3f}"
            size = statistics.mean(mean_of(r, "bytes_up") for r in runs) / dense
            took = [
                sum(step["seconds"] for step in values["privacy"])
                for r in runs for entry in r["rounds"] for values in entry["sites"].values()
            ]  # fmt: skip
            spent = runs[0]["privacy"].get("total", {}).get("epsilon")
            shown = f"{spent:.3g} per {runs[0]['privacy']['total']['unit']}" if spent else ""
            row = [spread(dice), compared, f"{size:.3f}", f"{1000 * statistics.median(took):.0f} ms", shown]
            lines.append(f"| {name} | {' | '.join(row)} |")
    flare = out / "flare" / "report" / "summary.json"
    if flare.exists():
        summary = json.loads(flare.read_text())
        twin = [r for r in results if r["setting"] == "10 %, error feedback" and r["seed"] == 0]
        lines += [
            "",
            "Control: 10 % with error feedback through FLARE's simulator, seed 0: "
            f"{summary['final']['pooled_dice']:.6f}; "
            f"the same in one process: {twin[0]['final']['pooled_dice']:.6f}." if twin else "",
        ]  # fmt: skip
    (out / "table.md").write_text("\n".join(lines) + "\n")
    draw(results, out / "privacy_utility.png")
    print("\n".join(lines))


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Dice against the fraction shared, and against epsilon."""

    def dice(name: str) -> list[float]:
        return [r["final"]["pooled_dice"] for r in results if r["setting"] == name]

    def line(axes: plt.Axes, places: list[float], names: list[str], label: str, **style: Any) -> None:
        known = [(place, dice(name)) for place, name in zip(places, names, strict=True) if dice(name)]
        if known:
            means = [statistics.mean(values) for _, values in known]
            low = [m - min(v) for m, (_, v) in zip(means, known, strict=True)]
            high = [max(v) - m for m, (_, v) in zip(means, known, strict=True)]
            axes.errorbar([p for p, _ in known], means, [low, high], label=label, capsize=3, marker="o", **style)

    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6), constrained_layout=True)
    fractions = [1, 5, 10, 40, 100]
    line(left, fractions, [f"{f} %" for f in fractions], "largest values")
    line(left, [1, 10], ["1 %, error feedback", "10 %, error feedback"], "with error feedback", linestyle="--")
    left.set_xscale("log")
    left.set_xticks(fractions, [f"{f} %" for f in fractions])
    left.set_xlabel("fraction of the update that is sent")
    left.set_ylabel("pooled Dice")
    budgets = [1, 3, 10]
    line(right, budgets, [f"small part, per patient, epsilon {e}" for e in budgets], "per patient (DP-SGD)")
    line(right, budgets, [f"small part, per update, epsilon {e}" for e in budgets], "per update (Gaussian)")
    starts = {r["seed"]: r["start"] for r in results if r["part"] == "noise"}
    for name, values, colour in (
        ("no noise", dice("small part, no noise"), "#555555"),
        ("public start, untrained", list(starts.values()), "#999999"),
    ):
        if values:
            right.axhline(statistics.mean(values), color=colour, linestyle=":", label=name)
    right.set_xscale("log")
    right.set_xticks(budgets, [str(e) for e in budgets])
    right.minorticks_off()
    right.set_xlabel(f"epsilon of the run (delta {DELTA:g})")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def work(parts: list[str], seeds: list[int], core: bool) -> Iterator[tuple[str, str, int]]:
    """Every run of the asked parts; all settings of a seed before the next seed."""
    for seed in seeds:
        for part in parts:
            yield from ((part, name, seed) for name in PARTS.get(part, {}) if not core or name in CORE)


def main() -> None:
    """Parse, run what is missing, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Task04_Hippocampus of the Decathlon")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", default=["sharing", "layers", "noise", "flare"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each with one thread")
    parser.add_argument("--core", action="store_true", help="only the settings that need more than one seed")
    parser.add_argument("--table", action="store_true", help="only write the table from finished runs")
    options = parser.parse_args()
    if not options.table:
        options.out.mkdir(parents=True, exist_ok=True)
        prepare(options.data, options.out, options.seeds)
        run_all(run, ((*item, options.out) for item in work(options.parts, options.seeds, options.core)), options.jobs)
        if "flare" in options.parts:
            through_flare(options.out)
    write_tables(options.out)


if __name__ == "__main__":
    main()

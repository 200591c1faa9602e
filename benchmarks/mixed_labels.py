"""Mixed labels on the real hippocampus images: how far boxes go in the place of masks.

    python benchmarks/mixed_labels.py --data ../shared/data/Task04_Hippocampus --out runs/benchmark-mixed-labels

Four equal sites. A tenth of the patients has masks, and the others have boxes around each region. Arms, with the same
cases and splits:

- full: every case has its mask;
- masks: FedAvg on the tenth with masks alone;
- fedst: self-training (FedST);
- fedmix: FedMix.

Test cases keep their masks. The figure wanted: the mean Dice of FedMix is at least 0.95 of that of full masks. Every
finished run is kept in OUT, so that an interrupted benchmark goes on where it was.
"""

import argparse
import statistics
from pathlib import Path

import torch
from kept_runs import keep, kept, load, run_all, spread

from fedseg.data.datalist import read_datalist
from fedseg.data.intake.sources import read_source
from fedseg.data.partition import partition_equally
from fedseg.data.site_folders import write_sites
from fedseg.data.weak_labels import EVERYWHERE, WeakLabels
from fedseg.jobs.job import read_job
from fedseg.simulation.in_process import InProcessFederation
from fedseg.training.trainer import SiteTrainer

JOBS = Path(__file__).parents[1] / "jobs"
ARMS = {
    "full": "hippocampus_fedavg",
    "masks": "hippocampus_fedavg",
    "fedst": "hippocampus_fedst",
    "fedmix": "hippocampus_fedmix",
}
SITES = ["site-1", "site-2", "site-3", "site-4"]
REGIONS = ("anterior", "posterior", "mean")
WANTED, SHARE = 0.95, 0.9
FRACTIONS = {"validation": 0.15, "test": 0.25}


def train(arm: str, seed: int, rounds: int | None, data: Path, out: Path) -> Path:
    """One run, whose test scores are kept in ``out``."""
    path = kept(out, arm, seed)
    if path.exists():
        return path
    job = read_job(JOBS / ARMS[arm])
    job.set("seed", seed)
    if rounds is not None:
        job.set("workflow.num_rounds", rounds)
    plan = job.check()
    torch.set_num_threads(plan.training.threads)
    lists = {site: read_datalist(data / ("full" if arm == "full" else "mixed") / site) for site in SITES}
    if arm == "masks":
        # A site of which no case for training and validation has a mask has no part in this arm.
        labelled = {site: datalist.labelled for site, datalist in lists.items()}
        lists = {site: datalist for site, datalist in labelled.items() if datalist.training and datalist.validation}
    federation = InProcessFederation(job, lists)
    federation.run()
    if federation.events:
        raise RuntimeError(f"{arm}, seed {seed}: {federation.events[0]}")
    last = federation.rounds[-1]["sites"]
    taught = sum(int(site.get("taught_cases", site["num_samples"])) for site in last.values())
    scores = {}
    for site in SITES:
        scored = SiteTrainer(plan, site, read_datalist(data / "full" / site)).validate(federation.model.weights, "test")
        scores[site] = plan.objective.summarise([case.score for case in scored])["dice"]
    return keep(path, {"arm": arm, "seed": seed, "rounds": len(federation.rounds), "taught": taught, "dice": scores})


def table(results: list[dict]) -> list[str]:
    """Test Dice by arm, the cases that taught in the last round, and the share of what full masks give."""
    lines = [
        "| training | anterior | posterior | mean | cases that taught | share of full |",
        "|---|---|---|---|---|---|",
    ]
    full = _means(results, "full", "mean")
    for arm in ARMS:
        found = {region: _means(results, arm, region) for region in REGIONS}
        if found["mean"]:
            share = statistics.mean(found["mean"]) / statistics.mean(full) if full else float("nan")
            taught = statistics.mean(result["taught"] for result in results if result["arm"] == arm)
            dice = " | ".join(spread(found[region]) for region in REGIONS)
            lines.append(f"| {arm} | {dice} | {taught:.0f} | {share:.3f} |")
    return lines


def _means(results: list[dict], arm: str, region: str) -> list[float]:
    """By seed, the mean over sites."""
    runs = sorted((r for r in results if r["arm"] == arm), key=lambda r: r["seed"])
    return [statistics.mean(run["dice"][site][region] for site in SITES) for run in runs]


def make_sites(source: Path, patients: int | None, out: Path) -> Path:
    """Both forms of the sites, with the same cases in the same splits."""
    data, task = out / "data", read_job(JOBS / ARMS["full"]).plan.task
    cases = read_source(source, task)[:patients]
    for name, weak in (("full", None), ("mixed", WeakLabels({EVERYWHERE: "boxes"}, SHARE))):
        if not (data / name).exists():
            write_sites(partition_equally(cases, SITES, 0), data / name, task, FRACTIONS, 0, weak=weak)
    return data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of Task04_Hippocampus")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--small", action="store_true", help="40 patients, 2 rounds, one seed: whether it runs at all")
    options = parser.parse_args()
    data = make_sites(options.data, 40 if options.small else None, options.out)
    rounds, seeds = (2, options.seeds[:1]) if options.small else (None, options.seeds)
    run_all(train, [(arm, seed, rounds, data, options.out) for seed in seeds for arm in ARMS], options.jobs)
    lines = [*table(load(options.out)), "", f"Wanted: a share of at least {WANTED} with FedMix."]
    (options.out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

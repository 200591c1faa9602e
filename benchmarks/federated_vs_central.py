"""Federated averaging against central training on the real hippocampus images, with equal optimizer steps.

    python benchmarks/federated_vs_central.py --data ../shared/data/Task04_Hippocampus --out runs/benchmark-central

Four sites of 80, 60, 40 and 20 volumes (one volume stands for one patient, since the data set names none), a fifth of
each held out. Central training sees the same training volumes as one site, with the same batch size and the same
passes over each volume, hence the same number of optimizer steps over all sites up to rounding, under one learning
rate schedule. The federation runs as a plain loop, which a test proves equal to FLARE's simulator to 1e-6. Every
finished run is kept in OUT, so that an interrupted benchmark goes on where it was.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from kept_runs import write_table

from fedseg.data.datalist import Datalist, read_datalist
from fedseg.data.intake.sources import read_source
from fedseg.data.partition import partition_by_sizes
from fedseg.data.site_folders import write_sites
from fedseg.jobs.job import read_job
from fedseg.networks.weights import apply_difference, get_weights
from fedseg.tasks.segmentation.objective import Segmentation
from fedseg.training.trainer import SiteTrainer

JOB = Path(__file__).parents[1] / "jobs" / "hippocampus_fedavg"
SIZES = {"site-1": 80, "site-2": 60, "site-3": 40, "site-4": 20}


def train(kind: str, seed: int, rounds: int, data: Path, out: Path) -> dict:
    """One run; ``kind`` is ``federated`` or ``central``. Returns its result, kept in ``out``."""
    path = out / f"{kind}-{seed}.json"
    if path.exists():
        return json.loads(path.read_text())
    job = read_job(JOB)
    job.set("seed", seed)
    plan = job.check()
    lists = {folder.name: read_datalist(folder) for folder in sorted(data.iterdir()) if folder.is_dir()}
    if kind == "central":
        lists = {
            "central": Datalist(
                tuple(c for part in lists.values() for c in part.training),
                tuple(c for part in lists.values() for c in part.validation),
            )
        }
    torch.set_num_threads(plan.training.threads)
    trainers = {site: SiteTrainer(plan, site, datalist) for site, datalist in lists.items()}
    weights = get_weights(next(iter(trainers.values())).network)
    start, steps = time.time(), 0
    for number in range(rounds):
        results = {site: trainer.train_round(weights, number, rounds) for site, trainer in trainers.items()}
        total = sum(r.num_samples for r in results.values())
        steps += sum(r.num_steps for r in results.values())
        mean = {n: sum(r.update[n] * (r.num_samples / total) for r in results.values()) for n in weights}
        weights = apply_difference(weights, mean)
    scored = [case.score for trainer in trainers.values() for case in trainer.validate(weights, distances=True)]
    summary = Segmentation.summarise(scored)
    result = {"kind": kind, "seed": seed, "steps": steps, "seconds": time.time() - start, **summary}
    path.write_text(json.dumps(result, indent=1))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of Task04_Hippocampus")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2, help="runs at a time")
    options = parser.parse_args()
    rounds = int(read_job(JOB).workflow["num_rounds"])
    sites = options.out / "sites"
    if not sites.exists():
        task = read_job(JOB).plan.task
        parts = partition_by_sizes(read_source(options.data, task), SIZES, seed=0)
        write_sites(parts, sites, task, {"validation": 0.2, "test": 0.0}, seed=0)
    work = [(kind, seed) for seed in options.seeds for kind in ("central", "federated")]
    with ProcessPoolExecutor(options.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(train, kind, seed, rounds, sites, options.out) for kind, seed in work]
        results = [future.result() for future in futures]
    means = {
        kind: statistics.mean(r["dice"]["mean"] for r in results if r["kind"] == kind)
        for kind in ("central", "federated")
    }
    lines = ["| seed | training | optimizer steps | anterior | posterior | mean Dice |", "|---|---|---|---|---|---|"]
    for r in sorted(results, key=lambda r: (r["seed"], r["kind"])):
        dice = r["dice"]
        lines.append(
            f"| {r['seed']} | {r['kind']} | {r['steps']} | {dice['anterior']:.4f} | {dice['posterior']:.4f} "
            f"| {dice['mean']:.4f} |"
        )
    ratio = means["federated"] / means["central"]
    lines.append(
        f"\nMean over {len(options.seeds)} seeds: central {means['central']:.4f}, federated {means['federated']:.4f}, "
        f"ratio {ratio:.4f}."
    )
    write_table(options.out, lines)


if __name__ == "__main__":
    main()

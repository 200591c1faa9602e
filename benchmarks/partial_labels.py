"""Partial labels on the real hippocampus images: what a site gets for a structure that it has not drawn.

    python benchmarks/partial_labels.py --data ../shared/data/Task04_Hippocampus --out runs/benchmark-partial-labels

Four equal sites; one of them, a quarter of the patients, has the anterior part drawn alone. Arms, with the same cases,
patches and steps:

- full: every label as it is;
- background: the posterior part of that site is background, and the loss believes it;
- marginal: the datalist says what is drawn, and the marginal loss leaves the rest open;
- distillation: likewise, with ConditionalDistillation.

Test cases keep all labels. The figure wanted: the posterior Dice at that site with the marginal loss is at least 0.95
of that of full labels. Every finished run is kept in OUT, so that an interrupted benchmark goes on where it was.
"""

import argparse
import statistics
from dataclasses import replace
from pathlib import Path

import torch
from kept_runs import keep, kept, load, run_all, spread

from fedseg.data.datalist import SPLITS, Datalist, read_datalist
from fedseg.data.intake.sources import read_source
from fedseg.data.partition import partition_equally
from fedseg.data.site_folders import write_sites
from fedseg.data.undrawn_labels import PartialLabels
from fedseg.jobs.job import read_job
from fedseg.simulation.in_process import InProcessFederation
from fedseg.training.trainer import SiteTrainer

JOBS = Path(__file__).parents[1] / "jobs"
ARMS = {
    "full": "hippocampus_fedavg",
    "background": "hippocampus_fedavg",
    "marginal": "hippocampus_fedavg",
    "distillation": "hippocampus_partial_labels",
}
SITES = ["site-1", "site-2", "site-3", "site-4"]
PARTIAL, DRAWN, OTHER = "site-4", "anterior", "posterior"
WANTED = 0.95
FRACTIONS = {"validation": 0.15, "test": 0.25}


def believed(datalist: Datalist) -> Datalist:
    """The same labels, of which nobody says that something is not drawn."""
    training, validation, test = (tuple(replace(c, drawn=None) for c in datalist.split(name)) for name in SPLITS)
    return replace(datalist, training=training, validation=validation, test=test)


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
    folder = data / ("full" if arm == "full" else "partial")
    lists = {site: read_datalist(folder / site) for site in SITES}
    if arm == "background":
        lists = {site: believed(datalist) for site, datalist in lists.items()}
    federation = InProcessFederation(job, lists)
    federation.run()
    if federation.events:
        raise RuntimeError(f"{arm}, seed {seed}: {federation.events[0]}")
    steps = {site: sum(entry["sites"][site]["num_steps"] for entry in federation.rounds) for site in SITES}
    scores = {}
    for site, datalist in lists.items():
        scored = SiteTrainer(plan, site, datalist).validate(federation.model.weights, "test")
        scores[site] = plan.objective.summarise([case.score for case in scored])["dice"]
    return keep(path, {"arm": arm, "seed": seed, "rounds": len(federation.rounds), "steps": steps, "dice": scores})


def table(results: list[dict]) -> list[str]:
    """Test Dice by arm, and the share of what full labels give."""
    if len({tuple(result["steps"].items()) for result in results}) > 1:
        raise RuntimeError("The arms differ in their steps; they can not be compared.")
    lines = [f"| training | {DRAWN} at {PARTIAL} | {OTHER} at {PARTIAL} | {OTHER} at the others | share of full |"]
    lines.append("|---|---|---|---|---|")
    full = _means(results, "full", OTHER, [PARTIAL])
    for arm in ARMS:
        own, other, elsewhere = (
            _means(results, arm, DRAWN, [PARTIAL]),
            _means(results, arm, OTHER, [PARTIAL]),
            _means(results, arm, OTHER, SITES[:-1]),
        )
        if other:
            share = statistics.mean(other) / statistics.mean(full) if full else float("nan")
            lines.append(f"| {arm} | {spread(own)} | {spread(other)} | {spread(elsewhere)} | {share:.3f} |")
    return lines


def _means(results: list[dict], arm: str, region: str, sites: list[str]) -> list[float]:
    """By seed, the mean over sites."""
    runs = sorted((r for r in results if r["arm"] == arm), key=lambda r: r["seed"])
    return [statistics.mean(run["dice"][site][region] for site in sites) for run in runs]


def make_sites(source: Path, patients: int | None, out: Path) -> Path:
    """Both forms of the sites, with the same cases in the same splits."""
    data, task = out / "data", read_job(JOBS / ARMS["full"]).plan.task
    cases = read_source(source, task)[:patients]
    for name, partial in (("full", None), ("partial", PartialLabels((DRAWN,), (PARTIAL,)))):
        if not (data / name).exists():
            write_sites(partition_equally(cases, SITES, 0), data / name, task, FRACTIONS, 0, partial=partial)
    return data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of Task04_Hippocampus")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--small", action="store_true", help="24 patients, 2 rounds, one seed: whether it runs at all")
    options = parser.parse_args()
    data = make_sites(options.data, 24 if options.small else None, options.out)
    rounds, seeds = (2, options.seeds[:1]) if options.small else (None, options.seeds)
    run_all(train, [(arm, seed, rounds, data, options.out) for seed in seeds for arm in ARMS], options.jobs)
    lines = [*table(load(options.out)), "", f"Wanted: a share of at least {WANTED} with the marginal loss."]
    (options.out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

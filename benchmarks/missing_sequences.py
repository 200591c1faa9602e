"""One site lacks one of four sequences: what that costs this site, and the others, against a federation that has all.

    python benchmarks/missing_sequences.py --out runs/benchmark-missing-sequences

Phantoms of the BraTS task at three sites. The last site never has the sequence, in training and in scoring alike; the
arms are

- ``complete``: every case has all sequences, and there is no channel dropout;
- ``without S``: the last site lacks the sequence S, and training goes on as it is;
- ``without S, dropout``: the same with ``training.channel_dropout`` of the job ``brats_missing_sequences``.

Two verdicts follow for each sequence: the mean Dice at the other sites is no lower than that of ``complete`` by more
than its range over the seeds, and the mean Dice at the last site is at least 0.95 of that of ``complete``. Every
finished run is kept in OUT/runs as JSON, so that an interrupted benchmark goes on where it was; ``--table`` only writes
the table. ``--small`` trains two rounds of a small network with one seed and one sequence, to see that it works.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from kept_runs import keep, kept, load, spread

from fedseg.data.datalist import SPLITS, Case, Datalist, read_datalist
from fedseg.data.phantoms.brats import CHANNELS
from fedseg.data.phantoms.phantoms import make_phantoms
from fedseg.jobs.job import Job, read_job
from fedseg.simulation.in_process import InProcessFederation

JOB = Path(__file__).parents[1] / "jobs" / "brats_missing_sequences"
COMPLETE, LEAST = "complete", 0.95
WITHOUT, DROPOUT = "without {}", "without {}, dropout"


@dataclass(frozen=True)
class Size:
    """How large the benchmark is."""

    sites: int
    cases: int
    rounds: int
    epochs: int
    spacing: float
    patch: int
    network: tuple[int, ...]


FULL = Size(3, 10, 8, 5, 3.0, 48, (8, 16, 32, 64))
SMALL = Size(2, 4, 2, 1, 4.0, 32, (4, 8, 8))


def without(datalist: Datalist, sequence: str) -> Datalist:
    """The list with cases that lack a sequence."""
    place = CHANNELS.index(sequence)

    def lacking(case: Case) -> Case:
        return replace(case, images=tuple(i for n, i in enumerate(case.images) if n != place), missing=(place,))

    return replace(datalist, **{split: tuple(map(lacking, datalist.split(split))) for split in SPLITS})


def arms(sequences: Sequence[str] = CHANNELS) -> dict[str, tuple[str | None, bool]]:
    """The sequence that is missing, and whether channels are dropped, by the name of the arm."""
    found: dict[str, tuple[str | None, bool]] = {COMPLETE: (None, False)}
    for sequence in sequences:
        found |= {WITHOUT.format(sequence): (sequence, False), DROPOUT.format(sequence): (sequence, True)}
    return found


def make_job(size: Size, seed: int, drops: bool) -> Job:
    """The job at this size, with or without channel dropout."""
    job = read_job(JOB)
    for key, value in {
        "seed": seed,
        "workflow.num_rounds": size.rounds,
        "training.local_epochs": size.epochs,
        "training.overlap": 0.25,
        "task.spacing": [size.spacing] * 3,
        "task.patch_size": [size.patch] * 3,
        "network": {"channels": list(size.network), "strides": [2] * (len(size.network) - 1)},
    }.items():
        job.set(key, value)
    if not drops:
        job.set("training.channel_dropout", 0)
    return job


def run(size: Size, name: str, arm: str, seed: int, out: Path) -> Path:
    """One run: mean Dice of the last model at every site; it is kept in ``out/runs``."""
    path = kept(out, name, arm, seed)
    if path.exists():
        return path
    data = out / f"data-{name}-{seed}"
    if not data.exists():
        make_phantoms("brats", size.sites, size.cases, data, seed=seed, test_fraction=0.25)
    lists = {folder.name: read_datalist(folder) for folder in sorted(data.glob("site-*"))}
    sequence, drops = arms()[arm]
    if sequence is not None:
        lists[max(lists)] = without(lists[max(lists)], sequence)
    federation = InProcessFederation(make_job(size, seed, drops), lists, cache=None)
    federation.run()
    final = federation.evaluate(distances=False)
    dice = {site: scored["dice"]["mean"] for site, scored in final["sites"].items()}
    return keep(path, {"size": name, "arm": arm, "seed": seed, "dice": dice, "rounds": size.rounds})


def table(results: list[dict[str, Any]]) -> str:
    """Every arm at the site that lacks the sequence and at the others, and the two verdicts, at the same seeds."""
    lines = ["| arm | seeds | other sites | no loss | last site | of complete | 0.95 reached |", "|---" * 7 + "|"]
    complete = {run["seed"]: run for run in results if run["arm"] == COMPLETE}
    every = _halves(list(complete.values()))[0]
    for arm in arms():
        runs = [run for run in results if run["arm"] == arm and run["seed"] in complete]
        if runs:
            (mine, own), (others, last) = _halves(runs), _halves([complete[run["seed"]] for run in runs])
            loss = statistics.mean(others) - statistics.mean(mine)
            ratio = statistics.mean(own) / statistics.mean(last) if statistics.mean(last) else float("nan")
            fine = "one seed" if len(every) < 2 else "yes" if loss <= max(every) - min(every) else "no"
            enough = "yes" if ratio >= LEAST else "no"
            cells = [arm, str(len(mine)), spread(mine), fine, spread(own), f"{ratio:.3f}", enough]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) if complete else "No run of all sequences is finished."


def _halves(runs: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """By seed, the mean Dice over the other sites and that of the last one."""
    last = [run["dice"][max(run["dice"])] for run in runs]
    others = [statistics.mean(v for s, v in run["dice"].items() if s != max(run["dice"])) for run in runs]
    return others, last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sequences", nargs="+", default=list(CHANNELS), choices=CHANNELS, metavar="SEQUENCE")
    parser.add_argument("--small", action="store_true", help="two rounds, one seed, one sequence: whether it runs")
    parser.add_argument("--table", action="store_true", help="only write the table of what is there")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    size, name = (SMALL, "small") if options.small else (FULL, "full")
    if options.small:
        options.seeds, options.sequences = options.seeds[:1], options.sequences[:1]
    for seed in () if options.table else options.seeds:
        for arm in arms(options.sequences):
            path = run(size, name, arm, seed, options.out)
            print(path.name, json.loads(path.read_text())["dice"], flush=True)
    found = [result for result in load(options.out) if result["size"] == name]
    text = table(found) + ("\n\nFigures of a small run mean nothing." if options.small else "")
    (options.out / f"table-{name}.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()

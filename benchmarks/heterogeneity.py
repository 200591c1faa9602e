"""Hospitals that differ: what harmonisation, models of one's own and partial labels bring, on real images.

    python benchmarks/heterogeneity.py --data ../shared/data --out runs/heterogeneity

- ``heterogeneity_lgg``: lower-grade glioma of four institutions, some patients without a sequence;
- ``heterogeneity_hippocampus``: hippocampi of OASIS and of the Decathlon (whose two labels are merged): two scanners,
  two protocols of drawing;
- ``heterogeneity_mixed``: Decathlon hippocampi at four sites of unequal sizes, each with a scanner of its own, one of
  which has drawn the anterior part alone. The datalists of one arm say so; test cases keep all labels.

All arms see the same samples, in five folds over patients or with three seeds. The definitions lie in ``experiments/``;
an arm is one line there, and what has run before is kept. ``--small`` trains one round, to see that everything works;
its figures mean nothing. The tables are written to OUT/tables.md, and with ``--page FILE`` between the marks of that
page, as in ``docs/explanation/heterogeneity.md``.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from experiment_tables import arguments, costs, of_means, primary, publish, run, sites, table, tests
from kept_runs import made_once
from multi_institution import HIPPOCAMPUS, institutions

from fedseg.data.datalist import Datalist, write_datalist
from fedseg.data.intake.sources import read_source
from fedseg.data.partition import partition_by_sizes
from fedseg.data.site_folders import write_sites
from fedseg.data.undrawn_labels import PartialLabels
from fedseg.tasks.registry import get_task

NAMES = ("heterogeneity_lgg", "heterogeneity_hippocampus", "heterogeneity_mixed")
SMALL = {
    "heterogeneity_lgg": {"budget": {"rounds": 1}, "folds": {"kind": "patients", "k": 5, "only": ["0"]}},
    "heterogeneity_hippocampus": {"budget": {"rounds": 1}, "folds": {"kind": "patients", "k": 5, "only": ["0"]}},
    "heterogeneity_mixed": {"budget": {"rounds": 1}, "seeds": [0]},
}
MIXED = {"site-1": 50, "site-2": 23, "site-3": 11, "site-4": 7}
ONE_STRUCTURE, DRAWN = "site-2", "anterior"


def make_hippocampus(data: Path, out: Path) -> None:
    """A folder for each of two institutions, with the datalist of its cases."""
    for site, cases in institutions("hippocampus", data, out).items():
        folder = out / "hippocampus" / site
        folder.mkdir(parents=True, exist_ok=True)
        write_datalist(Datalist(tuple(cases), task=HIPPOCAMPUS["name"]), folder / "datalist.json")


def make_mixed(data: Path, out: Path) -> None:
    """Four sites with simulated scanners, one of which has drawn one structure."""
    task = get_task("hippocampus")
    parts = partition_by_sizes(read_source(data / "Task04_Hippocampus", task), MIXED, 0)
    one = PartialLabels((DRAWN,), (ONE_STRUCTURE,))
    write_sites(parts, out / "mixed", task, {"validation": 0.05, "test": 0.25}, 0, 1.0, partial=one)


MAKERS: dict[str, Callable[[Path, Path], None]] = {
    "heterogeneity_hippocampus": make_hippocampus,
    "heterogeneity_mixed": make_mixed,
}


def data_of(name: str, data: Path, out: Path) -> Path:
    """The folder from which the paths of an experiment's data count; simulated sites are made once."""
    if name not in MAKERS:
        return data
    return made_once(out / "sites" / name, partial(MAKERS[name], data))


def ratios(folder: Path) -> list[str]:
    """Every arm's mean over sites at home as a share of pooled training and of FedAvg."""
    arms = list(dict.fromkeys(row["arm"] for row in primary(folder) if row["scope"] == "home"))
    lines = ["| arm | of central (95%) | of FedAvg (95%) |", "|---|---|---|"]
    for arm in arms:
        lines.append(f"| {arm} | {of_means(folder, arm, 'central')} | {of_means(folder, arm, 'fedavg')} |")
    return lines


def main() -> None:
    options = arguments(str(__doc__), NAMES)
    options.out.mkdir(parents=True, exist_ok=True)
    out, folders = options.out.resolve(), {}
    for name in options.only:
        data = data_of(name, options.data.resolve(), out)
        folders[name] = run(name, data, out, options.jobs, SMALL[name] if options.small else None)
    publish(folders, (table, tests, ratios, sites, costs), options)


if __name__ == "__main__":
    main()

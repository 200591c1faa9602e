"""The claims of the defining papers beside figures of this software on real images: three experiments, and their tables.

    python benchmarks/headline.py --data ../shared/data --out runs/headline

- ``hippocampus_ten_sites``: 200 hippocampi at ten sites of unequal sizes, each with a scanner of its own;
- ``lgg_institutions``: lower-grade glioma of four institutions, a third of their patients held out;
- ``lgg_left_out``: each of these institutions in turn takes no part, and all its patients are tests.

The definitions lie in ``experiments/``. A run that was stopped goes on where it was. ``--small`` trains one round with
one seed, to see that everything works; its figures mean nothing. The tables are written to OUT/tables.md.
"""

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from fedseg.cli import main as fedseg
from fedseg.files.yaml_documents import read_yaml

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
NAMES = ("hippocampus_ten_sites", "lgg_institutions", "lgg_left_out")
SMALL = {
    "hippocampus_ten_sites": {"budget": {"rounds": 1}, "seeds": [0], "sites": ["site-8", "site-9", "site-10"]},
    "lgg_institutions": {"budget": {"rounds": 1}, "seeds": [0]},
    "lgg_left_out": {"budget": {"rounds": 1}, "seeds": [0]},
}
PUBLISHED = {
    "fedavg / central": "0.988 (Sheller et al., 2018, 32 institutions); 0.99 (Sheller et al., 2020, 10 institutions)",
    "deviation over seeds, iil / fedavg": "about 10 (Sheller et al., 2020)",
    "deviation over seeds, ciil / fedavg": "about 10 (Sheller et al., 2020)",
}
Summary = list[dict[str, Any]]


def run(name: str, data: Path, out: Path, jobs: int | None, small: bool) -> Path:
    """Run an experiment, or what is left of it; its folder."""
    file = EXPERIMENTS / f"{name}.yaml"
    if small:
        content = read_yaml(file, "the definition of an experiment") | SMALL[name]
        content["job"] = str(EXPERIMENTS / content["job"])
        for arm in content["arms"].values():
            if "job" in arm:
                arm["job"] = str(EXPERIMENTS / arm["job"])
        file = out / f"{name}.yaml"
        file.write_text(yaml.safe_dump(content, sort_keys=False), "utf-8")
    command = ["experiment", str(file), "--data", str(data), "--out", str(out / name)]
    if fedseg(command + (["--jobs", str(jobs)] if jobs else [])):
        raise SystemExit(f"{name} did not finish; call the script again.")
    return out / name


def table(folder: Path) -> list[str]:
    """Each arm's primary score: where it was tested, over sites and cases, the worst site, and over seeds."""
    rows = primary(folder)
    lines = [
        "| arm | model | tested | mean over sites | mean over cases | worst site | spread over sites | "
        "deviation over seeds | sites | cases |",
        "|---" * 10 + "|",
    ]
    for row in rows:
        deviation = "" if row["seed_deviation"] is None else f"{row['seed_deviation']:.4f}"
        numbers = [number(row["macro"]), number(row["pooled"]), f"{row['worst_site']} {row['worst']:.3f}"]
        cells = [row["arm"], row["model"], row["scope"].replace("_", " "), *numbers, number(row["spread"]), deviation]
        lines.append(f"| {' | '.join([*cells, str(row['sites']), str(row['cases'])])} |")
    return lines


def primary(folder: Path) -> Summary:
    """Rows of the primary score, mean over regions."""
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    return [row for row in summary["rows"] if row["metric"] == summary["primary"] and row["region"] == "mean"]


def claims(folder: Path) -> list[str]:
    """Ratios that papers give, beside theirs."""
    home: dict[str, dict[str, Any]] = {}
    for row in primary(folder):
        if row["scope"] == "home":
            home.setdefault(row["arm"], row)  # the shared model stands first; some methods have own models only
    found: dict[str, float | None] = {"fedavg / central": ratio(home, "fedavg", "central", "macro")}
    for arm in ("iil", "ciil"):
        found[f"deviation over seeds, {arm} / fedavg"] = ratio(home, arm, "fedavg", "seed_deviation")
        found[f"{arm} / fedavg"] = ratio(home, arm, "fedavg", "macro")
    for arm in ("fedcostwavg", "fedcostwavg_half_uniform", "fedprox", "scaffold", "fedbn", "ensemble"):
        if arm in home:
            found[f"{arm} / fedavg"] = ratio(home, arm, "fedavg", "macro")
    lines = ["| what | here | published |", "|---|---|---|"]
    for name, value in found.items():
        lines.append(f"| {name} | {'' if value is None else f'{value:.4f}'} | {PUBLISHED.get(name, '')} |")
    return lines


def ratio(rows: Mapping[str, Mapping[str, Any]], one: str, other: str, key: str) -> float | None:
    """Of a key of two arms; None where an arm or its number is missing."""
    values = [rows.get(arm, {}).get(key) for arm in (one, other)]
    return None if None in values or not values[1] else values[0] / values[1]


def costs(folder: Path) -> list[str]:
    """What each arm took, summed over seeds and folds."""
    frame = pd.read_csv(folder / "costs.csv")
    wanted = ["steps", "samples", "cpu_seconds", "bytes_sent", "bytes_received"]
    sums = frame.groupby(["arm", "quantity"], sort=False)["value"].sum().unstack()
    lines = ["| arm | steps | samples | CPU minutes | MB sent | MB received |", "|---" * 6 + "|"]
    for arm, row in sums[wanted].iterrows():
        numbers: Iterable[str] = (
            f"{row['steps']:.0f}", f"{row['samples']:.0f}", f"{row['cpu_seconds'] / 60:.1f}",
            f"{row['bytes_sent'] / 1e6:.1f}", f"{row['bytes_received'] / 1e6:.1f}",
        )  # fmt: skip
        lines.append(f"| {arm} | {' | '.join(numbers)} |")
    return lines


def number(value: float) -> str:
    return f"{value:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--jobs", type=int, help="units at a time")
    parser.add_argument("--small", action="store_true", help="one round, one seed: only to see that it works")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    lines = ["Figures of a small run mean nothing.", ""] if options.small else []
    for name in options.only:
        folder = run(name, options.data.resolve(), options.out, options.jobs, options.small)
        lines += [f"## {name}", "", *table(folder), "", *claims(folder), "", *costs(folder), ""]
    (options.out / "tables.md").write_text("\n".join(lines), "utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

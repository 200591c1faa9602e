"""Experiments of a benchmark, run or gone on with, and their results as Markdown tables, in a file and in a page.

Definitions lie in ``experiments/``; a benchmark names those it runs and the tables it wants of each.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from fedseg.cli import main as fedseg
from fedseg.files.yaml_documents import read_yaml

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
Summary = list[dict[str, Any]]
Table = Callable[[Path], list[str]]


def run(name: str, data: Path, out: Path, jobs: int | None, small: Mapping[str, Any] | None = None) -> Path:
    """Run an experiment, or what is left of it; its folder. ``small`` replaces keys of its definition."""
    file = EXPERIMENTS / f"{name}.yaml"
    if small is not None:
        content = read_yaml(file, "the definition of an experiment") | dict(small)
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
    """Each arm's primary score: where it was tested, over sites and cases with intervals, worst site, seeds."""
    lines = [
        "| arm | model | tested | mean over sites (95%) | mean over cases (95%) | worst site | spread over sites | "
        "deviation over seeds | sites | cases |",
        "|---" * 10 + "|",
    ]
    for row in primary(folder):
        deviation = "" if row["seed_deviation"] is None else f"{row['seed_deviation']:.4f}"
        means = [f"{row[of]:.4f}{bounds(row[f'{of}_low'], row[f'{of}_high'])}" for of in ("macro", "pooled")]
        numbers = [*means, f"{row['worst_site']} {row['worst']:.3f}", f"{row['spread']:.4f}", deviation]
        cells = [row["arm"], row["model"], row["scope"].replace("_", " "), *numbers]
        lines.append(f"| {' | '.join([*cells, str(row['sites']), str(row['cases'])])} |")
    return lines


def primary(folder: Path) -> Summary:
    """Rows of the primary score, mean over regions."""
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    return [row for row in summary["rows"] if row["metric"] == summary["primary"] and row["region"] == "mean"]


def bounds(low: float | None, high: float | None) -> str:
    """An interval in brackets; nothing where there is none."""
    return "" if low is None or high is None else f" ({low:.4f} to {high:.4f})"


def tests(folder: Path) -> list[str]:
    """Every arm less the reference on the same patients."""
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    lines = ["| arm | model | tested | less the reference (95%) | p, corrected | patients |", "|---" * 6 + "|"]
    for row in summary["comparisons"]:
        if row["metric"] == summary["primary"]:
            difference = f"{row['difference']:+.4f}{bounds(row['low'], row['high'])}"
            cells = [row["arm"], row["model"], row["scope"].replace("_", " "), difference, f"{row['p_holm']:.4f}"]
            lines.append(f"| {' | '.join([*cells, str(row['patients'])])} |")
    return lines if len(lines) > 2 else []


def left_out(folder: Path) -> list[str]:
    """The primary score at each site of the models that it did not help to train, and of those that it did."""
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    lines = ["| arm | site | without it | with it | gain by taking part (95%) | patients |", "|---" * 6 + "|"]
    for row in summary["left_out"]:
        if row["metric"] == summary["primary"] and row["with_it"] is not None:
            gain = f"{row['gain']:+.4f}{bounds(row['gain_low'], row['gain_high'])}"
            cells = [row["arm"], row["site"], f"{row['without']:.4f}", f"{row['with_it']:.4f}", gain]
            lines.append(f"| {' | '.join([*cells, str(row['patients'])])} |")
    for row in primary(folder):
        if row["scope"] == "left_out" and row["with_it"] is not None:
            gain = f"{row['gain']:+.4f}{bounds(row['gain_low'], row['gain_high'])}"
            cells = [row["arm"], "all, gain by patient", f"{row['macro']:.4f}", f"{row['with_it']:.4f}", gain]
            lines.append(f"| {' | '.join([*cells, str(row['patients'])])} |")
    return lines if len(lines) > 2 else []


def sites(folder: Path) -> list[str]:
    """The primary score of each arm at each site, as mean over its cases and seeds.

    A site's own models are told at home; where an arm has a shared model, that one. Nothing where sites are left out.
    """
    frame = results(folder)
    if any(row["scope"] == "left_out" for row in primary(folder)):
        return []
    places = sorted(frame["evaluated_at"].unique(), key=lambda place: (len(place), place))
    counts = frame.groupby("evaluated_at")["case"].nunique()
    lines = [f"| arm | {' | '.join(f'{place} ({counts[place]} cases)' for place in places)} |"]
    lines.append("|---" * (len(places) + 1) + "|")
    for arm, part in frame.groupby("arm", sort=False):
        shared = part[part["site"] == "-"]
        own = shared if len(shared) else part[part["site"] == part["evaluated_at"]]
        means = own.groupby("evaluated_at")["value"].mean()
        lines.append(f"| {arm} | {' | '.join(f'{means[place]:.3f}' for place in places)} |")
    return lines


def results(folder: Path) -> pd.DataFrame:
    """Values of the primary score, mean over regions, one row for each model and case."""
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    frame = pd.read_csv(folder / "results.csv", dtype={"site": str, "case": str, "patient": str})
    chosen = (frame["metric"] == summary["primary"]) & (frame["region"] == "mean")
    return frame[chosen].dropna(subset=["value"])


def of_deviations(rows: Mapping[str, Mapping[str, Any]], one: str, other: str) -> str:
    """Ratio of the standard deviations over seeds; nothing where an arm or its number is missing."""
    values = [rows.get(arm, {}).get("seed_deviation") for arm in (one, other)]
    return "" if None in values or not values[1] else f"{values[0] / values[1]:.2f}"


def of_means(folder: Path, one: str, other: str, samples: int = 10_000) -> str:
    """Ratio of the means over sites of two arms at home, with an interval: patients of each site are drawn with
    replacement, the same for both arms. Nothing where an arm is missing.
    """
    frame = results(folder)
    frame = frame[(frame["site"] == "-") | (frame["site"] == frame["evaluated_at"])]
    parts = []
    for arm in (one, other):
        part = frame[frame["arm"] == arm]
        part = part[part["site"] == "-"] if (part["site"] == "-").any() else part
        parts.append(part.groupby(["evaluated_at", "patient"])["value"].mean())
    pairs = pd.concat(parts, axis=1, join="inner", keys=("one", "other"))
    if pairs.empty:
        return ""
    random = np.random.default_rng(0)
    means = np.zeros((2, samples))
    exact = np.zeros(2)
    groups = [group.to_numpy() for _, group in pairs.groupby(level="evaluated_at")]
    for group in groups:
        drawn = group[random.integers(len(group), size=(samples, len(group)))].mean(axis=1)
        means += drawn.T / len(groups)
        exact += group.mean(axis=0) / len(groups)
    low, high = np.quantile(means[0] / means[1], [0.025, 0.975])
    return f"{exact[0] / exact[1]:.4f}{bounds(low, high)}"


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


def missing_marks(page: Path, names: Iterable[str]) -> str | None:
    """Which marks a page lacks for these tables, as a sentence; None where it has all."""
    text = page.read_text("utf-8") if page.is_file() else ""
    for name in names:
        begin, end = _marks(name)
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
            return f"{page} needs the marks '{begin}' and '{end}', each once."
    return None


def write_between_marks(page: Path, tables: Mapping[str, str]) -> None:
    """Put each experiment's tables between its two marks; every experiment has to have them."""
    if (why := missing_marks(page, tables)) is not None:
        raise SystemExit(why)
    text = page.read_text("utf-8")
    for name, lines in tables.items():
        begin, end = _marks(name)
        before, rest = text.split(begin)
        text = f"{before}{begin}\n\n{lines}\n\n{end}{rest.split(end)[1]}"
    page.write_text(text, "utf-8")


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- begin of {name} -->", f"<!-- end of {name} -->"


def arguments(about: str, names: Sequence[str]) -> argparse.Namespace:
    """The arguments of a benchmark that runs experiments.

    Raises:
        SystemExit: the page lacks marks, or would get figures of a small run.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=list(names), choices=names)
    parser.add_argument("--jobs", type=int, help="units at a time")
    parser.add_argument("--small", action="store_true", help="one round, one seed: only to see that it works")
    parser.add_argument("--page", type=Path, help="page that gets the tables between its marks; not with --small")
    options = parser.parse_args()
    if options.page and options.small:
        parser.error("--page cannot go with --small, whose figures mean nothing: leave out one of them")
    if options.page and (why := missing_marks(options.page, options.only)) is not None:
        parser.error(why)
    return options


def publish(folders: Mapping[str, Path], parts: Sequence[Table], options: argparse.Namespace) -> None:
    """Print the tables of each experiment, write them to OUT/tables.md and, with ``--page``, between its marks."""
    tables = {}
    for name, folder in folders.items():
        tables[name] = "\n\n".join("\n".join(lines) for lines in (part(folder) for part in parts) if lines)
    text = "".join(f"## {name}\n\n{lines}\n\n" for name, lines in tables.items())
    if options.small:
        text = f"Figures of a small run mean nothing.\n\n{text}"
    (options.out / "tables.md").write_text(text, "utf-8")
    print(text)
    if options.page:
        write_between_marks(options.page, tables)

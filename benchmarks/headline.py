"""The claims of the defining papers beside figures of this software on real images: three experiments and their tables.

    python benchmarks/headline.py --data ../shared/data --out runs/headline

- ``hippocampus_ten_sites``: 200 hippocampi at ten sites of unequal sizes, each with a scanner of its own;
- ``lgg_institutions``: lower-grade glioma of four institutions, a third of their patients held out;
- ``lgg_left_out``: each of these institutions in turn takes no part, and all its patients are tests.

The definitions lie in ``experiments/``. A run that was stopped goes on where it was. ``--small`` trains one round with
one seed, to see that everything works; its figures mean nothing. The tables are written to OUT/tables.md, and with
``--page FILE`` between the marks of that page, as in ``docs/evidence.md``.
"""

from pathlib import Path
from typing import Any

from experiment_tables import (
    arguments,
    costs,
    left_out,
    of_deviations,
    of_means,
    primary,
    publish,
    run,
    sites,
    table,
    tests,
)

NAMES = ("hippocampus_ten_sites", "lgg_institutions", "lgg_left_out")
SMALL = {
    "hippocampus_ten_sites": {"budget": {"rounds": 1}, "seeds": [0], "sites": ["site-8", "site-9", "site-10"]},
    "lgg_institutions": {"budget": {"rounds": 1}, "seeds": [0]},
    "lgg_left_out": {"budget": {"rounds": 1}, "seeds": [0]},
}
PUBLISHED = {
    "fedavg / central": "0.988 (Sheller et al., 2018, .852 of .862); 0.99 (Sheller et al., 2020, 10 institutions)",
    "deviation over seeds, iil / fedavg": "about 10 (Sheller et al., 2018)",
    "deviation over seeds, ciil / fedavg": "about 10 (Sheller et al., 2018)",
    "iil / fedavg": "below 1 (Sheller et al., 2018 and 2020)",
    "ciil / fedavg": "below 1 (Sheller et al., 2018 and 2020)",
    "fedcostwavg / fedavg": "above 1: first in FeTS 2021 (Maechler et al., 2021; Dice of WT, ET, TC .825, .748, .793)",
    "fedcostwavg / fedcostwavg_half_uniform": "none: the ablation is not in the paper",
    "splitavg / central": "0.962 (Zhang et al., 2022: accuracy for retinopathy, not Dice)",
}


def claims(folder: Path) -> list[str]:
    """Ratios that papers give, beside theirs."""
    home: dict[str, dict[str, Any]] = {}
    for row in primary(folder):
        if row["scope"] == "home":
            home.setdefault(row["arm"], row)  # the shared model stands first; some methods have own models only
    found: dict[str, str] = {"fedavg / central": of_means(folder, "fedavg", "central")}
    for arm in ("iil", "ciil"):
        found[f"deviation over seeds, {arm} / fedavg"] = of_deviations(home, arm, "fedavg")
    for arm in home:
        if arm not in ("fedavg", "central"):
            found[f"{arm} / fedavg"] = of_means(folder, arm, "fedavg")
            found[f"{arm} / central"] = of_means(folder, arm, "central")
    found["fedcostwavg / fedcostwavg_half_uniform"] = of_means(folder, "fedcostwavg", "fedcostwavg_half_uniform")
    lines = ["| what | here (95%) | published |", "|---|---|---|"]
    rows = [f"| {name} | {value} | {PUBLISHED.get(name, '')} |" for name, value in found.items() if value]
    return lines + rows if rows else []


def main() -> None:
    options = arguments(str(__doc__), NAMES)
    options.out.mkdir(parents=True, exist_ok=True)
    folders = {}
    for name in options.only:
        small = SMALL[name] if options.small else None
        folders[name] = run(name, options.data.resolve(), options.out, options.jobs, small)
    publish(folders, (table, tests, claims, left_out, sites, costs), options)


if __name__ == "__main__":
    main()

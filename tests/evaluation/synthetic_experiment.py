"""The folder of an experiment as the runner leaves it: plausible scores of drawn patients at sites of unequal size."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fedseg.evaluation.experiment_folder import COST_COLUMNS, CURVE_COLUMNS, RESULT_COLUMNS
from fedseg.statistics.document import FederationStatistics
from fedseg.statistics.histogram import Histogram
from fedseg.statistics.quantities import quantities
from fedseg.statistics.site_statistics import Statistics
from fedseg.tasks.registry import HIPPOCAMPUS

SITES = {"north": 14, "east": 9, "south": 6, "west": 3}
"""Test cases of each site."""
REGIONS = ("anterior", "posterior")
GAIN = {"central": 0.03, "fedavg": 0.022, "fedcostwavg": 0.024, "ditto": 0.03, "ensemble": 0.005, "local": 0.0}
"""How much better an arm is than a site alone, in Dice."""
_LEVEL = {"north": 0.86, "east": 0.84, "south": 0.83, "west": 0.76}
OWN = ("local", "ditto")
"""Arms with a model of each site."""


def write_experiment(
    folder: Path,
    arms: Sequence[str] = tuple(GAIN),
    seeds: int = 3,
    left_out: bool = True,
    seed: int = 5,
    statistics: bool = True,
) -> Path:
    """Write all files of an experiment and return its folder.

    Args:
        folder: made if it is missing.
        arms: out of ``GAIN``.
        seeds: how often each arm was trained.
        left_out: whether ``fedavg`` was trained without each site, too.
        seed: of all draws.
        statistics: whether there is a ``statistics.json``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    patients = {site: generator.normal(0, 0.03, count) for site, count in SITES.items()}
    rows = [row for arm in arms for run in range(seeds) for row in _scored(arm, run, patients, generator)]
    if left_out and "fedavg" in arms:
        rows += [row for run in range(seeds) for row in _without_a_site(run, patients, generator)]
    frame = pd.DataFrame(rows, columns=list(RESULT_COLUMNS))
    frame.to_csv(folder / "results.csv", index=False)
    pd.DataFrame(_costs(arms, seeds, generator), columns=list(COST_COLUMNS)).to_csv(folder / "costs.csv", index=False)
    curves = pd.DataFrame(_curves(arms, seeds, generator), columns=list(CURVE_COLUMNS))
    curves.to_csv(folder / "curves.csv", index=False)
    (folder / "experiment.json").write_text(json.dumps(make_facts(arms, seeds), indent=1), "utf-8")
    if statistics:
        (folder / "statistics.json").write_text(json.dumps(make_statistics(), indent=1), "utf-8")
    return folder


def _scored(arm: str, run: int, patients: dict[str, np.ndarray], generator: np.random.Generator) -> Iterator[list[Any]]:
    """Every model of an arm on every case; a site's own model is worse elsewhere."""
    for model in SITES if arm in OWN else ("-",):
        for place in SITES:
            loss = 0.12 if model not in ("-", place) else 0.0
            for index, patient in enumerate(patients[place]):
                level = _LEVEL[place] + GAIN[arm] + patient - loss
                yield from _case(arm, run, "-", model, place, index, level, generator)


def _without_a_site(run: int, patients: dict[str, np.ndarray], generator: np.random.Generator) -> Iterator[list[Any]]:
    for place in SITES:
        for index, patient in enumerate(patients[place]):
            level = _LEVEL[place] - 0.02 + patient
            yield from _case("fedavg", run, f"loso-{place}", "-", place, index, level, generator)


def _case(
    arm: str, run: int, fold: str, model: str, place: str, index: int, level: float, generator: np.random.Generator
) -> Iterator[list[Any]]:
    """All metrics and regions of one case; the first case of the smallest site has no posterior part."""
    head = ["sizes", arm, run, fold, model, place, f"{place}-{index:02d}", f"{place}-p{index:02d}"]
    dice = {r: float(np.clip(level - 0.015 * i + generator.normal(0, 0.01), 0, 1)) for i, r in enumerate(REGIONS)}
    empty = dict.fromkeys(REGIONS, "neither")
    if place == "west" and index == 0:
        dice["posterior"], empty["posterior"] = float("nan"), "both"
    values = {
        "dice": dice,
        "hd95": {r: 1 + 25 * (1 - v) ** 1.5 for r, v in dice.items()},
        "nsd": {r: min(1.0, v + 0.09) for r, v in dice.items()},
        "volume_error": {r: float(generator.normal(0.02, 0.08)) for r in dice},
    }
    for metric, by_region in values.items():
        for region, value in by_region.items():
            yield [*head, region, metric, value, empty[region]]
        yield [*head, "mean", metric, float(np.nanmean(list(by_region.values()))), "neither"]


def _costs(arms: Sequence[str], seeds: int, generator: np.random.Generator) -> Iterator[list[Any]]:
    for arm in arms:
        for run in range(seeds):
            alone = arm in ("central", "local", "ensemble")
            values = {
                "rounds": 0 if alone else 15,
                "steps": 900,
                "samples": 7200,
                "cpu_seconds": 820 + generator.normal(0, 20),
                "wall_seconds": 450 + generator.normal(0, 12),
                "bytes_sent": 0 if alone else 15 * 4 * 4_800_000,
                "bytes_received": 0 if alone else 15 * 4 * 4_810_000,
                "peak_memory_mib": 1450 + generator.normal(0, 30),
                "kwh": (820 + generator.normal(0, 20)) * 15 / 3.6e6,
            }
            yield from (["sizes", arm, run, "-", name, value] for name, value in values.items())


def _curves(arms: Sequence[str], seeds: int, generator: np.random.Generator) -> Iterator[list[Any]]:
    for arm in arms:
        for run in range(seeds):
            for site in SITES if arm != "central" else ("-",):
                for number in range(1, 16):
                    top = 0.83 + GAIN[arm]
                    value = top * (1 - np.exp(-number / 3.0)) + generator.normal(0, 0.006)
                    yield ["sizes", arm, run, "-", site, number, 480 * number, "dice", value]


def make_facts(arms: Sequence[str], seeds: int) -> dict[str, Any]:
    """``experiment.json``."""
    plan = {"network": {"name": "unet", "channels": [16, 32, 64]}, "training": {"local_epochs": 2, "batch_size": 4}}
    kinds = {arm: arm if arm in ("central", "local", "ensemble") else "job" for arm in arms}
    return {
        "schema": "fedseg-experiment-1",
        "experiment": "sizes",
        "description": "Hippocampus at four hospitals of unequal size",
        "definition": {"experiment": "sizes", "job": "jobs/hippocampus_fedavg", "budget": {"samples": 7200}},
        "digest": "3b" * 32,
        "versions": {"fedseg": "0.6.0", "nvflare": "2.9.0", "monai": "1.6.1", "torch": "2.13.0", "numpy": "2.4.6"},
        "machine": {"system": "Linux 6.1", "processor": "x86_64", "cores": 2, "memory_mib": 16000, "gpus": []},
        "task": HIPPOCAMPUS.to_dict(),
        "reference": "local" if "local" in arms else arms[0],
        "sites": {
            site: {"training": 4 * n, "validation": n, "test": n, "patients": 6 * n, "digest": f"{n:02x}" * 32}
            for site, n in SITES.items()
        },
        "external": {},
        "arms": {
            arm: {"kind": kind, "rounds": 15, "plan": plan, **({"job": f"hippocampus_{arm}"} if kind == "job" else {})}
            for arm, kind in kinds.items()
        },
        "watts": {"cpu": 15.0, "gpu": None},
        "started": "2026-03-14T09:00:00+00:00",
        "finished": "2026-03-14T11:41:00+00:00",
        "complete": True,
        "units": {f"{arm}_seed{run}": {"digest": "ab" * 32, "done": True} for arm in arms for run in range(seeds)},
    }


def make_statistics() -> dict[str, Any]:
    """``statistics.json`` of the same sites: t1 is brighter at each next one, and the last has less posterior part."""
    sites = {site: _counted(6 * count, place) for place, (site, count) in enumerate(SITES.items())}
    return FederationStatistics(HIPPOCAMPUS, sites).to_dict()


def _counted(cases: int, place: int) -> Statistics:
    what = quantities(HIPPOCAMPUS, fine=True)
    values = {
        "spacing: right-left": [1.0], "spacing: front-back": [1.0], "spacing: foot-head": [1.0],
        "normalised: t1": [-1.2 + 0.2 * place, 0.1 + 0.2 * place, 0.9 + 0.2 * place],
        "volume: anterior": [1.4, 1.6, 1.9], "volume: posterior": [1.3, 1.5, 1.8],
    }  # fmt: skip
    histograms = {}
    for name, found in values.items():
        bins = [int(number) for number in what.scales[name].index(np.array(found))]
        histograms[name] = Histogram(what.scales[name], {(bin, bin): cases / len(bins) for bin in bins})
    classes = {"anterior": 0.5 * cases, "posterior": (0.5 - 0.15 * (place == 3)) * cases}
    return Statistics(cases, cases, 3, True, histograms, {}, {"classes": classes})

"""A run folder as a simulation leaves it, with plausible numbers and small drawn heads instead of patients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

SITES = ("hospital-a", "hospital-b", "hospital-c")
REGIONS = ("ET", "TC", "WT")
LEVELS = {"hospital-a": (0.84, 0.88, 0.92), "hospital-b": (0.79, 0.83, 0.90), "hospital-c": (0.70, 0.77, 0.86)}
CASES = {"hospital-a": 12, "hospital-b": 9, "hospital-c": 5}


def make_summary(rounds: int = 10, seed: int = 7) -> dict[str, Any]:
    """A summary of three hospitals training on BraTS."""
    generator = np.random.default_rng(seed)
    history = [_round(index, generator) for index in range(rounds)]
    final, best = _model(0.0, generator), {**_model(0.008, generator), "round": max(rounds - 3, 0)}
    others = {
        "Intensity threshold": ("FLAIR above Otsu's threshold inside the brain; no training.", 0.45),
        "hospital-a alone": ("Trained at hospital-a only, scored at the other hospitals.", 0.1),
        "hospital-b alone": ("Trained at hospital-b only, scored at the other hospitals.", 0.13),
        "All cases in one place": ("Central training on the cases of every hospital: the upper bound.", -0.012),
    }
    comparison = []
    for name, (description, loss) in others.items():
        scored = {s: {"dice": _dice(s, -loss, generator)} for s in SITES if s not in name}
        mean = float(np.mean([v["dice"]["mean"] for v in scored.values()]))
        comparison.append({"name": name, "description": description, "sites": scored, "mean_dice": mean})
    own = {a: {b: _dice(b, 0.0 if a == b else -0.14, generator)["mean"] for b in SITES} for a in SITES}
    return {
        "schema": 1,
        "run_id": "3f9c2a7e",
        "job": "brats_fedcostwavg",
        "task": "brats",
        "method": "FedCostWAvg",
        "date": "2025-03-14",
        "versions": {"fedseg": "0.1.0", "nvflare": "2.9.0", "monai": "1.6.1", "torch": "2.13.0"},
        "seed": seed,
        "training": {"local_epochs": 2},
        "empty_convention": "brats",
        "threads_per_site": 2,
        "sites": list(SITES),
        "rounds": history,
        "final": final,
        "best": best,
        "comparison": comparison,
        "cross_site": {**own, "federated": {s: final["sites"][s]["dice"]["mean"] for s in SITES}},
        "events": [
            {"round": 3, "site": "hospital-c", "what": "Left out: no answer within 600 s."},
            {"round": 6, "site": "hospital-b", "what": "Refused the round's plan (policy: at most 4 local epochs)."},
        ],
        "privacy": {},
        "stopped": {"round": rounds - 1, "reason": "3 rounds brought no model better than 0.8341"},
        "cost": {
            "wall_seconds": 4321.0,
            "bytes_up": 10 * 3 * 76_000_000,
            "bytes_down": 10 * 3 * 76_100_000,
            "peak_rss_mb": {"server": 1450.0, **{s: 3800.0 + 100 * i for i, s in enumerate(SITES)}},
        },
    }


def _round(index: int, generator: np.random.Generator) -> dict[str, Any]:
    progress = 1 - np.exp(-(index + 0.4) / 3)
    sites = {}
    for number, site in enumerate(SITES):
        if index == 3 and site == "hospital-c":
            continue
        loss = 1.1 - 0.75 * progress + 0.08 * number + generator.normal(0, 0.015)
        sites[site] = {
            "num_samples": 5 * CASES[site],
            "num_steps": 60 + 20 * number,
            "train_loss": loss,
            "cost": loss,
            "val_loss": loss + 0.06,
            "val_dice": {
                k: float(np.clip(v * progress + generator.normal(0, 0.012), 0, 1))
                for k, v in zip((*REGIONS, "mean"), (*LEVELS[site], float(np.mean(LEVELS[site]))), strict=True)
            },
            "bytes_up": 76_000_000 + 1000 * number,
            "bytes_down": 76_100_000,
            "seconds": 290.0 + 60 * (2 - number) + generator.normal(0, 8),
        }
    shares = {s: CASES[s] * generator.uniform(0.8, 1.25) for s in sites}
    weights = {s: share / sum(shares.values()) for s, share in shares.items()}
    rule = {"name": "FedCostWAvg", "alpha": 0.5, "cost": "validation loss"}
    longest = max(s["seconds"] for s in sites.values())
    total = sum(CASES[s] for s in sites)
    return {
        "round": index,
        "seconds": longest + 25,
        "rule": rule,
        "weights": weights,
        "scales": {},
        "selection": dict.fromkeys(SITES, "all sites are asked"),
        "asked": list(SITES),
        "val_dice": sum(CASES[s] * sites[s]["val_dice"]["mean"] for s in sites) / total,
        "sites": sites,
    }


def _dice(site: str, shift: float, generator: np.random.Generator) -> dict[str, float]:
    values = [float(np.clip(v + shift + generator.normal(0, 0.01), 0, 0.99)) for v in LEVELS[site]]
    return {**dict(zip(REGIONS, values, strict=True)), "mean": float(np.mean(values))}


def _model(shift: float, generator: np.random.Generator) -> dict[str, Any]:
    sites = {}
    for site in SITES:
        dice = _dice(site, shift, generator)
        hd95 = {r: 3.5 + 60 * (1 - dice[r]) ** 1.5 for r in REGIONS}
        empty = {r: {"both": 0, "reference": 0, "prediction": 0} for r in REGIONS}
        empty["ET"]["both"] = int(site != "hospital-b")
        empty["ET"]["prediction"] = int(site == "hospital-c")
        sites[site] = {"cases": CASES[site], "dice": dice, "hd95": hd95, "empty": empty}
    means = {s: v["dice"]["mean"] for s, v in sites.items()}
    pooled = sum(means[s] * CASES[s] for s in SITES) / sum(CASES.values())
    return {
        "model": "report/final.pt",
        "split": "test",
        "sites": sites,
        "mean_dice": float(np.mean(list(means.values()))),
        "pooled_dice": pooled,
    }


def write_case_scores(out: Path, summary: dict[str, Any], shift: float = 0.0, seed: int = 3) -> Path:
    """Write ``out/state`` as the sites leave it: four validation cases each, and test cases as many as ``CASES`` says.

    Dice lie around the sites' levels plus ``shift``. Returns ``out``.
    """
    generator = np.random.default_rng(seed)
    for site in SITES:
        content: dict[str, Any] = {}
        for split, count in (("test", CASES[site]), ("validation", 4)):
            content[split] = []
            for index in range(count):
                dice = {region: _dice(site, shift, generator)[region] for region in REGIONS}
                hd95 = {region: 3.5 + 60 * (1 - value) ** 1.5 for region, value in dice.items()}
                case = {"id": f"{split}-{index}", "label": f"/data/{site}/{split}-{index}.nii.gz"}
                content[split].append({**case, "dice": dice, "hd95": hd95})
        folder = out / "state" / site / summary["run_id"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "evaluation-last.json").write_text(json.dumps(content), "utf-8")
    return out


def draw_case(folder: Path, name: str, seed: int, error: float = 0.0) -> dict[str, Any]:
    """Four sequences, a label (BraTS 2021 values) and a faulty prediction of a drawn head; returns their paths.

    The arrays lie in LPS order, as BraTS files do: 60 x 64 x 40 voxels of 3 x 3 x 3.5 mm.
    """
    generator = np.random.default_rng(seed)
    shape = (60, 64, 40)
    x, y, z = np.indices(shape).astype(float)
    head = ((x - 30) / 23) ** 2 + ((y - 32) / 28) ** 2 + ((z - 18) / 17) ** 2
    texture = ndimage.gaussian_filter(generator.normal(size=shape), 1.2) * 1.6
    folds = ndimage.gaussian_filter(generator.normal(size=shape), 2.4) * 6 > 0.35
    centre = np.array([18 + 24 * generator.random(), 20 + 24 * generator.random(), 18 + 4 * generator.random()])
    bumps = ndimage.gaussian_filter(generator.normal(size=shape), 2.5) * 9

    def tumour(shift: float, grow: float) -> np.ndarray:
        place = centre + shift
        d = np.sqrt((x - place[0]) ** 2 + (y - place[1]) ** 2 + ((z - place[2]) * 1.1) ** 2) + bumps
        label = np.zeros(shape, np.uint8)
        label[(d < 12 * grow) & (head < 0.95)], label[d < 7.5 * grow], label[d < 4.5] = 2, 4, 1
        label[head >= 1] = 0
        return label

    label, prediction = tumour(0, 1), tumour(7 * error, 1 - 0.3 * error)
    brain = head < 1
    bases = {
        "t1": (500, 0, -60, -30),
        "t1ce": (500, -40, -40, 420),
        "t2": (420, 250, 330, 180),
        "flair": (450, 90, 420, 200),
    }
    affine = np.diag([-3.0, -3.0, 3.5, 1.0])
    folder.mkdir(parents=True, exist_ok=True)
    paths: dict[str, Any] = {"images": []}
    for channel, (base, necrosis, oedema, enhancing) in bases.items():
        image = base + 120 * folds * (1 if channel.startswith("t1") else -1) + 90 * texture
        image = image + necrosis * (label == 1) + oedema * (label == 2) + enhancing * (label == 4)
        paths["images"].append(str(folder / f"{name}_{channel}.nii.gz"))
        nib.save(nib.Nifti1Image((image.clip(20) * brain).astype(np.int16), affine), paths["images"][-1])
    for key, array in (("label", label), ("prediction", prediction)):
        paths[key] = str(folder / f"{name}_{key}.nii.gz")
        nib.save(nib.Nifti1Image(array, affine), paths[key])
    return paths


def write_run(out: Path, summary: dict[str, Any] | None = None, pictures: bool = False) -> Path:
    """Write ``out/report`` as a run leaves it and return ``out``."""
    report = out / "report"
    report.mkdir(parents=True, exist_ok=True)
    summary = make_summary() if summary is None else summary
    (report / "summary.json").write_text(json.dumps(summary), "utf-8")
    if pictures:
        overlays, gallery = [], {}
        for row, site in enumerate(SITES):
            ranks = (("best", 0.95, 0.05), ("median", 0.83, 0.35), ("worst", 0.41, 0.9))
            for column, (rank, dice, error) in enumerate(ranks):
                case = draw_case(out / "cases", f"{site}-{rank}", 10 * row + column, error)
                overlays.append({"site": site, "case": f"{site}-{rank}", "rank": rank, "dice": dice, **case})
            gallery[site] = [{"images": case["images"], "label": case["label"]}]
        (report / "overlays.json").write_text(json.dumps(overlays), "utf-8")
        (report / "gallery.json").write_text(json.dumps(gallery), "utf-8")
    return out

"""What the report of a simulated run needs pictures of: cases of each site, and the best, median and worst result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedseg.data.datalist import Case, read_datalist
from fedseg.data.grid import write_mask
from fedseg.scoring import segment_cases
from fedseg.tasks.labels import to_values
from fedseg.training.model_file import ModelFile

Entry = dict[str, Any]


def write_gallery(data: Path, sites: list[str], report: Path) -> None:
    """``gallery.json``: the first training case of each site."""
    gallery = {}
    for site in sites:
        cases = read_datalist(data / site).training[:1]
        gallery[site] = [{"images": [str(p.resolve()) for p in c.images], "label": str(c.label)} for c in cases]
    (report / "gallery.json").write_text(json.dumps(gallery, indent=1), "utf-8")


def write_overlays(model: ModelFile, state: Path, run_id: str, report: Path, overlap: float) -> None:
    """``overlays.json`` and masks of the best, the median and the worst case of the last model over all sites."""
    entries = []
    for rank, site, scored in _ranked(_read_scores(state, run_id)):
        case = Case(tuple(Path(p) for p in scored["images"]), Path(scored["label"]), "")
        prepared, predicted = next(segment_cases(model, [case], "auto", overlap))
        path = report / "overlays" / f"{rank}.nii.gz"
        write_mask(to_values(model.task, predicted), prepared.original, path)
        entries.append(
            {
                "site": site,
                "case": scored["id"],
                "rank": rank,
                "dice": _mean_dice(scored),
                "images": scored["images"],
                "label": scored["label"],
                "prediction": str(path.resolve()),
            }
        )
    (report / "overlays.json").write_text(json.dumps(entries, indent=1), "utf-8")


def _read_scores(state: Path, run_id: str) -> list[tuple[str, Entry]]:
    """Each case of every site's final split, as the executors left them on the sites' disks."""
    found = []
    for path in sorted(state.glob(f"*/{run_id}/evaluation-last.json")):
        splits = json.loads(path.read_text("utf-8"))
        split = "test" if splits.get("test") else "validation"
        found += [(path.parent.parent.name, case) for case in splits.get(split, [])]
    return found


def _ranked(scores: list[tuple[str, Entry]]) -> list[tuple[str, str, Entry]]:
    order = sorted(
        ((_mean_dice(c), s, c["id"], c) for s, c in scores if _mean_dice(c) is not None), key=lambda x: x[:3]
    )
    if not order:
        return []
    picks = {"best": len(order) - 1, "median": len(order) // 2, "worst": 0}
    seen: set[int] = set()
    result = []
    for rank, index in picks.items():
        if index not in seen:
            result.append((rank, order[index][1], order[index][3]))
            seen.add(index)
    return result


def _mean_dice(case: Entry) -> float | None:
    values = [v for v in case["dice"].values() if v is not None]
    return sum(values) / len(values) if values else None

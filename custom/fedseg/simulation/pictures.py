"""What the report of a simulated run needs pictures of: cases of each site, and the best, median and worst result."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedseg.data.datalist import case_of, read_datalist
from fedseg.data.grid import write_mask
from fedseg.evaluation.scoring import Predictor
from fedseg.files.documents import load_json, write_json
from fedseg.models.model_file import ModelFile
from fedseg.tasks.objective import Objective
from fedseg.tasks.segmentation.labels import to_values

Entry = dict[str, Any]


def write_gallery(data: Path, sites: list[str], report: Path) -> None:
    """``gallery.json``: the first training case of each site."""
    gallery = {}
    for site in sites:
        cases = read_datalist(data / site).training[:1]
        gallery[site] = [{"images": [p and str(p.resolve()) for p in c.channels], "label": str(c.label)} for c in cases]
    write_json(report / "gallery.json", gallery)


def write_overlays(
    models: Mapping[str, ModelFile], kind: Objective, state: Path, run_id: str, report: Path, overlap: float
) -> None:
    """``overlays.json`` and masks of each site's best, median and worst case of the last model.

    Args:
        models: of each site; one that has none is left out.
        kind: of task, whose predictions are masks.
        state: folder with the states of the simulated sites.
        run_id: of the run.
        report: folder of the report.
        overlap: of the sliding windows.
    """
    entries = []
    for site, rank, scored in _ranked(_read_scores(state, run_id), kind):
        if (model := models.get(site)) is None:
            continue
        case = case_of([p and Path(p) for p in scored["images"]], Path(scored["label"]))
        _, prepared, predicted = next(Predictor(model, overlap=overlap).predict([case]))
        path = report / "overlays" / f"{site}-{rank}.nii.gz"
        write_mask(to_values(model.task, predicted), prepared.original, path)
        entries.append(
            {
                "site": site,
                "case": scored["id"],
                "rank": rank,
                kind.primary.name: _mean_score(scored, kind),
                "images": scored["images"],
                "label": scored["label"],
                "prediction": str(path.resolve()),
            }
        )
    write_json(report / "overlays.json", entries)


def _read_scores(state: Path, run_id: str) -> list[tuple[str, Entry]]:
    """Each case of every site's final split, as the executors left them on the sites' disks."""
    found = []
    for path in sorted(state.glob(f"*/{run_id}/evaluation-last.json")):
        splits = load_json(path)
        split = "test" if splits.get("test") else "validation"
        found += [(path.parent.parent.name, case) for case in splits.get(split, [])]
    return found


def _ranked(scores: list[tuple[str, Entry]], kind: Objective) -> list[tuple[str, str, Entry]]:
    """(site, rank, case) of each site's best, median and worst case; with fewer cases the worst ranks give way."""
    result = []
    for site in sorted({site for site, _ in scores}):
        cases = [(_mean_score(case, kind), case["id"], case) for name, case in scores if name == site]
        sign = 1 if kind.primary.higher_is_better else -1
        order = sorted(((s, n, c) for s, n, c in cases if s is not None), key=lambda c: (sign * c[0], c[1]))
        picks = {"best": len(order) - 1, "worst": 0, "median": (len(order) - 1) // 2}
        seen: set[int] = set()
        for rank, index in picks.items():
            if order and index not in seen:
                result.append((site, rank, order[index][2]))
                seen.add(index)
    return result


def _mean_score(case: Entry, kind: Objective) -> float | None:
    values = [v for v in case[kind.primary.name].values() if v is not None]
    return sum(values) / len(values) if values else None

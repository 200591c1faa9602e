"""What the report of a simulated run needs pictures of: cases of each site, and the best, median and worst result."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fedseg.data.datalist import case_of, read_datalist
from fedseg.evaluation.report.case_pictures import Entry, pick_cases, picture_entry
from fedseg.evaluation.scoring import Predictor
from fedseg.files.documents import load_json, write_json
from fedseg.models.model_file import ModelFile
from fedseg.tasks.objective import Objective


def write_gallery(data: Path, sites: list[str], report: Path) -> None:
    """``gallery.json``: the first training case of each site."""
    gallery = {}
    for site in sites:
        cases = read_datalist(data / site).labelled.training[:1]
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
    entries, found = [], _read_scores(state, run_id)
    for site in sorted({site for site, _ in found} & set(models)):
        predictor = Predictor(models[site], overlap=overlap)
        for rank, scored in pick_cases(kind, [case for name, case in found if name == site]):
            case = case_of([p and Path(p) for p in scored["images"]], Path(scored["label"]))
            mask = report / "overlays" / f"{site}-{rank}.nii.gz"
            entries.append(picture_entry(predictor, kind, case, scored, site, rank, mask))
    write_json(report / "overlays.json", entries)


def _read_scores(state: Path, run_id: str) -> list[tuple[str, Entry]]:
    """Each case of every site's final split, as the executors left them on the sites' disks."""
    found = []
    for path in sorted(state.glob(f"*/{run_id}/evaluation-last.json")):
        splits = load_json(path)
        split = "test" if splits.get("test") else "validation"
        found += [(path.parent.parent.name, case) for case in splits.get(split, [])]
    return found

"""The best, the median and the worst case of a model: which they are, and their masks and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedseg.data.datalist import Case
from fedseg.data.grid import write_mask
from fedseg.evaluation.report.drawing import save, style
from fedseg.evaluation.report.overlays import draw_overlays
from fedseg.evaluation.scoring import Predictor
from fedseg.tasks.objective import Objective, mean
from fedseg.tasks.segmentation.labels import to_values

Entry = dict[str, Any]
RANKED = ("best", "median", "worst")


def picture_files(out: Path) -> list[Path]:
    """The files that ``draw_cases`` may write: the picture, then the masks."""
    return [out / "overlays.png", *(out / "overlays" / f"{rank}.nii.gz" for rank in RANKED)]


def pick_cases(kind: Objective, scored: Sequence[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """Rank and case of the best, the median and the worst by the primary score; with fewer cases the worst give way.

    Args:
        kind: of task.
        scored: cases with their ``id`` and scores; those without a primary score are passed over.
    """
    known = [(value, case["id"], case) for case in scored if (value := _mean_score(case, kind)) is not None]
    order = sorted(known, key=lambda found: (kind.primary.goodness(found[0]), found[1]))
    picks = {"best": len(order) - 1, "worst": 0, "median": (len(order) - 1) // 2}
    chosen: dict[int, str] = {}
    for rank, place in picks.items():
        if order:
            chosen.setdefault(place, rank)
    return [(rank, order[place][2]) for place, rank in chosen.items()]


def picture_entry(
    predictor: Predictor, kind: Objective, case: Case, scored: Mapping[str, Any], site: str, rank: str, mask: Path
) -> Entry:
    """Write the mask that the model predicts of a case; what ``draw_overlays`` needs of it.

    Args:
        predictor: the model.
        kind: of task, whose predictions are masks.
        case: with its label.
        scored: the case's ``id`` and scores.
        site, rank: what stands over the picture.
        mask: where to write the mask.
    """
    _, prepared, predicted = next(predictor.predict([case]))
    write_mask(to_values(predictor.model.task, predicted), prepared.original, mask)
    return {
        "site": site,
        "case": scored["id"],
        "rank": rank,
        kind.primary.name: _mean_score(scored, kind),
        "images": [path and str(path) for path in case.channels],
        "label": str(case.label),
        "prediction": str(mask.resolve()),
    }


def draw_cases(
    predictor: Predictor, kind: Objective, cases: Mapping[str, Case], scored: Sequence[Mapping[str, Any]], out: Path
) -> Path | None:
    """Draw the best, the median and the worst case into ``overlays.png``, and write their masks.

    Args:
        predictor: the model.
        kind: of task, whose predictions are masks.
        cases: by name.
        scored: their scores, with the name as ``id``.
        out: folder for the picture.

    Returns:
        The picture; None where no case has a score.
    """
    task, (picture, *files) = predictor.model.task, picture_files(out)
    masks = dict(zip(RANKED, files, strict=True))
    entries = [
        picture_entry(predictor, kind, cases[told["id"]], told, task.name, rank, masks[rank])
        for rank, told in pick_cases(kind, scored)
    ]
    with style():
        figure = draw_overlays(entries, task)
        return None if figure is None else save(figure, picture)


def _mean_score(case: Mapping[str, Any], kind: Objective) -> float | None:
    return mean(list(case[kind.primary.name].values()))

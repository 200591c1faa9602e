"""Scores of single cases: written to the site's own disk, never sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedseg.data.datalist import Datalist, case_names
from fedseg.files.documents import write_json
from fedseg.tasks.objective import ScoredCase


def write_case_scores(folder: Path, model: str, datalist: Datalist, scored: Mapping[str, Sequence[ScoredCase]]) -> Path:
    """Write ``evaluation-<model>.json``: per split each case's patient, files, loss, scores, volumes and lesions."""
    content: dict[str, Any] = {}
    for split, results in scored.items():
        cases = datalist.split(split)
        content[split] = [
            {
                "id": name,
                "patient": case.patient,
                "images": [None if p is None else str(p) for p in case.channels],
                "label": str(case.label),
                "loss": result.loss,
                **asdict(result.score),
            }
            for case, name, result in zip(cases, case_names(cases), results, strict=True)
        ]
    return write_json(folder / f"evaluation-{''.join(c for c in model if c.isalnum() or c in '-_')}.json", content)

"""Scores of single cases: written to the site's own disk, never sent."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedseg.data.datalist import Datalist, case_names
from fedseg.tasks.segmentation.metrics import ScoredCase


def write_case_scores(folder: Path, model: str, datalist: Datalist, scored: Mapping[str, Sequence[ScoredCase]]) -> Path:
    """Write ``evaluation-<model>.json``: per split each case's files, loss, Dice and HD95."""
    content: dict[str, Any] = {}
    for split, results in scored.items():
        cases = datalist.split(split)
        content[split] = [
            {
                "id": name,
                "images": [str(p) for p in case.images],
                "label": str(case.label),
                "loss": result.loss,
                **asdict(result.score),
            }
            for case, name, result in zip(cases, case_names(cases), results, strict=True)
        ]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"evaluation-{''.join(c for c in model if c.isalnum() or c in '-_')}.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1), "utf-8")
    os.replace(temporary, path)
    return path

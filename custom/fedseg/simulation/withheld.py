"""Scores that sites keep to themselves: a simulation reads them where the simulated sites left them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedseg.errors import DataError
from fedseg.tasks.segmentation.metrics import CaseScore, summarise
from fedseg.workflows.run.scores import summarise_final


def with_own_scores(final: dict[str, Any], state: Path, run_id: str) -> dict[str, Any]:
    """The scores of a run's last model, completed from the disks of simulated sites.

    In a job with a formal guarantee nothing about single patients may travel beside it, so real sites keep their scores
    and a coordinator has none. On one machine they can be read without sending anything.

    Args:
        final: ``final`` of the server's results; sites that sent no scores stand under ``withheld``.
        state: folder with the states of the simulated sites.
        run_id: of the run.

    Raises:
        DataError: a site's own scores are not there or cannot be read.
    """
    parts = {site: {**values, "split": final["split"]} for site, values in final["sites"].items()}
    for site in final["withheld"]:
        path = state / site / run_id / "evaluation-last.json"
        try:
            content = json.loads(path.read_text("utf-8"))
            split = "test" if content.get("test") else "validation"
            scores = [CaseScore(case["dice"], case["hd95"], case["empty"]) for case in content[split]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"The scores that {site} kept cannot be read from {path}: {error}.") from None
        parts[site] = {"split": split, **summarise(scores)}
    complete = summarise_final({site: parts[site] for site in sorted(parts)}, final["after_round"])
    return {**final, **complete, "withheld": final["withheld"]}

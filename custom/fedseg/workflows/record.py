"""What a run leaves at the server: models, results, and a line for every event as it happens."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from fedseg.networks.weights import Arrays, contiguous
from fedseg.training.model_file import write_model
from fedseg.training.plan import Plan

logger = logging.getLogger(__name__)
FOLDER = "fedseg"
PROGRESS_FILE = "progress.jsonl"
RESULTS_FILE = "results.json"
LAST_MODEL = "last.safetensors"
BEST_MODEL = "best.safetensors"


class RunRecord:
    """The server's folder of one run. Every file is replaced as a whole, so that a crash leaves the one before."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def event(self, kind: str, **details: Any) -> None:
        """Append one event to ``progress.jsonl``, for whoever watches; a failure to write is logged only."""
        line = json.dumps({"time": time.time(), "event": kind, **details}) + "\n"
        try:
            # One write for a line, so that lines of several threads do not mix.
            with (self.folder / PROGRESS_FILE).open("ab", buffering=0) as file:
                file.write(line.encode())
        except OSError as error:
            logger.warning("An event could not be written (%s): %s", error, line)

    def results(self, content: dict[str, Any]) -> None:
        """Write ``results.json``: everything that the server knows so far."""
        temporary = self.folder / f"{RESULTS_FILE}.tmp"
        temporary.write_text(json.dumps(content, indent=1), "utf-8")
        os.replace(temporary, self.folder / RESULTS_FILE)

    def model(self, name: str, plan: Plan, weights: Arrays, round_number: int) -> None:
        """Write a model file."""
        write_model(self.folder / name, plan, weights, round_number)

    def update(self, round_number: int, name: str, arrays: Arrays) -> None:
        """Keep a site's update, or the global model before aggregation under the name ``global``."""
        folder = self.folder / "updates" / f"round-{round_number:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        save_file(contiguous(arrays), folder / f"{name}.safetensors")

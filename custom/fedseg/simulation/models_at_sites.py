"""Models of simulated runs whose server has none: fetched from the state of a site, where a real run leaves them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedseg.errors import FedsegError
from fedseg.files.digest import model_digest
from fedseg.models.model_file import read_model
from fedseg.models.note import note_path, read_note
from fedseg.workflows.run.record import LAST_MODEL


def fetch_models(results: dict[str, Any], server: Path, models: Path, state: Path, sites: Sequence[str]) -> None:
    """Copy the models that the results name from the first site that has them, each with its note.

    Args:
        results: what the server recorded; ``final`` and ``best`` name their models.
        server: the folder in which the server left the notes.
        models: where they go to.
        state: folder with the state folder of each site.
        sites: their names.

    Raises:
        FedsegError: no site has the model that the run's record names.
    """
    for part in ("final", "best"):
        found = results.get(part) or {}
        if found.get("own_models"):
            _fetch_own(found, models, state, results["run_id"])
        if not found.get("at_sites"):
            continue
        name, note = found["model"], read_note(server / found["model"])
        # The best model may be the last one, which lies at the sites under that name.
        names = dict.fromkeys((name, results["final"]["model"]))
        paths = [state / site / results["run_id"] / each for site in sites for each in names]
        for path in paths:
            if _holds(path, None if note is None else note.model):
                shutil.copy2(path, models / name)
                break
        else:
            raise FedsegError(f"No site has the {part} model of the run that its record names.")
        if note is not None:
            shutil.copy2(note_path(server / name), note_path(models / name))


def _fetch_own(found: dict[str, Any], models: Path, state: Path, run_id: str) -> None:
    """Copy the model that each site has for itself; the results then name those that are there."""
    there = {}
    for site, digest in found["own_models"].items():
        path = state / site / run_id / LAST_MODEL
        if _holds(path, digest):
            there[site] = found["models"][site]
            shutil.copy2(path, models / there[site])
    if not there:
        raise FedsegError("No site has the own model of the run that its record names.")
    found["models"] = there


def _holds(path: Path, digest: str | None) -> bool:
    """Whether a model lies there, with this digest where one is known."""
    return path.is_file() and (digest is None or model_digest(read_model(path).weights) == digest)

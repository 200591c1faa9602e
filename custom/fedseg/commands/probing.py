"""The inversion probe as commands run it: what it says goes to stderr, with a bar over the cuts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fedseg.attacks.probe import probe_after_run
from fedseg.console import tell, track


def probe_progress(cuts: Iterable[str]) -> Iterable[str]:
    """The cuts, with a bar that shows how far the probe is."""
    return track(cuts, "Probing cuts")


def probe_on_phantoms(run: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """Probe a run whose images are not here; see ``attacks.probe.probe_after_run``."""
    return probe_after_run(run, None, summary, True, tell, probe_progress)

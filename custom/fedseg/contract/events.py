"""What went wrong at a site of a run, in words: for the terminal, the report, and whoever watches a job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedseg.contract.round_numbers import nth

BEFORE, AFTER = "before round 1", "last evaluation"


def when(event: Mapping[str, Any]) -> str:
    """When it happened: ``before round 1``, ``round 3`` or ``last evaluation``.

    >>> when({"round": -1}), when({"round": 2}), when({"round": -1, "stage": "evaluation"})
    ('before round 1', 'round 3', 'last evaluation')
    """
    number = event.get("round")
    if type(number) is int and number >= 0:
        return f"round {nth(number)}"
    return AFTER if event.get("stage") == "evaluation" else BEFORE


def event_words(event: Any) -> str:
    """An event as one line; empty for what is none."""
    if not isinstance(event, Mapping) or not all(isinstance(event.get(key), str) for key in ("site", "what")):
        return ""
    return f"{when(event)}: {event['site']}: {event['what']}"

"""An update that waits at its site until the server has said what it weighs, in jobs that encrypt updates."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedseg import allowed
from fedseg.contract.protocol import MODEL_ID, WEIGHTS
from fedseg.contract.report import SiteReport, parse_report
from fedseg.contract.round_numbers import nth
from fedseg.errors import RefusalError
from fedseg.files.arrays import read_sealed, save_sealed
from fedseg.networks.weights import Arrays

logger = logging.getLogger(__name__)
_FILE = "held.safetensors"


def save_update(
    folder: Path, round_number: int, start: str | None, update: Arrays, report: SiteReport, model: str | None
) -> None:
    """Save an update on the site's own disk, in place of the one before.

    Args:
        folder: the site's folder of the run.
        round_number: in which it was made.
        start: the start of the server that asked for it.
        update: its arrays.
        report: what was reported of it.
        model: id of the model that it was trained from.
    """
    header = {"round": str(round_number), "start": str(start), "model": str(model)}
    header["report"] = json.dumps(report.to_meta())
    save_sealed(folder / _FILE, update, header)


def load_update(folder: Path, round_number: int, start: str | None) -> tuple[Arrays, SiteReport, str]:
    """Load the update that waits, what was reported of it, and the id of the model that it was trained from.

    Raises:
        RefusalError: none waits, or one of another round or of another start of the server, or it is damaged (reason
            ``state``).
    """
    try:
        header, update = read_sealed(folder / _FILE)
    except FileNotFoundError:
        header, update = {}, {}
    except OSError as error:
        logger.error("The update that waits cannot be read: %s", error)
        raise RefusalError("state", "The update that waits at this site is damaged.") from None
    if (header.get("round"), header.get("start")) != (str(round_number), str(start)):
        raise RefusalError("state", f"No update of round {nth(round_number)} waits at this site.")
    return update, parse_report(json.loads(header["report"])), header["model"]


def weight_facts(weights: Mapping[str, Any], site: str, model: str) -> dict[str, Any]:
    """What the encryption needs to know of the round beside scale and mode: who weighs what, and the model before.

    Args:
        weights: of all sites of the round, as the server sent them.
        site: name of this one.
        model: id of the model that the update was trained from.

    Raises:
        RefusalError: a weight is not from 0 to 1, they sum to more than one, so that the sum of the ciphertexts could
            leave its digits, or this site has none (reason ``privacy``).
    """
    numbers = list(weights.values())
    if site not in weights or not all(allowed.is_number(w) and 0 <= w <= 1 for w in numbers):
        raise RefusalError("privacy", "The task does not give each site of the round a weight from 0 to 1.")
    if math.fsum(numbers) > 1 + 1e-9:
        raise RefusalError("privacy", f"The weights of the round's sites sum to {math.fsum(numbers)}, more than one.")
    return {WEIGHTS: [[name, float(weight)] for name, weight in sorted(weights.items())], MODEL_ID: model}


def largest(update: Arrays) -> float:
    """Largest absolute value of an update."""
    return max((float(abs(value).max()) for value in update.values() if value.size), default=0.0)

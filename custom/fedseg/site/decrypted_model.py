"""The decrypted model of the last round, saved at the site in jobs whose server has it only encrypted."""

from __future__ import annotations

import logging
from pathlib import Path

from fedseg.files.arrays import read_sealed, save_sealed
from fedseg.networks.weights import Arrays

logger = logging.getLogger(__name__)
_FILE, _ID = "model.safetensors", "id"


def load_decrypted(folder: Path) -> tuple[str, Arrays] | None:
    """Load id and weights of the saved model; None if there is none that can be read.

    Args:
        folder: the site's folder of the run.
    """
    try:
        header, weights = read_sealed(folder / _FILE)
    except FileNotFoundError:
        return None
    except OSError as error:
        logger.warning("The kept model cannot be read (%s); the server will be asked for all rounds.", error)
        return None
    return (header[_ID], weights) if header.get(_ID) else None


def save_decrypted(folder: Path, identity: str, weights: Arrays) -> None:
    """Save a model, complete or not at all, in place of the one before."""
    save_sealed(folder / _FILE, weights, {_ID: identity})

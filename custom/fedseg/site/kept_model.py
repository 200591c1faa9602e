"""The plain model of the last round, kept at the site in jobs whose server has it only encrypted."""

from __future__ import annotations

import logging
from pathlib import Path

from safetensors import SafetensorError, safe_open

from fedseg.files.arrays import save_whole
from fedseg.networks.weights import Arrays

logger = logging.getLogger(__name__)
_FILE, _ID = "model.safetensors", "id"


def read_kept(folder: Path) -> tuple[str, Arrays] | None:
    """Id and weights of the kept model; None if there is none that can be read.

    Args:
        folder: the site's folder of the run.
    """
    try:
        with safe_open(folder / _FILE, framework="numpy") as file:
            identity = (file.metadata() or {}).get(_ID)
            # In the order of the network's arrays, which files do not keep, nothing depends.
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError) as error:
        logger.warning("The kept model cannot be read (%s); the server will be asked for all rounds.", error)
        return None
    return (identity, weights) if identity else None


def write_kept(folder: Path, identity: str, weights: Arrays) -> None:
    """Keep a model, complete or not at all, in place of the one before."""
    save_whole(folder / _FILE, weights, {_ID: identity})

"""The option ``--kit`` of all commands that talk with a running federation."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_kit(parser: argparse.ArgumentParser) -> None:
    """Add ``--kit``."""
    parser.add_argument("--kit", type=Path, required=True, metavar="DIR", help="your unpacked kit, of a person's role")

"""Pages, job folders and templates that belong to this version: of the repository, or those that its wheel brings.

`setup.py` imports this module where nothing is installed, so it imports nothing but what Python brings.
"""

from __future__ import annotations

from pathlib import Path

# What a wheel brings beside the code, as it lies in the repository, and the folder of the package that holds it there.
SHIPPED = (
    "docs", "jobs", "experiments", "workspace_templates", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"
)  # fmt: skip
FOLDER = "shipped"
_PACKAGE = Path(__file__).resolve().parents[1]


def find_shipped_files() -> Path | None:
    """The folder with ``docs``, ``jobs`` and the others: the repository, else the package's own.

    None where this fedseg came without them, as in the image for containers or inside a packaged job.
    """
    places = (_PACKAGE.parents[1], _PACKAGE / FOLDER)
    return next((place for place in places if all((place / name).exists() for name in SHIPPED)), None)

"""``fedseg files``: the pages, job folders and templates of this version, for whoever has the wheel alone."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from rich.markup import escape

from fedseg.commands.arguments import Command
from fedseg.console import out
from fedseg.errors import UsageError
from fedseg.files.folders import new_folder
from fedseg.files.outputs import check_copied_folder
from fedseg.files.shipped import SHIPPED, find_shipped_files


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    command = Command(subparsers, run)
    command.path("--out", "a new or empty folder", "DIR", required=True)


def run(options: argparse.Namespace) -> int:
    """``fedseg files``: write the pages, job folders and templates of this version.

    Write docs, jobs, experiments and workspace_templates into a folder, as they lie in fedseg's repository. In that
    folder the commands of the pages can be called as they stand.

    example: fedseg files --out fedseg-files
    """
    _copy(options.out)
    where = {
        "pages": "docs/index.md",
        "job folders": "jobs",
        "experiments": "experiments",
        "templates of kits and policies": "workspace_templates",
    }
    for what, path in where.items():
        out().print(escape(f"{what}: {options.out / path}"))
    return 0


def _copy(target: Path) -> None:
    source = find_shipped_files()
    if source is None:
        raise UsageError(
            "this fedseg was installed without its pages, job folders and templates. Install its wheel on another "
            "machine, and call the command there."
        )
    for name in SHIPPED:
        check_copied_folder("--out", target, source / name)
    with new_folder(target) as folder:
        for name in SHIPPED:
            if (source / name).is_dir():
                shutil.copytree(source / name, folder / name)
            else:
                shutil.copyfile(source / name, folder / name)

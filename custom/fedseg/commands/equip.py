"""``fedseg equip``: fedseg's policy in a kit that FLARE's own tools have made or changed."""

from __future__ import annotations

import argparse
from typing import Any

from fedseg.commands.arguments import Command
from fedseg.console import err
from fedseg.deployment.kits.equip import BEFORE, equip
from fedseg.deployment.kits.project_file import SITE
from fedseg.deployment.kits.storage_folders import SERVER_STORAGE
from fedseg.site.profile import read_state_folder


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    command = Command(subparsers, run)
    policy = "folder with fedseg.json, privacy.json, authorization.json, for those that the kit lacks"
    storage = f"server: where it keeps jobs and results (default: as the kit says, or {SERVER_STORAGE})"
    command.path("folder", "the kit")
    command.path("--site-policy", policy, "DIR")
    command.path("--wheel", "fedseg's wheel, to be put into the kit", "FILE")
    command.path("--storage", storage, "DIR")
    command.path("--state", "server: where it keeps checkpoints (default: state in --storage)", "DIR")


def run(options: argparse.Namespace) -> int:
    """``fedseg equip``: put fedseg's policy into a kit of FLARE's own tools.

    Put the exact list of classes and the policy files into the kit of a server or a site that `nvflare package` has
    made or `nvflare deploy prepare` has changed. Both leave FLARE's own list and stream logs. Policy files that the kit
    has already stay as they are. May be repeated.

    example: fedseg equip hospital-a --site-policy workspace_templates/site_policy/local
    """
    role = equip(options.folder, options.site_policy, options.storage, options.state, options.wheel)
    local = options.folder / "local"
    err().print(f"{local}/resources.json: the exact list of classes", markup=False)
    if (local / BEFORE).is_file():
        err().print(f"{local}/{BEFORE}: as it was before; bring over what you had changed by hand", markup=False)
    if role == SITE:
        err().print(f"{local}/fedseg.json: name the site's data, state and limits there", markup=False)
    else:
        state = read_state_folder(options.folder.name, local, options.folder)
        err().print(f"{local}/fedseg.json: checkpoints in {state}", markup=False)
    return 0

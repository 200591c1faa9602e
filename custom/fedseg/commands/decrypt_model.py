"""``fedseg decrypt-model``: an encrypted model as an ordinary one, at a site."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fedseg.commands.model_arguments import origin
from fedseg.console import out
from fedseg.errors import UsageError
from fedseg.models.encrypted_file import read_encrypted_file
from fedseg.models.opened import open_with_note
from fedseg.privacy.encryption.context import secret_context


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "decrypt-model",
        help="open the model of an encrypted run, at a site",
        description="Decrypts the last or best model of an encrypted run with the key that the sites share. Only a "
        "site can do it: the coordinator and the server have no key.",
        epilog="example: fedseg decrypt-model last.encrypted --context startup/client_context.tenseal "
        "--out last.safetensors",
    )
    parser.add_argument("file", type=Path, help="encrypted model (.encrypted) of a run")
    parser.add_argument("--context", type=Path, required=True, help="the site's client_context.tenseal")
    parser.add_argument("--out", type=Path, required=True, help="model file to write (.safetensors)")
    parser.add_argument(
        "--accept-changed-model",
        action="store_true",
        help="open the model although it is not the one that its provenance file is about",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Decrypt, check and write."""
    if options.out.exists():
        raise UsageError(f"--out {options.out} exists. Name a new file.")
    context = secret_context(options.context.read_bytes())
    encrypted = read_encrypted_file(options.file)
    note = origin(options.file, encrypted.model.ids()[-1], options.accept_changed_model)
    model = open_with_note(encrypted, note, context, options.out)
    options.out.chmod(0o600)
    rounds = len(encrypted.model.rounds)
    out().print(f"{model.task.name}, {model.network.name}, after {rounds} round(s): written to {options.out}")
    return 0

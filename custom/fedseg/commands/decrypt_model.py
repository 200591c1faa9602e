"""``fedseg decrypt-model``: an encrypted model as an ordinary one, at a site."""

from __future__ import annotations

import argparse
from typing import Any

from fedseg.commands.arguments import Command
from fedseg.commands.saved_model import origin
from fedseg.console import out
from fedseg.errors import UsageError
from fedseg.files.outputs import check_outputs
from fedseg.models.note import note_path


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    command = Command(subparsers, run)
    command.path("file", "encrypted model (.encrypted) of a run")
    command.path("--context", "the site's client_context.tenseal", required=True)
    command.path("--out", "model file to write (.safetensors)", required=True)
    command.changed_model("open")


def run(options: argparse.Namespace) -> int:
    """``fedseg decrypt-model``: open the model of an encrypted run, at a site.

    Decrypts the last or best model of an encrypted run with the key that the sites share. Only a site can do it: the
    coordinator and the server have no key.

    example: fedseg decrypt-model last.encrypted --context startup/client_context.tenseal --out last.safetensors
    """
    from fedseg.files.documents import private_files
    from fedseg.models.encrypted_file import read_encrypted_file
    from fedseg.privacy.encryption.context import secret_context

    if options.out.exists():
        raise UsageError(f"--out {options.out} exists. Name a new file.")
    read = (options.file, note_path(options.file), options.context)
    check_outputs("--out", (options.out, note_path(options.out)), read)
    context = secret_context(options.context.read_bytes())
    encrypted = read_encrypted_file(options.file)
    note = origin(options.file, encrypted.model.ids()[-1], options.accept_changed_model)
    with private_files():
        model = encrypted.decrypt(context, options.out, note)
    rounds = len(encrypted.model.rounds)
    out().print(f"{model.task.name}, {model.network.name}, after {rounds} round(s): written to {options.out}")
    return 0

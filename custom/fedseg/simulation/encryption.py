"""Keys of simulated runs that encrypt, and their models opened as one of the sites would open them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedseg.models.encrypted_file import read_encrypted_file
from fedseg.models.note import copy_with_note, read_note
from fedseg.privacy.encryption.context import KEY_NAME_FILE, make_contexts, secret_context, write_key
from fedseg.site.profile import CONTEXT_FILE, SERVER_CONTEXT_FILE


def give_contexts(state: Path, sites: Sequence[str], server: str) -> None:
    """Give every simulated site the run's key, and the server the parameters and the key's name; what is there stays.

    Args:
        state: folder with the state folder of each site and of the server.
        sites: their names.
        server: name of the server's state folder.
    """
    present = next((path for path in sorted(state.glob(f"*/{CONTEXT_FILE}"))), None)
    if present is None:
        secret, public = make_contexts()
        write_key(state / server / SERVER_CONTEXT_FILE, public)
    else:
        secret = present.read_bytes()
    if not (state / server / KEY_NAME_FILE).exists():
        write_key(state / server / KEY_NAME_FILE, secret_context(secret).key.encode())
    for site in sites:
        if not (state / site / CONTEXT_FILE).exists():
            write_key(state / site / CONTEXT_FILE, secret)


def open_models(results: dict[str, Any], server: Path, models: Path, context: Path) -> dict[str, Any]:
    """Copy a run's encrypted models and open them.

    Args:
        results: what the server recorded; ``final`` and ``best`` name their models.
        server: the folder in which the server left them.
        models: where encrypted and opened models go to.
        context: of one of the sites.

    Returns:
        The results, with the opened models in place of the encrypted ones.

    Raises:
        DataError, RefusalError, EncryptionError: a model or the context cannot be read.
    """
    key = secret_context(context.read_bytes())
    opened = dict(results)
    for part in ("final", "best"):
        name = (results.get(part) or {}).get("model")
        if name:
            copy_with_note(server / name, models)
            path = (models / name).with_suffix(".safetensors")
            read_encrypted_file(models / name).decrypt(key, path, read_note(models / name))
            opened[part] = {**results[part], "model": path.name}
    return opened

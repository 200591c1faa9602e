"""An encrypted model, decrypted where the key is, with its provenance."""

from __future__ import annotations

from pathlib import Path

from fedseg.files.digest import model_digest
from fedseg.models.encrypted_file import EncryptedFile
from fedseg.models.model_file import ModelFile
from fedseg.models.note import ModelNote, replaced_note, write_note
from fedseg.privacy.encryption.context import EncryptionContext


def open_with_note(
    encrypted: EncryptedFile, note: ModelNote | None, context: EncryptionContext, path: Path
) -> ModelFile:
    """Decrypt a model, write it as an ordinary one, and beside it where it comes from.

    Args:
        encrypted: the model.
        note: its provenance; None where there is none, and then the opened model has none.
        context: with the sites' key.
        path: where to.

    Raises:
        RefusalError, DataError: see ``EncryptedFile.decrypt``.
    """
    with replaced_note(path, None):
        model = encrypted.decrypt(context, path)
    if note is not None:
        write_note(path, note.of_opened(model_digest(model.weights)))
    return model

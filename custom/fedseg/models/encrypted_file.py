"""Encrypted models on disk: safetensors like other models, with ciphertexts in place of trained weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from fedseg.contract.plan import Plan
from fedseg.errors import DataError, RefusalError
from fedseg.files.arrays import read_arrays, save_whole
from fedseg.files.digest import model_digest
from fedseg.files.documents import parse_json
from fedseg.models.model_file import ModelFile, model_header, read_model, save_model
from fedseg.models.note import ModelNote, replaced_note, write_note
from fedseg.privacy.encryption.context import EncryptionContext
from fedseg.privacy.encryption.encrypted_model import EncryptedModel, read_encrypted_model

FORMAT = "fedseg-encrypted-1"
_HEADER = ("fedseg", "task", "network", "notes")


@dataclass(frozen=True)
class EncryptedFile:
    """An encrypted model as read from disk.

    Attributes:
        model: all rounds, from the initial weights on.
        header: what the decrypted model's file will say of itself.
    """

    model: EncryptedModel
    header: dict[str, str]

    def decrypt(self, context: EncryptionContext, path: Path, note: ModelNote | None = None) -> ModelFile:
        """Decrypt the model and write it as an ordinary model file, with its provenance beside it.

        Args:
            context: with the sites' key.
            path: where to.
            note: provenance of the encrypted model; without one the ordinary model has none either.

        Raises:
            RefusalError: see ``EncryptedModel.decrypt``.
            DataError: the weights do not fit the network that the header names.
        """
        with replaced_note(path, None):
            _, weights = self.model.decrypt(context)
            model = read_model(save_model(path, self.header, weights))
        if note is not None:
            write_note(path, note.of_opened(model_digest(model.weights)))
        return model


def write_encrypted_file(path: Path, plan: Plan, model: EncryptedModel, round_number: int) -> Path:
    """Write an encrypted model.

    Args:
        path: where to; replaced as a whole.
        plan: supplies task, network and seed.
        model: with its initial weights.
        round_number: the training round after which the model was made.
    """
    header = {"format": FORMAT, "rounds": json.dumps(model.facts()), **model_header(plan, round_number)}
    return save_whole(path, model.to_arrays(), header)


def read_encrypted_file(path: Path) -> EncryptedFile:
    """Read an encrypted model; no key is needed.

    Raises:
        DataError: the file is missing, of another format, or damaged.
    """
    try:
        header, arrays = read_arrays(path)
        if header.get("format") != FORMAT:
            raise DataError(f"{path} is not an encrypted model of fedseg: its header lacks the format {FORMAT!r}.")
        model = read_encrypted_model(arrays, parse_json(header["rounds"]))
        return EncryptedFile(model, {name: header[name] for name in _HEADER})
    except FileNotFoundError:
        raise DataError(f"The encrypted model {path} does not exist.") from None
    except (OSError, KeyError, ValueError, RefusalError) as error:
        raise DataError(f"{path} cannot be read as an encrypted model ({error}).") from None

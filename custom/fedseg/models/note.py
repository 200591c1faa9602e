"""The note beside a model file: which run made it, after which round, and which line of the record says so."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from fedseg.errors import DataError
from fedseg.files.documents import load_json, write_json

SUFFIX = ".provenance.json"
SCHEMA = "fedseg-provenance-1"


@dataclass(frozen=True)
class ModelNote:
    """Where a model comes from.

    Attributes:
        model: its digest, see ``digest.model_digest``; of an encrypted model the id of its last round.
        run_id, job, job_id: the run, the job's name, and FLARE's id of the job.
        round: the training round after which it was made; -1 for the initial model.
        plan: digest of the job's plan.
        versions: of fedseg, Python, nvflare and torch at the server.
        sites: that took part in any of the rounds that made it.
        line, hash: number and hash of the line of the server's record that names the model. The hash depends on all
            lines up to this one.
        opened_from: of a model that a site decrypted the id under which the record names it; else empty.
    """

    model: str
    run_id: str
    job: str
    job_id: str
    round: int
    plan: str
    line: int
    hash: str
    versions: Mapping[str, str] = field(default_factory=dict)
    sites: tuple[str, ...] = ()
    opened_from: str = ""

    def of_opened(self, digest: str) -> ModelNote:
        """The note of the model that came out of this encrypted one."""
        return replace(self, model=digest, opened_from=self.model)

    def to_dict(self) -> dict[str, Any]:
        """The content of the file."""
        content = {"schema": SCHEMA, **asdict(self), "sites": list(self.sites)}
        content["record"] = {"line": content.pop("line"), "hash": content.pop("hash")}
        return content


def note_path(model: Path) -> Path:
    """The file with the note of a model: ``last.safetensors.provenance.json`` of ``last.safetensors``."""
    return model.with_name(model.name + SUFFIX)


def write_note(model: Path, note: ModelNote) -> Path:
    """Write the note of a model in place of the one before."""
    return write_json(note_path(model), note.to_dict(), sort_keys=True)


@contextmanager
def replaced_note(model: Path, note: ModelNote | None) -> Iterator[None]:
    """Write a model inside, and its note after it.

    Between the two there is no note: a process that stops there leaves a model without one, which the record still
    names, and not one beside a note about another.
    """
    note_path(model).unlink(missing_ok=True)
    yield
    if note is not None:
        write_note(model, note)


def copy_with_note(model: Path, folder: Path) -> Path:
    """Copy a model into a folder, and its note where there is one; returns the copy."""
    for path in (model, note_path(model)):
        if path == model or path.is_file():
            shutil.copy2(path, folder / path.name)
    return folder / model.name


def read_note(model: Path) -> ModelNote | None:
    """The note beside a model; None where there is none.

    Raises:
        DataError: it is not a note, or one of another version.
    """
    path = note_path(model)
    try:
        content = load_json(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"The provenance file {path} cannot be read ({error}).") from None
    return _parse(path, content)


def _parse(path: Path, content: Any) -> ModelNote:
    try:
        line = content["record"]
        values = {**content, "line": line["line"], "hash": line["hash"], "sites": tuple(content["sites"])}
        if values.pop("schema") != SCHEMA or set(content) - {"schema", "record"} | {"line", "hash"} != _NAMES:
            raise KeyError("schema")
        note = ModelNote(**{name: values[name] for name in _NAMES})
    except (KeyError, TypeError, AttributeError):
        raise DataError(f"The provenance file {path} is not one of this version ({SCHEMA}).") from None
    texts = (note.model, note.run_id, note.job, note.job_id, note.plan, note.hash, note.opened_from)
    if not all(isinstance(text, str) for text in texts) or type(note.line) is not int or type(note.round) is not int:
        raise DataError(f"The provenance file {path} holds values of other types than it should.")
    return note


_NAMES = {f.name for f in fields(ModelNote)}


def check_against_note(model: Path, digest: str) -> ModelNote | None:
    """Compare a model with the note beside it.

    Args:
        model: the model file.
        digest: of its content.

    Returns:
        The note; None where there is none.

    Raises:
        DataError: the note is about another model, or cannot be read.
    """
    note = read_note(model)
    if note is not None and note.model != digest:
        raise DataError(
            f"The model {model} is not the one that its provenance file is about: its digest is {digest[:16]}..., "
            f"noted is {note.model[:16]}...; fetch the run again, or ask whoever gave you the file. "
            "--accept-changed-model uses it as it is."
        )
    return note

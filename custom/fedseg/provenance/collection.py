"""Which records, ledgers of swarms and models a path names or holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from fedseg.errors import UsageError
from fedseg.models.note import SUFFIX
from fedseg.provenance.run_log import RECORD_FILE, REFUSED_FILE
from fedseg.provenance.swarm.ledger import LEDGER_FILE

MODEL_SUFFIXES = (".safetensors", ".encrypted")
_MODELS, _REPORT = "models", "report"


def collect(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The records, with ledgers of swarms among them, and the models that the paths name or hold, each once.

    Raises:
        UsageError: see ``audit``.
    """
    records: dict[Path, None] = {}
    models: dict[Path, None] = {}
    for path in paths:
        if not path.exists():
            raise UsageError(f"{path} does not exist, so it cannot be checked.")
        found_records, found_models = list(_records_in(path)), list(_models_in(path))
        if not found_records and not found_models:
            raise UsageError(
                f"{path} is no record, model or folder of a run. Name a {RECORD_FILE}, a model, or a run's folder."
            )
        records |= dict.fromkeys(found_records)
        models |= dict.fromkeys(found_models)
    return list(records), list(models)


def _records_in(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from sorted(file for name in (RECORD_FILE, REFUSED_FILE, LEDGER_FILE) for file in path.rglob(name))
    elif path.suffix in MODEL_SUFFIXES:
        places = (path.parent, path.parent.parent / _REPORT)
        yield from (place / RECORD_FILE for place in places if (place / RECORD_FILE).is_file())
    elif path.is_file() and path.suffix == ".jsonl":
        yield path


def _models_in(path: Path) -> Iterator[Path]:
    if path.is_dir():
        noted = {note.with_name(note.name.removesuffix(SUFFIX)) for note in path.rglob(f"*{SUFFIX}")}
        kept = {file for suffix in MODEL_SUFFIXES for file in (path / _MODELS).glob(f"*{suffix}")}
        yield from sorted(noted | kept)
    elif path.is_file() and path.suffix in MODEL_SUFFIXES:
        yield path

"""What a site keeps on its own disk between rounds, so that a killed client continues where it was."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from fedseg.contract.round_numbers import nth
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.files.documents import whole_file, write_whole
from fedseg.files.full_disk import is_full
from fedseg.site.round_files import DEFAULT_KEEP, RoundFiles

logger = logging.getLogger(__name__)


# Beside the folders of runs in a site's state folder.
RESERVED = ("ledger", "cache", "server")
_JOB_FILE = "job.sha256"
# Whose folder it is; no run id begins with an underscore.
_SITE_FILE = "_site"
_LONGEST = 1024


def check_run_id(run_id: str) -> None:
    """Refuse a run id that could not be the name of a run's folder."""
    named = isinstance(run_id, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", run_id)
    if not named or run_id.lower() in RESERVED:
        raise ConfigurationError(
            "run_id", run_id, f"letters, digits, '.', '_' and '-', a letter or digit first, and none of {RESERVED}"
        )


def claim(folder: Path, site: str) -> None:
    """Make a state folder that of one site: two sites in one folder would mix weights and privacy ledgers.

    Args:
        folder: the site's state folder; made where it is missing, for its owner only.
        site: the site's name.

    Raises:
        RefusalError: it is another site's, or the note of it cannot be read or written (reason ``state``).
    """
    note = folder / _SITE_FILE
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with note.open("x", encoding="utf-8") as file:
                file.write(site)
        except FileExistsError:
            pass
        owner = note.read_text("utf-8")
    except OSError as error:
        logger.error("The state folder %s cannot be used: %s", folder, error)
        raise RefusalError("state", "The site's state folder cannot be used; its own log says why.") from None
    if owner != site:
        raise RefusalError(
            "state", "The site's state folder is that of another site. Give each site a folder of its own."
        )


class SiteState(RoundFiles[dict[str, Any]]):
    """State of one site in one run: tensors, numbers, strings, lists and dicts, which are read without executing
    anything (``weights_only``).

    A file begins with a line of JSON: the facts of the round, the digest of all that follows, and that of both.
    """

    ending = ".pt"
    damaged = "The site's state after round {} is damaged, or none of this software."
    gone = "The site's state after round {} is gone."
    too_old = "The state before round {} is gone; the last {} are kept."

    def __init__(self, folder: Path, run_id: str, keep: int = DEFAULT_KEEP) -> None:
        """Open the state of a run.

        Args:
            folder: the site's state folder.
            run_id: made at the first start of the run; not FLARE's job id, which changes on resume.
            keep: how many of the last rounds are kept; 0 keeps all. The server may change it with a task.

        Raises:
            ConfigurationError: ``run_id`` could not be a folder's name.
        """
        check_run_id(run_id)
        super().__init__(folder / run_id, keep)

    def bind(self, fingerprint: str) -> None:
        """Bind the run's folder to a job at its first use; no other job may ever read what lies there.

        A run id comes from the server. With another job's id, a job with other filters could carry out what that job
        keeps at the site: optimizer, private layers, what partial sharing has not sent.

        Args:
            fingerprint: of everything that decides what the job keeps and lets out.

        Raises:
            RefusalError: the folder belongs to another job, or the note of it cannot be read (reason ``state``).
        """
        note = self.folder / _JOB_FILE
        try:
            if not self.folder.exists():
                write_whole(note, fingerprint)
            found = note.read_text("ascii")
        except OSError as error:
            logger.error("The run's folder %s cannot be used: %s", self.folder, error)
            raise RefusalError("state", "The site's state of this run cannot be read or written.") from None
        if found != fingerprint:
            raise RefusalError("state", "The run id belongs to another job at this site; start a run of its own.")

    def _write(self, number: int, first: float, values: Mapping[str, Any]) -> None:
        content = io.BytesIO()
        try:
            torch.save(dict(values), content)
            line = {"start": str(self.start), "first": first, "digest": hashlib.sha256(content.getbuffer()).hexdigest()}
            with whole_file(self._path(number)) as temporary, temporary.open("wb") as file:
                file.write(json.dumps({**line, "line": _digest(line)}).encode() + b"\n")
                file.write(content.getbuffer())
        except (OSError, RuntimeError) as error:
            logger.error("The state file %s cannot be written: %s", self._path(number), error)
            why = "its disk is full" if is_full(error) else "its disk does not take it"
            raise RefusalError(
                "state", f"The site could not store its state after round {nth(number)}: {why}."
            ) from None

    def _facts(self, number: int) -> tuple[str, int]:
        try:
            with self._path(number).open("rb") as file:
                line = _read_line(file)
                return line["start"], int(line["first"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(number, error) from None

    def _read(self, number: int) -> dict[str, Any]:
        try:
            with self._path(number).open("rb") as file:
                line, content = _read_line(file), file.read()
            if line["digest"] != hashlib.sha256(content).hexdigest():
                raise ValueError("its content does not have the digest that was written with it")
            return dict(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
        except (RuntimeError, OSError, EOFError, ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
            raise self._damaged(number, error) from None


def _read_line(file: BinaryIO) -> dict[str, Any]:
    """The line with which a state file begins.

    Raises:
        ValueError: it is none, or was changed.
    """
    line = json.loads(file.readline(_LONGEST))
    if not isinstance(line, dict) or line.pop("line", None) != _digest(line):
        raise ValueError("it does not begin as a state file does")
    return line


def _digest(line: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(line, sort_keys=True).encode()).hexdigest()

"""The record of one run at the server or at a site: a hash chain whose first line says whose record it is."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedseg.errors import ConfigurationError, FedsegError
from fedseg.files.documents import whole_file
from fedseg.files.full_disk import is_full
from fedseg.files.hash_chain import HashChain
from fedseg.files.hash_chain_check import ChainError, Entry, head_path

RECORD_FILE = "record.jsonl"
# Jobs that a site refused before they had a run there; no run id begins with an underscore.
REFUSED_FILE = "_refused.jsonl"
SCHEMA = "fedseg-record-1"
SERVER_SIDE, SITE_SIDE = "server", "site"


class RecordError(FedsegError):
    """A run's record cannot be written or is not what was written; without it the run stops."""


class RunLog:
    """Appends to a run's record; several starts of a run, one after the other, go on in the same file.

    Once a line could not be written at the server, no later one is: a record with a gap would say that nothing happened
    there. At a site nothing leaves without its line, so a full disk costs it those tasks only: when there is room again
    it goes on, and the next line says as ``unwritten`` how many lines are missing before it.
    """

    def __init__(self, path: Path, side: str, name: str, run_id: str) -> None:
        """Name the record; the file is made with its first line.

        Args:
            path: the file.
            side: ``server`` or ``site``.
            name: of the site, or ``server``.
            run_id: of the run; empty in a record of refused jobs.
        """
        self.path, self.run_id = path, run_id
        self._chain = HashChain(path)
        self._opening = {"kind": "opened", "schema": SCHEMA, "side": side, "name": name, "run_id": run_id}
        self._lock = threading.Lock()
        self._broken: str = ""
        self._unwritten = 0

    def append(self, kind: str, **details: Any) -> Entry:
        """Add a line, and return once it is on the disk.

        Args:
            kind: what happened, in one word.
            details: JSON values.

        Raises:
            RecordError: it could not be written, an earlier one could not, or the file is of another run. The text
                names no path, since it may leave a site.
        """
        with self._lock:
            if self._broken:
                raise RecordError(self._broken)
            try:
                return self._append(kind, details)
            except RecordError as error:
                self._broken = str(error)
                raise
            except ChainError as error:
                self._broken = f"The run's record is not what was written. {error}"
            except OSError as error:
                text = f"The run's record cannot be written ({error.strerror or type(error).__name__})."
                text += " Make room on the disk." if is_full(error) else ""
                if self._opening["side"] == SITE_SIDE:
                    self._unwritten += 1
                    raise RecordError(text) from None
                self._broken = text
            except ConfigurationError as error:
                self._broken = f"The run's record cannot hold this: {error}"
            raise RecordError(self._broken)

    def _append(self, kind: str, details: dict[str, Any]) -> Entry:
        with self._chain.exclusive() as writer:
            if not writer.entries:
                writer.append(self._opening)
            elif {name: writer.entries[0].get(name) for name in self._opening} != self._opening:
                raise RecordError("The record at hand is of another run, or of another version of fedseg.")
            gap = {"unwritten": self._unwritten} if self._unwritten else {}
            entry = writer.append({"kind": kind, **gap, **details})
            self._unwritten = 0
            return entry

    def entries(self) -> Sequence[Entry]:
        """All lines so far, verified.

        Raises:
            RecordError: the record was changed, or cannot be read.
        """
        try:
            return self._chain.read()
        except ChainError as error:
            raise RecordError(f"The run's record is not what was written. {error}") from None
        except OSError as error:
            raise RecordError(f"The run's record cannot be read ({error.strerror}).") from None

    def copy_to(self, folder: Path) -> None:
        """Copy the record and its head, as they are at one moment; nothing happens where there is no record yet.

        Raises:
            RecordError: the record cannot be read, or the copy not be written.
        """
        if not self.path.exists():
            return
        try:
            with self._chain.exclusive():
                copy_record(self.path, folder)
        except ChainError as error:
            raise RecordError(f"The run's record is not what was written. {error}") from None
        except OSError as error:
            raise RecordError(f"The run's record cannot be copied ({error.strerror}).") from None


def copy_record(record: Path, folder: Path) -> None:
    """Copy a record and its head into a folder under the name ``record.jsonl``; what is missing is left out."""
    for source in (record, head_path(record)):
        if source.is_file():
            with whole_file(folder / source.name) as temporary:
                shutil.copyfile(source, temporary)

"""What a site keeps on its own disk between rounds, so that a killed client continues where it was."""

from __future__ import annotations

import errno
import logging
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fedseg.errors import ConfigurationError, RefusalError
from fedseg.files.documents import LEFTOVER, whole_file, write_whole

DEFAULT_KEEP = 2

logger = logging.getLogger(__name__)


# Beside the folders of runs in a site's state folder.
RESERVED = ("ledger", "cache", "server")
_JOB_FILE = "job.sha256"
# Whose folder it is; no run id begins with an underscore.
_SITE_FILE = "_site"


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


class SiteState:
    """State of one site in one run: a file for each finished round, the last ones kept.

    The file of round r holds what round r + 1 starts from. A round that is asked for again (its result was lost on
    the way) so starts from the same state as the first time. Values are tensors, numbers, strings, lists and dicts;
    they are read without executing anything (``weights_only``).

    Attributes:
        start: which start of the server the present round belongs to; stored with the state.
        lineage: for each finished round of the run the start that made it; None where nobody says.
    """

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
        self.folder, self.keep = folder / run_id, keep
        self.start: str | None = None
        self.lineage: Sequence[str] | None = None

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

    def load(self, before_round: int) -> dict[str, Any] | None:
        """The newest state of a round earlier than ``before_round`` (on the CPU), or None before any round.

        A run that goes back to an earlier round leaves states of the branch that it no longer follows; with
        ``lineage`` they are passed over.

        Raises:
            RefusalError: this site has been through that round, but keeps only states that do not lead to it, or a
                file is damaged (reason ``state``).
        """
        rounds = self._rounds()
        for number in reversed([r for r in rounds if r < before_round]):
            content = self._read(number)
            if self.lineage is None or number >= len(self.lineage) or content["start"] == self.lineage[number]:
                return dict(content["values"])
        if rounds and before_round > 0 and self._first(rounds[-1]) < before_round:
            kept = f"the last {self.keep} are kept"
            raise RefusalError("state", f"The state before round {before_round} is gone; {kept}.")
        return None

    def save(self, round_number: int, values: Mapping[str, Any]) -> None:
        """Store what the next round starts from, complete or not at all.

        States of later rounds go away: the run was continued from an earlier round, and they belong to a branch of it
        that is no longer followed.

        Raises:
            RefusalError: it cannot be written (reason ``state``); the states of the rounds before are as they were.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        rounds = self._rounds()
        first = min(round_number, self._first(rounds[-1])) if rounds else round_number
        for leftover in self.folder.glob(f"{LEFTOVER}*"):
            leftover.unlink(missing_ok=True)
        try:
            with whole_file(self._path(round_number)) as temporary, temporary.open("wb") as file:
                torch.save({"start": self.start, "first": first, "values": dict(values)}, file)
        except (OSError, RuntimeError) as error:
            logger.error("The state file %s cannot be written: %s", self._path(round_number), error)
            why = "its disk is full" if _is_full(error) else "its disk does not take it"
            raise RefusalError(
                "state", f"The site could not store its state after round {round_number}: {why}."
            ) from None
        rounds = self._rounds()
        earlier = [r for r in rounds if r <= round_number]
        for other in (earlier[: -self.keep] if self.keep else []) + [r for r in rounds if r > round_number]:
            self._path(other).unlink(missing_ok=True)

    def _first(self, round_number: int) -> int:
        """The first round in which this site took part, as a state says it; the tensors beside it are not read."""
        return int(self._read(round_number, mapped=True)["first"])

    def _read(self, round_number: int, mapped: bool = False) -> dict[str, Any]:
        try:
            content = torch.load(self._path(round_number), map_location="cpu", weights_only=True, mmap=mapped)
            return {name: content[name] for name in ("start", "first", "values")}
        except (RuntimeError, OSError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
            logger.error("The state file %s cannot be read: %s", self._path(round_number), error)
            raise RefusalError("state", f"The site's state after round {round_number} is damaged.") from None

    def _path(self, round_number: int) -> Path:
        return self.folder / f"round-{round_number:05d}.pt"

    def _rounds(self) -> list[int]:
        return sorted(int(p.stem.removeprefix("round-")) for p in self.folder.glob("round-*.pt"))


def _is_full(error: BaseException | None) -> bool:
    """Whether there was no room; torch raises an error of its own while it handles that of the file."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        error = error.__cause__ or error.__context__
    return False

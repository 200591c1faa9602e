"""What a site keeps on its own disk between rounds, so that a killed client continues where it was."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fedseg.errors import ConfigurationError, RefusalError

DEFAULT_KEEP = 2


def check_run_id(run_id: str) -> None:
    """Refuse a run id that could not be the name of a folder."""
    if not isinstance(run_id, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", run_id):
        raise ConfigurationError("run_id", run_id, "letters, digits, '.', '_' and '-', a letter or digit first")


class SiteState:
    """State of one site in one run: a file for each finished round, the last ones kept.

    The file of round r holds what round r + 1 starts from. A round that is asked for again (its result was lost on
    the way) so starts from the same state as the first time. Values are tensors, numbers, strings, lists and dicts;
    they are read without executing anything (``weights_only``).
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

    def load(self, before_round: int) -> dict[str, Any] | None:
        """The newest state of a round earlier than ``before_round`` (on the CPU), or None before any round.

        Raises:
            RefusalError: this site has been through that round, but keeps only later states (reason ``state``).
        """
        rounds = self._rounds()
        earlier = [r for r in rounds if r < before_round]
        if rounds and not earlier and before_round > 0:
            kept = f"the last {self.keep} are kept"
            raise RefusalError("state", f"The state before round {before_round} is gone; {kept}.")
        return torch.load(self._path(max(earlier)), map_location="cpu", weights_only=True) if earlier else None

    def save(self, round_number: int, values: Mapping[str, Any]) -> None:
        """Store what the next round starts from, complete or not at all.

        States of later rounds go away: the run was continued from an earlier round, and they belong to a branch of it
        that is no longer followed.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{round_number}.{os.getpid()}.tmp"
        torch.save(dict(values), temporary)
        os.replace(temporary, self._path(round_number))
        rounds = self._rounds()
        earlier = [r for r in rounds if r <= round_number]
        for other in (earlier[: -self.keep] if self.keep else []) + [r for r in rounds if r > round_number]:
            self._path(other).unlink(missing_ok=True)

    def _path(self, round_number: int) -> Path:
        return self.folder / f"round-{round_number:05d}.pt"

    def _rounds(self) -> list[int]:
        return sorted(int(p.stem.removeprefix("round-")) for p in self.folder.glob("round-*.pt"))

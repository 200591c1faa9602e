"""Records as a reader finds them: verified, and the server's brought into the order of rounds and models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedseg.contract.round_numbers import nth
from fedseg.errors import DataError
from fedseg.files.hash_chain_check import Entry, verify
from fedseg.provenance.run_log import SCHEMA, SERVER_SIDE, SITE_SIDE

# Lines of models that a run leaves as files.
_LEFT = ("final", "model")


@dataclass(frozen=True)
class Record:
    """A verified record.

    Attributes:
        path: where it lies.
        side: ``server`` or ``site``.
        name: of the site, or ``server``.
        run_id: of its run; empty in a site's record of refused jobs.
        entries: all lines, the opening one included; line n is ``entries[n - 1]``.
        torn: bytes of an incomplete line at the end, on whose strength nothing was done.
    """

    path: Path
    side: str
    name: str
    run_id: str
    entries: tuple[Entry, ...]
    torn: int = 0

    @property
    def title(self) -> str:
        """Whose record it is, for people."""
        whose = "the server" if self.side == SERVER_SIDE else f"the site {self.name}"
        return f"record of {whose}" if self.run_id else f"record of jobs that {whose} refused"

    @property
    def head(self) -> str:
        """Hash of the last line: what to note elsewhere."""
        return str(self.entries[-1]["hash"])

    def of_kind(self, *kinds: str) -> Iterator[Entry]:
        """The lines of these kinds, oldest first."""
        return (entry for entry in self.entries if entry["kind"] in kinds)


def read_record(path: Path) -> Record:
    """Read and verify a record.

    Raises:
        ChainError: a line was changed, removed or added, or the end was cut off.
        DataError: the file does not exist, cannot be read, or is another chain than a run's record.
    """
    if not path.is_file():
        raise DataError(f"The record {path} does not exist.")
    try:
        chain = verify(path)
    except OSError as error:
        raise DataError(f"The record {path} cannot be read ({error.strerror}).") from None
    first: Mapping[str, Any] = chain.entries[0] if chain.entries else {}
    if first.get("schema") != SCHEMA or first.get("side") not in (SERVER_SIDE, SITE_SIDE):
        raise DataError(f"{path} is not the record of a run: its first line does not say {SCHEMA!r}.")
    if not all(isinstance(entry.get("kind"), str) for entry in chain.entries):
        raise DataError(f"{path} is not the record of a run: a line does not say what happened.")
    whose = (str(first["side"]), str(first.get("name")), str(first.get("run_id", "")))
    return Record(path, *whose, tuple(chain.entries), len(chain.torn))


@dataclass(frozen=True)
class ServerRound:
    """A finished round as the server tells it.

    Attributes:
        number: from 0.
        before, after: digests of the model that went out and of the one that was made.
        sites: of each site that took part the training cases, the epsilon and what its filters did.
        left_out: the sites that did not, each with the reason.
    """

    number: int
    before: str
    after: str
    sites: Mapping[str, Mapping[str, Any]]
    left_out: Mapping[str, str]


@dataclass
class ServerStart:
    """What one start of the server did, from its first or resumed line to the next.

    Attributes:
        id: of the start, which tasks carry.
        line: number of its first line.
        facts: its first line: job, submitter, versions, plan.
        model: digest of the model from which the next round would start.
        rounds: finished ones.
    """

    id: str
    line: int
    facts: Mapping[str, Any]
    model: str
    rounds: dict[int, ServerRound] = field(default_factory=dict)

    def sent(self, number: int) -> str | None:
        """Digest of the model that went out in a round; None if the start never came to it."""
        if number in self.rounds:
            return self.rounds[number].before
        return self.model if number == self.next else None

    @property
    def next(self) -> int:
        """Number of the round after the last finished one."""
        return max(self.rounds, default=int(self.facts.get("round", -1))) + 1


def server_starts(record: Record) -> list[ServerStart]:
    """The starts of a run, oldest first.

    Raises:
        DataError: the lines do not follow from each other: a round is missing or counted twice, a start goes on from
            a model that was not made, or the run leaves one that was not.
    """
    starts: list[ServerStart] = []
    made: dict[int, str] = {}
    for entry in record.of_kind("start", "resumed", "shared", "round", *_LEFT):
        number, line = int(entry.get("round", -1)), entry["number"]
        if entry["kind"] in _LEFT:
            if made.get(number) != entry["model"]:
                raise DataError(f"Line {line} leaves a model after round {nth(number)} that is not the one made there.")
            continue
        if entry["kind"] in ("start", "resumed"):
            if entry["kind"] == "resumed" and made.get(number) != entry["model"]:
                raise DataError(
                    f"Line {line} goes on from a model after round {nth(number)} that no line before it names."
                )
            if entry["kind"] == "start":
                made = {}
            made = {r: model for r, model in made.items() if r <= number} | {number: entry["model"]}
            starts.append(ServerStart(entry["start"], line, entry, entry["model"]))
            continue
        # Arrays before the first round make another model of the initial one.
        due = starts[-1].next - (entry["kind"] == "shared") if starts else None
        if due != number or entry["start"] != starts[-1].id:
            raise DataError(f"Line {line} tells of round {nth(number)}, which does not follow the line before it.")
        if entry["kind"] == "round":
            sites, left_out = {s: dict(part) for s, part in entry["sites"].items()}, dict(entry["left_out"])
            starts[-1].rounds[number] = ServerRound(number, starts[-1].model, entry["model"], sites, left_out)
        starts[-1].model = made[number] = entry["model"]
    return starts


def named_models(record: Record) -> dict[str, list[int]]:
    """Digests of all models that the server's record names, each with the numbers of the lines."""
    found: dict[str, list[int]] = {}
    for entry in record.of_kind("start", "resumed", "shared", "round", "turn", "average", "scoring", "given", *_LEFT):
        found.setdefault(str(entry.get("model")), []).append(entry["number"])
    return found

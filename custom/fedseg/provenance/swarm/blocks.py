"""What a block says: who led a round, who took part, and the digests of updates and model. Names and numbers only.

A block has one spelling, the canonical form of ``files.hash_chain_check``, and its digest is the SHA-256 of that.
Everything in it is a text of bounded length or a whole number: there is no place in it for an array.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from fedseg import allowed
from fedseg.errors import ConfigurationError
from fedseg.files.hash_chain_check import digest
from fedseg.files.names import SITE
from fedseg.provenance.swarm.errors import SwarmLedgerError

SCHEMA = "fedseg-swarm-1"
MOST_SITES = 1000
LONGEST_RULE = 128
LONGEST_RUN_ID = 128
_DIGEST = re.compile(r"[0-9a-f]{64}")
_RUN_ID = re.compile(rf"[A-Za-z0-9._-]{{1,{LONGEST_RUN_ID}}}")
_RULE = re.compile(rf"[A-Za-z0-9 _.,:=()+-]{{1,{LONGEST_RULE}}}")
_TIME = "%Y-%m-%dT%H:%M:%SZ"


def checked_digest(name: str, value: Any) -> str:
    """A SHA-256 in 64 small hexadecimal digits.

    Raises:
        ConfigurationError: it is another thing.
    """
    return _matching(name, value, _DIGEST, "a SHA-256 in 64 small hexadecimal digits")


def _matching(name: str, value: Any, pattern: re.Pattern[str], words: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ConfigurationError(name, value, words)
    return value


def _count(name: str, value: Any) -> int:
    if not allowed.is_count(value):
        raise ConfigurationError(name, value, "a whole number from 0 up")
    return value


@dataclass(frozen=True)
class Opening:
    """What all sites of a swarm know before its first round; equal at every site, so its digest is, too.

    Attributes:
        run_id: of the run.
        sites: all sites that may take part, by name; kept in the order of their names.
        quorum: how many sites must have signed a block before it counts, from 1 to the number of sites. With more than
            half of the sites no two blocks of one round can count unless a site signs both.
        root: fingerprint of the federation's root certificate (SHA-256, 64 digits); empty where blocks are not signed.

    Raises:
        ConfigurationError: a value is not allowed.
    """

    run_id: str
    sites: tuple[str, ...]
    quorum: int
    root: str = ""

    def __post_init__(self) -> None:
        names = tuple(sorted(SITE.check("sites", site) for site in self.sites))
        object.__setattr__(self, "sites", names)
        _matching("run_id", self.run_id, _RUN_ID, f"letters, digits, '.', - and _, at most {LONGEST_RUN_ID}")
        if len(set(names)) < len(names) or not 0 < len(names) <= MOST_SITES:
            raise ConfigurationError("sites", len(names), f"1 to {MOST_SITES} names, each once")
        allowed.whole("quorum", self.quorum, least=1, most=len(names))
        if self.root != "":
            checked_digest("root", self.root)

    @cached_property
    def digest(self) -> str:
        """What stands as the block before the first one."""
        return digest(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """JSON values by name."""
        return {"schema": SCHEMA, **asdict(self), "sites": list(self.sites)}

    @classmethod
    def from_json(cls, content: Any) -> Opening:
        """Read what ``to_json`` wrote.

        Raises:
            SwarmLedgerError: it is another thing.
        """
        found = _exactly(content, ("run_id", "sites", "quorum", "root"), "opening")
        try:
            return cls(found["run_id"], tuple(allowed.texts("sites", found["sites"])), found["quorum"], found["root"])
        except (ConfigurationError, TypeError) as error:
            raise SwarmLedgerError(f"The opening of the swarm's ledger is not valid: {error}") from None


def majority(sites: Iterable[str]) -> int:
    """The least number that is more than half of the sites.

    >>> majority("abc"), majority("abcd")
    (2, 3)
    """
    return len(set(sites)) // 2 + 1


@dataclass(frozen=True)
class Part:
    """What a site had in a round.

    Attributes:
        cases: training cases that it counts with.
        update: digest of its update as it left the site.
    """

    cases: int
    update: str

    def __post_init__(self) -> None:
        _count("cases", self.cases)
        checked_digest("update", self.update)


@dataclass(frozen=True)
class Block:
    """One round.

    Attributes:
        run_id: of the run.
        start: id of the server's start that asked for the round; a server that starts anew may ask for a round again.
        round: from 0.
        leader: the site that merged.
        parts: what each participant had, by site.
        model: digest of the merged model.
        rule: of aggregation, as the job names it.
        time: when the leader proposed the block, by its clock (UTC, to the second), as ``2026-01-31T12:00:00Z``.
        previous: digest of the block before, or of the opening.

    Raises:
        ConfigurationError: a value is not allowed.
    """

    run_id: str
    start: str
    round: int
    leader: str
    parts: Mapping[str, Part] = field(hash=False)
    model: str
    rule: str
    time: str
    previous: str

    def __post_init__(self) -> None:
        _matching("run_id", self.run_id, _RUN_ID, f"letters, digits, '.', - and _, at most {LONGEST_RUN_ID}")
        _matching("start", self.start, _RUN_ID, f"letters, digits, '.', - and _, at most {LONGEST_RUN_ID}")
        _count("round", self.round)
        SITE.check("leader", self.leader)
        object.__setattr__(self, "parts", dict(sorted(self.parts.items())))
        if not 0 < len(self.parts) <= MOST_SITES:
            raise ConfigurationError("parts", len(self.parts), f"those of 1 to {MOST_SITES} sites")
        for site, part in self.parts.items():
            SITE.check("parts", site)
            if not isinstance(part, Part):
                raise ConfigurationError("parts", part, "cases and digest of the update for each site")
        checked_digest("model", self.model)
        words = f"a name of letters, digits, spaces and signs, at most {LONGEST_RULE}"
        _matching("rule", self.rule, _RULE, words)
        _moment(self.time)
        checked_digest("previous", self.previous)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical form: what the next block names, and what sites sign."""
        return digest(self.to_json())

    @property
    def moment(self) -> datetime:
        """Its time."""
        return _moment(self.time)

    @property
    def signers(self) -> frozenset[str]:
        """The sites whose signatures count: those that took part, and the leader."""
        return frozenset(self.parts) | {self.leader}

    def to_json(self) -> dict[str, Any]:
        """JSON values by name."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_json(cls, content: Any) -> Block:
        """Read what ``to_json`` wrote.

        Raises:
            SwarmLedgerError: it is another thing.
        """
        names = ("run_id", "start", "round", "leader", "parts", "model", "rule", "time", "previous")
        found = _exactly(content, names, "block")
        try:
            parts = {site: Part(**part) for site, part in found.pop("parts").items()}
            return cls(parts=parts, **found)
        except (ConfigurationError, TypeError, AttributeError) as error:
            raise SwarmLedgerError(f"A block of the swarm's ledger is not valid: {error}") from None


def now() -> str:
    """The time of this computer's clock, as a block has it."""
    return datetime.now(UTC).strftime(_TIME)


def _moment(text: Any) -> datetime:
    try:
        found = datetime.strptime(text, _TIME).replace(tzinfo=UTC)
        if found.strftime(_TIME) == text:
            return found
    except (ValueError, TypeError):
        pass
    raise ConfigurationError("time", text, "a time in UTC such as 2026-01-31T12:00:00Z")


def _exactly(content: Any, names: tuple[str, ...], what: str) -> dict[str, Any]:
    if not isinstance(content, Mapping) or set(content) != {"schema", *names}:
        raise SwarmLedgerError(f"This is no {what} of a swarm's ledger: it does not hold {', '.join(names)} alone.")
    if content["schema"] != SCHEMA:
        raise SwarmLedgerError(f"The {what} is of another version of the swarm's ledger than {SCHEMA}.")
    return {name: content[name] for name in names}

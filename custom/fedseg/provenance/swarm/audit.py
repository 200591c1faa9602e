"""What ``fedseg audit-log verify`` checks of ledgers of a swarm: each copy by itself, and copies against each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedseg.contract.round_numbers import nth
from fedseg.errors import DataError
from fedseg.files.hash_chain_check import ChainError, verify
from fedseg.provenance.record_comparison import Finding
from fedseg.provenance.swarm.blocks import SCHEMA, Block, Opening
from fedseg.provenance.swarm.contents import Contents, same_blocks
from fedseg.provenance.swarm.errors import SwarmLedgerError
from fedseg.provenance.swarm.ledger import LEDGER_FILE
from fedseg.provenance.swarm.rules import check_place, check_quorum, check_signatures, fork, named
from fedseg.provenance.swarm.signatures import Root, SignedBlock

# Of a thousand sites with the longest names.
_LONGEST_OPENING = 100_000


@dataclass(frozen=True)
class Copy:
    """A copy of a ledger whose lines are sound.

    Attributes:
        path: where it lies.
        site: whose it is, as it says.
        opening: of the swarm.
        blocks: oldest first.
        forks: blocks that it keeps as evidence of a fork.
        torn: bytes of an incomplete line at the end, on whose strength nothing was done.
    """

    path: Path
    site: str
    opening: Opening
    blocks: tuple[SignedBlock, ...]
    forks: tuple[SignedBlock, ...]
    torn: int = 0

    @property
    def title(self) -> str:
        """Whose it is, for people."""
        return f"the ledger of the swarm at the site {self.site}"

    @property
    def head(self) -> str:
        """Digest of the last block, or of the opening: the same at all sites, and what to note elsewhere."""
        return self.blocks[-1].block.digest if self.blocks else self.opening.digest

    def before(self, number: int) -> Block | None:
        """The block before the one with this index."""
        return self.blocks[number - 1].block if number else None


def read_copy(path: Path) -> Copy:
    """Read a ledger, and verify its lines as a hash chain; the blocks in it are for ``audit_copy``.

    Raises:
        ChainError: a line was changed, removed or added, or the end was cut off.
        DataError: it cannot be read, or is none of a swarm.
    """
    try:
        chain, contents = verify(path), Contents()
        contents.take(chain.entries)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from None
    except SwarmLedgerError as error:
        raise DataError(f"{path}: {error}") from None
    if contents.opening is None:
        raise DataError(f"{path} is not the ledger of a swarm: it is empty.")
    blocks, forks = tuple(contents.blocks), tuple(contents.forks)
    return Copy(path, contents.site, contents.opening, blocks, forks, len(chain.torn))


def is_ledger(path: Path) -> bool:
    """Whether a file is a swarm's ledger by its name or by its first line; what is in it may be damaged."""
    if path.name == LEDGER_FILE:
        return True
    try:
        with path.open("rb") as file:
            return f'"schema":"{SCHEMA}"'.encode() in file.readline(_LONGEST_OPENING)
    except OSError:
        return False


def audit_swarm(
    paths: Sequence[Path], root: Root | None = None, quorum: int | None = None, one_run: bool = True
) -> Iterator[Finding]:
    """Check copies of ledgers.

    Args:
        paths: of the files.
        root: certificate of the federation; None to check no issuer, which is then said.
        quorum: how many signatures each block must have; None for what the ledger says itself.
        one_run: whether all of them must be of one run.
    """
    sound: dict[Path, bool] = {}
    copies = []
    for path in paths:
        try:
            copy = read_copy(path)
        except (ChainError, DataError) as error:
            yield Finding(False, str(error) if str(path) in str(error) else f"{path}: {error}")
            continue
        copies.append(copy)
        findings = list(audit_copy(copy, root, quorum))
        sound[path] = all(finding.good for finding in findings)
        yield from findings
    runs: dict[str, list[Copy]] = {}
    for copy in copies:
        runs.setdefault(copy.opening.run_id, []).append(copy)
    for group in runs.values():
        longest = max(group, key=lambda copy: (sound[copy.path], len(copy.blocks)))
        yield from (_agree(longest, copy, root) for copy in group if copy is not longest)
    if one_run and len(runs) > 1:
        yield from _other_runs(runs)


def _other_runs(runs: Mapping[str, Sequence[Copy]]) -> Iterator[Finding]:
    most = max(runs, key=lambda run: len(runs[run]))
    for run, group in runs.items():
        if run != most:
            text = f"is of the run {run}, {runs[most][0].path} of the run {most}: verify each run by itself"
            yield from (Finding(False, f"{copy.path} {text}, or a copy was replaced") for copy in group)


def audit_copy(copy: Copy, root: Root | None, quorum: int | None) -> Iterator[Finding]:
    """Check one copy: its blocks follow each other, all signatures hold, and there are enough of them."""
    torn = f", and {copy.torn} bytes of a line that was never completed" if copy.torn else ""
    what = f"{copy.path}: {copy.title}, run {copy.opening.run_id}, {len(copy.blocks)} block(s), head {copy.head}{torn}"
    wrong = [text for number in range(len(copy.blocks)) for text in _wrong_place(copy, number)]
    yield Finding(not wrong, f"{copy.path}: {wrong[0]}" if wrong else what)
    yield _signatures(copy, root)
    yield _quorum(copy, quorum)
    for other in copy.forks:
        yield Finding(False, f"{copy.path}: {_kept_fork(copy, other, root)}")


def _wrong_place(copy: Copy, number: int) -> Iterator[str]:
    try:
        check_place(copy.opening, copy.before(number), copy.blocks[number].block)
    except SwarmLedgerError as error:
        yield str(error)


def _signatures(copy: Copy, root: Root | None) -> Finding:
    if not copy.opening.root:
        text = "no block is signed, as in a simulation: anybody could have written this ledger"
        return Finding(root is None, f"{copy.path}: {text}")
    if root and root.fingerprint != copy.opening.root:
        return Finding(False, f"{copy.path}: the ledger is of another federation than this root certificate")
    for signed in copy.blocks:
        try:
            check_signatures(copy.opening, signed, root)
        except SwarmLedgerError as error:
            return Finding(False, f"{copy.path}: {error}")
    count = sum(len(signed.signatures) for signed in copy.blocks)
    by = (
        "certificates of this federation" if root else "the certificates in it; who issued these is checked with --root"
    )
    return Finding(True, f"{copy.path}: all {count} signature(s) hold, by {by}")


def _quorum(copy: Copy, quorum: int | None) -> Finding:
    for signed in copy.blocks:
        try:
            check_quorum(copy.opening, signed, quorum)
        except SwarmLedgerError as error:
            return Finding(False, f"{copy.path}: {error}")
    led = Counter(signed.block.leader for signed in copy.blocks)
    words = ", ".join(f"{site} {count}" for site, count in sorted(led.items())) or "nobody"
    need = quorum or copy.opening.quorum
    of = f"{need} of {len(copy.opening.sites)} site(s)"
    return Finding(True, f"{copy.path}: every block has the quorum of {of}; rounds led: {words}")


def _kept_fork(copy: Copy, other: SignedBlock, root: Root | None) -> str:
    here = next((each for each in copy.blocks if each.block.previous == other.block.previous), None)
    return str(fork(here, other)) if here else f"{named(other.block)} is kept as evidence of a fork that is not there"


def _agree(longest: Copy, copy: Copy, root: Root | None) -> Finding:
    if copy.opening != longest.opening:
        return Finding(False, f"{copy.path} has other sites, another quorum or another federation than {longest.path}")
    common = same_blocks(longest.blocks, copy.blocks)
    if common < min(len(longest.blocks), len(copy.blocks)):
        return Finding(False, _difference(longest, copy, common, root))
    missing = [nth(each.block.round) for each in longest.blocks[common:]]
    if missing:
        rounds = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        text = f"lacks the last {len(missing)} block(s), of round(s) {rounds}, which {longest.path} has"
        return Finding(False, f"{copy.path} {text}: its end was cut off, or its site was not there to get them")
    return Finding(True, f"{copy.path} agrees with {longest.path} in all {common} block(s)")


def _difference(longest: Copy, copy: Copy, common: int, root: Root | None) -> str:
    """Two copies with different blocks in one place: a fork if both count, else the one that does not is named."""
    for each in (copy, longest):
        try:
            signed = each.blocks[common]
            check_place(each.opening, each.before(common), signed.block)
            check_quorum(each.opening, signed)
            check_signatures(each.opening, signed, root)
        except SwarmLedgerError as error:
            other = longest if each is copy else copy
            return f"{each.path} was replaced or changed: it tells another story than {other.path}, and {error}"
    return f"{copy.path} and {longest.path}: {fork(longest.blocks[common], copy.blocks[common])}"

"""What the lines of a site's ledger file say, taken together; the file is a chain of ``files.hash_chain``.

The lines are those of one site: beside the blocks, which are the same everywhere, they hold what this site promised and
signed, and the evidence of a fork. Each line has the hash of the line before, so that a change of the file is found at
the site itself; each block has the digest of the block before, so that sites can compare.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fedseg.files.hash_chain_check import Entry
from fedseg.provenance.swarm.blocks import Opening
from fedseg.provenance.swarm.errors import SignatureError, SwarmLedgerError
from fedseg.provenance.swarm.signatures import SignedBlock, fingerprint, parsed

OPENED, CERTIFICATE, PROMISED, SIGNED, BLOCK, FORK = "opened", "certificate", "promised", "signed", "block", "fork"

Ballot = tuple[int, int]
"""Round and attempt: of two proposals for the same place in the ledger the greater one is the later one."""


class Contents:
    """A ledger, line by line.

    Attributes:
        site: whose copy it is.
        opening: None before the first line.
        blocks: those that count, oldest first.
        forks: blocks with signatures that came after another block of the same place had been taken.
        promised: below this nothing is signed any more, for the place after the last block.
        signed: what this site signed last for that place, and under which ballot.
        lines: how many were taken.
        last: hash of the last of them.
    """

    def __init__(self) -> None:
        self.site = ""
        self.opening: Opening | None = None
        self.blocks: list[SignedBlock] = []
        self.forks: list[SignedBlock] = []
        self.promised: Ballot | None = None
        self.signed: tuple[Ballot, SignedBlock] | None = None
        self.lines, self.last = 0, ""
        self._certificates: dict[str, str] = {}

    @property
    def head(self) -> str:
        """Digest of the last block, or of the opening."""
        if self.blocks:
            return self.blocks[-1].block.digest
        return self.opening.digest if self.opening else ""

    def take(self, entries: Iterable[Entry]) -> None:
        """Go on with further lines of a verified chain.

        Raises:
            SwarmLedgerError: a line is none of such a ledger.
        """
        for entry in entries:
            try:
                self._take(entry)
            except (KeyError, TypeError, ValueError, AttributeError):
                number = entry.get("number")
                raise SwarmLedgerError(f"Line {number} is none of a swarm's ledger of this version.") from None
            self.lines, self.last = int(entry["number"]), str(entry["hash"])

    def _take(self, entry: Entry) -> None:
        kind = entry["kind"]
        if (kind == OPENED) is not (self.opening is None):
            raise SwarmLedgerError("The first line, and no other, opens a swarm's ledger; this one does not.")
        if kind == OPENED:
            self.opening, self.site = Opening.from_json(entry["opening"]), str(entry["site"])
        elif kind == CERTIFICATE:
            self._certificates[fingerprint(parsed(entry["certificate"]))] = entry["certificate"]
        elif kind == PROMISED:
            self.promised = _ballot(entry)
        elif kind == SIGNED:
            self.promised = _ballot(entry)
            self.signed = self.promised, self._expanded(entry["signed"])
        elif kind == BLOCK:
            self.blocks.append(self._expanded(entry["signed"]))
            self.promised = self.signed = None
        elif kind == FORK:
            self.forks.append(self._expanded(entry["signed"]))
        else:
            raise ValueError(kind)

    def lines_of(self, kind: str, signed: SignedBlock, **more: Any) -> Iterator[Entry]:
        """The lines that tell of a signed block: certificates that the file does not have yet, then the block."""
        short, new = [], {}
        for signature in signed.signatures:
            name = fingerprint(parsed(signature.certificate)) if signature.certificate else ""
            if name and name not in self._certificates:
                new[name] = signature.certificate
            short.append({**signature.to_json(), "certificate": name})
        for certificate in new.values():
            yield {"kind": CERTIFICATE, "certificate": certificate}
        yield {"kind": kind, **more, "signed": {"block": signed.block.to_json(), "signatures": short}}

    def _expanded(self, content: Mapping[str, Any]) -> SignedBlock:
        listed = [{**each, "certificate": self._certificate(each["certificate"])} for each in content["signatures"]]
        return SignedBlock.from_json({**content, "signatures": listed})

    def _certificate(self, name: str) -> str:
        if name and name not in self._certificates:
            raise SignatureError(f"A signature is by a certificate {name[:16]!r} that the ledger does not hold.")
        return self._certificates[name] if name else ""


def _ballot(entry: Mapping[str, Any]) -> Ballot:
    number, attempt = entry["round"], entry["attempt"]
    if type(number) is not int or type(attempt) is not int:
        raise ValueError(number)
    return number, attempt


def same_blocks(one: Iterable[SignedBlock], other: Iterable[SignedBlock]) -> int:
    """How many blocks two ledgers have in common from their beginning."""
    count = 0
    for mine, its in zip(one, other, strict=False):
        if mine.block.digest != its.block.digest:
            break
        count += 1
    return count

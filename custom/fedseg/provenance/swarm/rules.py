"""When a block counts: it follows the one before, its sites are sites of the swarm, and enough of them signed it."""

from __future__ import annotations

from fedseg.contract.round_numbers import nth
from fedseg.provenance.swarm.blocks import Block, Opening
from fedseg.provenance.swarm.errors import ForkError, SignatureError, SwarmLedgerError
from fedseg.provenance.swarm.signatures import Root, SignedBlock, check_value

_SHOWN = 16


def named(block: Block) -> str:
    """A block for people."""
    return f"the block of round {nth(block.round)} led by {block.leader}"


def check_place(opening: Opening, before: Block | None, block: Block) -> None:
    """Check that a block can stand after another one, whoever signed it.

    Args:
        opening: of the swarm.
        before: the block before; None where it is the first.
        block: the block.

    Raises:
        SwarmLedgerError: it cannot.
    """
    what = named(block)[0].upper() + named(block)[1:]
    if block.run_id != opening.run_id:
        raise SwarmLedgerError(f"{what} is of the run {block.run_id}, this ledger is of the run {opening.run_id}.")
    if strangers := sorted(block.signers - set(opening.sites)):
        raise SwarmLedgerError(f"{what} names {', '.join(strangers)}, which the swarm does not have.")
    if block.previous != (before.digest if before else opening.digest):
        after = named(before) if before else "the opening of this ledger"
        raise SwarmLedgerError(f"{what} does not follow {after}: a block is missing between them, or was changed.")
    if before and block.round <= before.round and block.start == before.start:
        text = f"follows round {nth(before.round)}, but rounds only go up while the server does not start anew"
        raise SwarmLedgerError(f"{what} {text}.")
    if before and block.moment < before.moment:
        raise SwarmLedgerError(f"{what} is of {block.time}, before the block that it follows ({before.time}).")


def check_signatures(opening: Opening, signed: SignedBlock, root: Root | None) -> None:
    """Check every signature of a block.

    Args:
        opening: of the swarm.
        signed: the block with its signatures.
        root: of the federation; None to take the certificates as they are.

    Raises:
        SignatureError: one does not hold, or the swarm signs and one is none.
    """
    for signature in signed.signatures:
        whose = f"In {named(signed.block)} the signature of {signature.site}"
        if signature.site not in signed.block.signers:
            raise SignatureError(f"{whose} does not count: the site neither took part nor led.")
        if not opening.root:
            if signature.value or signature.certificate:
                raise SignatureError(f"{whose} does not count: the sites of this swarm do not sign.")
            continue
        try:
            if not signature.value:
                raise SignatureError("is missing: there is only its name")
            if root:
                root.check(signature, signed.block)
            else:
                check_value(signature, signed.block)
        except SignatureError as error:
            raise SignatureError(f"{whose} {error}.") from None


def check_quorum(opening: Opening, signed: SignedBlock, quorum: int | None = None) -> None:
    """Check that the leader and enough sites signed a block; whether they did is for ``check_signatures``.

    Args:
        opening: of the swarm.
        signed: the block with its signatures.
        quorum: how many are asked for; None for that of the opening.

    Raises:
        SwarmLedgerError: too few.
    """
    need = opening.quorum if quorum is None else quorum
    what = named(signed.block)[0].upper() + named(signed.block)[1:]
    if signed.block.leader not in signed.sites:
        raise SwarmLedgerError(f"{what} is not signed by its leader.")
    if len(signed.signatures) < need:
        text = f"has {len(signed.signatures)} signature(s) ({', '.join(signed.sites)}), but the quorum is {need}"
        raise SwarmLedgerError(f"{what} {text}.")


def fork(here: SignedBlock, other: SignedBlock) -> ForkError:
    """What is said of two blocks that follow the same block, each with a quorum of signatures."""
    both = tuple(sorted(set(here.sites) & set(other.sites)))
    pair = " and ".join(f"{named(each.block)} (digest {each.block.digest[:_SHOWN]}...)" for each in (here, other))
    who = f"{', '.join(both)} signed both" if both else "no site signed both"
    text = f"The ledger forks: {pair} follow the same block, and both have their signatures; {who}."
    return ForkError(text, (here.block.leader, other.block.leader), both)

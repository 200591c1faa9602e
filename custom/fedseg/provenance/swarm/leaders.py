"""Who leads a round of the swarm, and who takes over: an order that follows from the ledger and that all sites find."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from fedseg.files.hash_chain_check import canonical

_PURPOSE = "fedseg-swarm-leader-1"


def leader_order(last_digest: str, round_number: int, sites: Iterable[str]) -> tuple[str, ...]:
    """The sites in the order in which they lead a round: the first one leads, the next ones take over.

    Each site has a number for the round, the SHA-256 of the last block's digest, the round and the site's name; the
    smallest comes first. So each order is about equally likely, and an absent site changes nothing in the order of the
    others: two sites that see different sites present agree on all whom both see.

    Nobody chooses the order of a block that is already there. Who leads a round could make many versions of its own
    update, and publish the block whose digest suits it; no order that follows from the last block prevents that. Over
    many rounds the ledger shows who led how often.

    Args:
        last_digest: of the last block, or of the opening where there is none.
        round_number: from 0.
        sites: names; their order plays no part, and a name that stands twice counts once.

    Returns:
        Every site once.

    >>> leader_order("0" * 64, 0, ["alpha", "beta", "gamma"])
    ('alpha', 'gamma', 'beta')
    """
    return tuple(sorted(set(sites), key=lambda site: (_number(last_digest, round_number, site), site)))


def _number(last_digest: str, round_number: int, site: str) -> bytes:
    terms = {"purpose": _PURPOSE, "last": last_digest, "round": round_number, "site": site}
    return hashlib.sha256(canonical(terms)).digest()

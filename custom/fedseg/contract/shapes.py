"""Names and shapes of the arrays that a job's network has, and who owns them."""

from __future__ import annotations

import torch

from fedseg.contract.plan import Plan
from fedseg.networks.parts.part import Ownership


def update_shapes(plan: Plan) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all arrays that a dense update of this plan may hold."""
    with torch.device("meta"):
        # Names and shapes without the time and the memory of the values.
        network = plan.build_network()
    return {name: tuple(value.shape) for name, value in network.state_dict().items() if value.is_floating_point()}


LAST_ROUND = 2**31
"""Later than every round: an array that joins some time has joined by then."""


def array_owners(plan: Plan) -> dict[str, Ownership]:
    """Who owns the arrays that not all sites share from the first round; empty for a network without parts."""
    if not plan.network.parts:
        return {}
    with torch.device("meta"):
        return plan.network.owners(plan.build_network())


def private_arrays(plan: Plan) -> frozenset[str]:
    """Names of the arrays of which parts of the network give each site its own, that never leaves it."""
    return frozenset(name for name, owner in array_owners(plan).items() if owner.private)


def has_private_arrays(plan: Plan) -> bool:
    """Whether a part of the network has arrays that never leave a site."""
    return bool(private_arrays(plan))


def withheld_names(plan: Plan, site: str, round_number: int) -> frozenset[str]:
    """Names of the arrays that a site's update of a round does not hold, because of the parts of its network."""
    return frozenset(n for n, owner in array_owners(plan).items() if not owner.sent(site, round_number))

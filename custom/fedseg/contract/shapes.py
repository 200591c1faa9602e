"""Names and shapes of the arrays that a job's network has."""

from __future__ import annotations

import torch

from fedseg.contract.plan import Plan


def update_shapes(plan: Plan) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all arrays that a dense update of this plan may hold."""
    with torch.device("meta"):
        # Names and shapes without the time and the memory of the values.
        network = plan.build_network()
    return {name: tuple(value.shape) for name, value in network.state_dict().items() if value.is_floating_point()}

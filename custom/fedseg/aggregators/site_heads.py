"""LC-Fed's heads at the server: each site gets those of all others."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from fedseg.aggregators.shared_state import SharedArray, SharedState
from fedseg.contract.plan import Plan
from fedseg.networks.parts.head_calibration import HEAD_CALIBRATION, calibration_of, head_of


class SiteHeads(SharedState):
    """The last head of every site (LC-Fed; Wang et al., ECCV 2022), which is handed on and never averaged.

    A head is in no update's model, but leaves its site all the same: the server has it, in its checkpoints too, and all
    other sites get it. With a ``weight`` of 0 in the network's part ``head_calibration`` no head leaves.
    """

    prefix = "heads/"
    hands_on_private = True

    def declare(self, plan: Plan, weights: Mapping[str, np.ndarray]) -> dict[str, SharedArray]:
        plan.network.require_part(HEAD_CALIBRATION, "SiteHeads")
        with torch.device("meta"):
            network = plan.build_network()
        if not calibration_of(network).weight:
            return {}
        return {name: SharedArray(tuple(value.shape), "bank") for name, value in head_of(network).named_parameters()}

"""Features of all sites' images at the server, for alignment between sites."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedseg.aggregators.shared_state import SharedArray, SharedState
from fedseg.allowed import whole
from fedseg.contract.plan import Plan
from fedseg.networks.bottleneck import bottleneck_width

_MOST = 4096


class SharedFeatures(SharedState):
    """The last features of each site's images, which every other site gets (Li et al., Med Image Anal 2020).

    A feature is the output of the network's bottleneck for a patch, averaged over space. They are computed from images
    of patients, and nothing bounds what they tell of these: the server has those of every site, in its checkpoints too,
    and each site those of all others, in the order of the sites' names.
    """

    prefix = "features/"

    def __init__(self, count: int = 16) -> None:
        """Choose how many.

        Args:
            count: features that a site sends with each update, from 1 up.
        """
        super().__init__()
        self.count = whole("SharedFeatures.count", count, most=_MOST)

    def declare(self, plan: Plan, weights: Mapping[str, np.ndarray]) -> dict[str, SharedArray]:
        task, outputs = plan.task, plan.objective.output_channels
        width = bottleneck_width(plan.network, len(task.channels), outputs, task.patch_size)
        return {"bottleneck": SharedArray((self.count, width), combine="bank")}

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "count": self.count}

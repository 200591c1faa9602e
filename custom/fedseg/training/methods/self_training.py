"""FedST: self-training, the baseline of FedMix: a network learns from what it finds itself in weakly labelled cases."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from fedseg.training.hooks import LocalTraining
from fedseg.training.taught_by_labels import TaughtByLabels


class SelfTraining(TaughtByLabels):
    """Pseudo-labels of the received global model, refined as in ``MixedSupervision``; no second network tests them.

    Every pseudo-label that contradicts nothing teaches. Where everything is labelled voxel by voxel, or with a
    ``strength`` of 0, training is what it is without this hook, to the bit. No other hook goes with it.
    """

    def __init__(
        self, strength: float = 1.0, from_round: int = 1, box_overlap: float = 0.5, box_form: str = "extent"
    ) -> None:
        """Choose how much pseudo-labels teach.

        Args:
            strength: weight of a case with a pseudo-label beside 1 of any other, from 0.
            from_round: first round that uses pseudo-labels.
            box_overlap, box_form: see ``pseudo_labels.BoxRule``.
        """
        super().__init__(strength, from_round, box_overlap, box_form)

    def learners(self, training: LocalTraining) -> Sequence[nn.Module]:
        return (training.network,)

    def labels(self, training: LocalTraining, found: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        return found

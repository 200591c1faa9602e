"""FedMix, the site's side: two networks that teach each other where labels are weak (Wicaksana et al., TMI 2023)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from fedseg.allowed import number
from fedseg.contract.plan import Plan
from fedseg.errors import ConfigurationError
from fedseg.networks.parts.second_network import SECOND_NETWORK, second_network
from fedseg.training.hooks import LocalTraining
from fedseg.training.pseudo_labels import agreement
from fedseg.training.taught_by_labels import TaughtByLabels


class MixedSupervision(TaughtByLabels):
    """Cross pseudo-supervision of two networks, both of which the federation shares.

    The network of the job needs the part ``second_network``. In each round, from ``from_round``:

    1. Both received networks segment every case with weak labels: y1 and y2, refined by what is known of the case
       (``pseudo_labels.refined``); a contradiction leaves the case out of the round.
    2. A case is kept if y1 and y2 agree: a mean Dice of at least ``least_agreement``.
    3. The first network learns from y2, the second from y1, and both from all that is labelled voxel by voxel, with the
       plan's loss. Each clips its own gradients.

    The number of cases that taught is reported as ``taught_cases``, by which ``aggregators.fedmix.FedMix`` weighs the
    sites. The first network alone is scored, and predicts. Where everything is labelled voxel by voxel, or with a
    ``strength`` of 0, it is trained as without this hook, to the bit; the second one is trained all the same. A round
    takes twice the time, and an inference of both networks on the weak cases. No other hook goes with it.
    """

    networks = 2

    def __init__(
        self,
        least_agreement: float = 0.9,
        strength: float = 1.0,
        from_round: int = 1,
        box_overlap: float = 0.5,
        box_form: str = "extent",
    ) -> None:
        """Choose which pseudo-labels teach, and how much.

        Args:
            least_agreement: Dice of the two pseudo-labels of a case, from 0; above 1 no pseudo-label is used.
            strength: weight of a case with a pseudo-label beside 1 of any other, from 0.
            from_round: first round that uses pseudo-labels; untrained networks may agree on anything.
            box_overlap, box_form: see ``pseudo_labels.BoxRule``.
        """
        super().__init__(strength, from_round, box_overlap, box_form)
        self.least_agreement = number("least_agreement", least_agreement, least=0)

    def check_plan(self, plan: Plan) -> None:
        super().check_plan(plan)
        names = [part.name for part in plan.network.parts]
        if names != [SECOND_NETWORK]:
            allowed = f'[{{"name": "{SECOND_NETWORK}"}}], since two networks alike teach each other'
            raise ConfigurationError("network.parts", names, allowed)

    def learners(self, training: LocalTraining) -> Sequence[nn.Module]:
        return training.network, second_network(training.network)

    def labels(self, training: LocalTraining, found: Sequence[np.ndarray]) -> Sequence[np.ndarray] | None:
        first, second = found
        if agreement(training.task, first, second) < self.least_agreement:
            return None
        return second, first

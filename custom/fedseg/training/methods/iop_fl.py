"""IOP-FL inside the federation: a personal model that averages a site's own models (Jiang et al., IEEE TMI 2023)."""

from __future__ import annotations

from fedseg import allowed
from fedseg.networks.weights import get_weights, is_averaged
from fedseg.training.hooks import LocalTraining
from fedseg.training.methods.personal_model import PersonalModel


class IOPFL(PersonalModel):
    """After each round's training the personal model becomes ``theta <- alpha * theta + (1 - alpha) * w``, w being the
    site's own model after that training; theta starts as the w of the site's first round.

    So a model of n rounds ago counts (1 - alpha) * alpha^n. Integer buffers (counters) are those of the latest w. This
    is the half of the method for sites of the federation; for sites outside of it ``networks.routed`` mixes the
    personal models that a run was given (``workflow.personal_models``). The published code keeps theta and w of the
    first round in the same tensors; here they are apart.
    """

    trained = False

    def __init__(self, alpha: float = 0.1) -> None:
        """Choose how much of the former personal model stays.

        Args:
            alpha: from 0 to below 1; 0 is the site's latest own model.
        """
        self.alpha = allowed.number("alpha", alpha, least=0, below=1)

    def train_personal(self, training: LocalTraining) -> None:
        personal, own = training.companions["personal"], get_weights(training.network)
        if personal.started and self.alpha:
            former, share = personal.weights(), self.alpha
            own |= {n: share * former[n] + (1 - share) * own[n] for n, value in own.items() if is_averaged(value)}
        personal.load(own)

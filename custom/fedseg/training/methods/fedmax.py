"""FedMAX: activations of maximum entropy against drift (Chen, Bhardwaj and Marculescu, ECML PKDD 2020)."""

from __future__ import annotations

import math

import torch

from fedseg import allowed
from fedseg.networks.weights import Arrays
from fedseg.training.hooks import LocalTraining, TrainingHook
from fedseg.training.methods.bottleneck_features import BottleneckFeatures


class FedMax(TrainingHook):
    """Adds beta / (B F) * sum over the B images of KL(uniform || softmax(a)) to the loss.

    a are the F features of an image at the bottleneck, averaged over space; the paper takes the layer before the
    classifier, which a segmentation network does not have as one vector. KL(u || p) is the sum over the features of
    1/F * log((1/F) / p): 0 where all features are equal, growing as single ones dominate.
    """

    # The term is part of what the site minimises; it looks at no other model.
    withholds = frozenset()

    def __init__(self, beta: float = 1000.0) -> None:
        """Choose how strongly.

        Args:
            beta: from 0 up; 0 adds nothing, which is FedAvg. The default is the one published for chest radiographs,
                and goes with the division by the number of features: with 128 features an image's divergence counts
                7.8 times. With fresh default networks the term is 0.2 (``residual_unet``), 0.4 (``segresnet``) and
                0.004 (``dynunet``, whose bottleneck ends in a normalisation) beside a segmentation loss of about 1.4.
        """
        allowed.number("beta", beta, least=0)
        self.beta = beta
        self._features = BottleneckFeatures()

    def before_round(self, training: LocalTraining, global_weights: Arrays, round_number: int) -> None:
        if self.beta:
            self._features.watch(training.plan.network.arguments.bottleneck(training.network))

    def loss(
        self, training: LocalTraining, images: torch.Tensor, logits: torch.Tensor, classes: torch.Tensor
    ) -> torch.Tensor | None:
        return self.beta * entropy_term(self._features.features()) if self.beta else None

    def after_round(self, training: LocalTraining, global_weights: Arrays, round_number: int) -> None:
        self._features.release()


def entropy_term(activations: torch.Tensor) -> torch.Tensor:
    """Mean over images and features of the summands of KL(uniform || softmax(a)); activations [B, F], a scalar."""
    count = activations.shape[1]
    # sum_f 1/F (log 1/F - log p_f), divided by F once more: the mean over the features of (-log F - log p_f), over F.
    return (-math.log(count) - activations.log_softmax(dim=1)).mean() / count

"""MOON: model-contrastive learning (Li, He and Song, CVPR 2021)."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn
from torch.nn import functional

from fedseg import allowed
from fedseg.contract.combinations import COUNTED_STEPS, PLAIN_STEPS
from fedseg.contract.plan import Plan
from fedseg.errors import ConfigurationError
from fedseg.networks.weights import Arrays, get_weights
from fedseg.training.companions import Companion
from fedseg.training.hooks import LocalTraining, TrainingHook
from fedseg.training.methods.bottleneck_features import BottleneckFeatures

_PREVIOUS = "previous"


class MOON(TrainingHook):
    """Pulls the features of the local model towards the global model's, away from those it had a round ago.

    1. z, z_global and z_previous are the features of the batch's images in the network in training, in the received
       global model and in this site's own model after its last finished round: the output of the bottleneck, averaged
       over space. The network is left as it is; the paper's projection head is not added.
    2. The loss grows by mu times the mean over the images of
       ``-log(e^(cos(z, z_global)/t) / (e^(cos(z, z_global)/t) + e^(cos(z, z_previous)/t)))`` with temperature t.
    3. In a site's first round the previous model is the global one: the term is log 2 with gradient 0.

    Each step runs two forward passes more, without gradients. The bottleneck of ``dynunet`` ends in an instance
    normalisation, which fixes the mean over space up to the activation behind it: there the term stays near log 2 and
    does little. ``norm: group`` or another network gives it something to compare.
    """

    withholds = frozenset({PLAIN_STEPS, COUNTED_STEPS})
    # The received model as a network of its own.
    copies = 1

    def __init__(self, mu: float = 1.0, temperature: float = 0.5) -> None:
        """Choose how strongly.

        Args:
            mu: weight of the term, from 0 up; 0 adds nothing, which is FedAvg.
            temperature: above 0; small values look at the closer of the two models only.
        """
        allowed.number("mu", mu, least=0)
        allowed.number("temperature", temperature, least=0)
        if temperature == 0:
            raise ConfigurationError("temperature", temperature, "a number above 0")
        self.mu, self.temperature = mu, temperature
        self._features = BottleneckFeatures()
        self._global: nn.Module | None = None

    def companions(self, plan: Plan) -> dict[str, Companion]:
        if self.mu == 0:
            return {}
        return {_PREVIOUS: Companion(plan.build_network().requires_grad_(False).eval())}

    def before_round(self, training: LocalTraining, global_weights: Arrays, round_number: int) -> None:
        self._features.release()
        if self.mu:
            self._global = deepcopy(training.network).requires_grad_(False).eval()
            self._features.watch(_bottleneck(training, training.network))

    def loss(
        self, training: LocalTraining, images: torch.Tensor, logits: torch.Tensor, classes: torch.Tensor
    ) -> torch.Tensor | None:
        if self._global is None:
            return None
        previous = training.companions[_PREVIOUS]
        current, towards = self._features.features(), self._frozen_features(training, self._global, images)
        away = self._frozen_features(training, previous.network, images) if previous.started else towards
        return self.mu * contrastive_term(current, towards, away, self.temperature)

    def after_round(self, training: LocalTraining, global_weights: Arrays, round_number: int) -> None:
        self._features.release()
        self._global = None
        if self.mu:
            training.companions[_PREVIOUS].load(get_weights(training.network))

    def _frozen_features(self, training: LocalTraining, network: nn.Module, images: torch.Tensor) -> torch.Tensor:
        frozen = BottleneckFeatures()
        frozen.watch(_bottleneck(training, network))
        with torch.no_grad(), training.autocast():
            network(images)
        features = frozen.features()
        frozen.release()
        return features


def contrastive_term(
    current: torch.Tensor, towards: torch.Tensor, away: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Mean over the images of -log of the softmax share of ``towards``; features [B, F] each, a scalar.

    Equal features in ``towards`` and ``away`` give log 2.
    """
    gap = functional.cosine_similarity(current, away) - functional.cosine_similarity(current, towards)
    # -log(a / (a + b)) = log(1 + b / a), which softplus computes without overflow at small temperatures.
    return functional.softplus(gap / temperature).mean()


def _bottleneck(training: LocalTraining, network: nn.Module) -> nn.Module:
    return training.plan.network.arguments.bottleneck(network)

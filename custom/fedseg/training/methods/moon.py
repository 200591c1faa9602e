"""MOON: model-contrastive learning (Li, He and Song, CVPR 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from fedseg import allowed
from fedseg.errors import ConfigurationError
from fedseg.networks.weights import Arrays, set_weights
from fedseg.training.hooks import TrainingHook
from fedseg.training.methods.bottleneck_features import BottleneckFeatures

if TYPE_CHECKING:
    from fedseg.training.trainer import SiteTrainer


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
        self._own: dict[str, torch.Tensor] | None = None
        self._global: nn.Module | None = None
        self._previous: nn.Module | None = None

    def before_round(self, trainer: SiteTrainer, global_weights: Arrays, round_number: int) -> None:
        if self.mu == 0:
            return
        self._global, self._previous = _frozen(trainer, global_weights), None
        if self._own is not None:
            self._previous = _frozen(trainer, {name: value.numpy() for name, value in self._own.items()})

    def before_step(self, trainer: SiteTrainer, images: torch.Tensor, classes: torch.Tensor) -> None:
        if self.mu:
            self._features.watch(_bottleneck(trainer, trainer.network))

    def loss(
        self, trainer: SiteTrainer, images: torch.Tensor, logits: torch.Tensor, classes: torch.Tensor
    ) -> torch.Tensor | None:
        if self._global is None:
            return None
        current, towards = self._features.take(), self._frozen_features(trainer, self._global, images)
        away = towards if self._previous is None else self._frozen_features(trainer, self._previous, images)
        return self.mu * contrastive_term(current, towards, away, self.temperature)

    def after_round(self, trainer: SiteTrainer, global_weights: Arrays, round_number: int) -> None:
        self._global = self._previous = None
        if self.mu:
            self._own = {name: value.detach().cpu().clone() for name, value in trainer.network.state_dict().items()}

    def state(self) -> dict[str, Any]:
        return {"network": self._own} if self._own is not None else {}

    def load_state(self, state: dict[str, Any] | None) -> None:
        self._own = state.get("network") if state else None

    def _frozen_features(self, trainer: SiteTrainer, network: nn.Module, images: torch.Tensor) -> torch.Tensor:
        features = BottleneckFeatures()
        features.watch(_bottleneck(trainer, network))
        with torch.no_grad(), trainer.autocast():
            network(images)
        return features.take()


def contrastive_term(
    current: torch.Tensor, towards: torch.Tensor, away: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Mean over the images of -log of the softmax share of ``towards``; features [B, F] each, a scalar.

    Equal features in ``towards`` and ``away`` give log 2.
    """
    gap = functional.cosine_similarity(current, away) - functional.cosine_similarity(current, towards)
    # -log(a / (a + b)) = log(1 + b / a), which softplus computes without overflow at small temperatures.
    return functional.softplus(gap / temperature).mean()


def _frozen(trainer: SiteTrainer, weights: Arrays) -> nn.Module:
    """A network of the trainer's kind with these weights, not to be trained."""
    plan = trainer.plan
    network = plan.build_network()
    set_weights(network, weights)
    network.to(trainer.device).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    return network.requires_grad_(False).eval()


def _bottleneck(trainer: SiteTrainer, network: nn.Module) -> nn.Module:
    return trainer.plan.network.arguments.bottleneck(network)

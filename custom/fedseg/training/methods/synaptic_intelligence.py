"""Synaptic intelligence: a model that goes from site to site keeps what it learned (Zenke et al., ICML 2017)."""

from __future__ import annotations

import numpy as np
import torch

from fedseg import allowed
from fedseg.contract.combinations import CARRIED, LAST_STEP, LOCAL_STEPS, PLAIN_STEPS
from fedseg.contract.plan import Plan
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.networks.weights import Arrays, check_weights
from fedseg.training.hooks import LocalTraining, TrainingHook


class SynapticIntelligence(TrainingHook):
    """Holds each weight the more, the more it has helped the sites that were visited before.

    Huang et al. (2022) carried a model over hospitals with it. At every visit, with the received weights theta* and
    their importance Omega:

    1. The loss is the loss of the plan plus strength * sum of Omega * (theta - theta*)^2 over all weights.
    2. Each step adds -g * (change of the weight) to omega, which begins with 0. The gradient g is that of the loss
       without the term of 1, before it is clipped.
    3. At hand-over max(0, omega) / (D^2 + damping) is added to Omega, where D is the change of the weight over the
       whole visit. ``aggregators.importance.Importance`` adds it and hands it on.

    omega is the part of the fall of the loss that a weight's way accounts for. Steps of stochastic gradients can make
    it negative, where a weight did harm; it counts as no importance then.
    """

    prefix = "importance/"
    needs = frozenset({LOCAL_STEPS, CARRIED, LAST_STEP})
    withholds = frozenset({PLAIN_STEPS})
    # Omega, omega, theta*, and of the last step weights and gradient.
    copies = 5

    def __init__(self, strength: float = 0.1, damping: float = 0.001) -> None:
        """Choose how strongly.

        Args:
            strength: c of the formula, from 0 up; 0 adds nothing to the loss.
            damping: xi of the formula, above 0, in units of a weight squared; it bounds the importance of weights that
                hardly moved.

        Raises:
            ConfigurationError: a value is not allowed.
        """
        self.strength = allowed.number("strength", strength, least=0)
        self.damping = allowed.number("damping", damping, above=0)
        self._importance: dict[str, torch.Tensor] = {}
        self._anchor: dict[str, torch.Tensor] = {}
        self._path: dict[str, torch.Tensor] = {}
        self._before: dict[str, torch.Tensor] = {}
        self._gradient: dict[str, torch.Tensor] = {}
        self._added: Arrays = {}

    def check_plan(self, plan: Plan) -> None:
        """Refuse averaged weights: the importance would be that of a way that does not lead to them."""
        if plan.training.weight_average:
            raise ConfigurationError(
                "training.weight_average", plan.training.weight_average, "0 with synaptic intelligence"
            )

    def before_round(self, training: LocalTraining, global_weights: Arrays, round_number: int) -> None:
        received = {
            name.removeprefix(self.prefix): value
            for name, value in training.received_shared_arrays.items()
            if name.startswith(self.prefix)
        }
        named = dict(training.network.named_parameters())
        if not received:
            raise RefusalError("weights", "The server sent no importance of the weights; its job lacks Importance.")
        check_weights(
            {name: p.detach() for name, p in named.items()}, {n: v for n, v in received.items() if n in named}
        )
        self._importance = {name: torch.as_tensor(received[name]).to(p) for name, p in named.items()}
        self._anchor = {name: p.detach().clone() for name, p in named.items()}
        self._before = {name: value.clone() for name, value in self._anchor.items()}
        self._path = {name: torch.zeros_like(value) for name, value in self._anchor.items()}
        self._gradient = {}

    def loss(
        self, training: LocalTraining, images: torch.Tensor, logits: torch.Tensor, classes: torch.Tensor
    ) -> torch.Tensor | None:
        if self.strength == 0:
            return None
        terms = [
            (self._importance[name] * (parameter - self._anchor[name]).square()).sum()
            for name, parameter in training.network.named_parameters()
            if parameter.requires_grad
        ]
        return self.strength * torch.stack(terms).sum()

    @torch.no_grad()
    def after_backward(self, training: LocalTraining) -> None:
        self._gradient = {}
        for name, parameter in training.network.named_parameters():
            if parameter.grad is not None:
                way = parameter - self._anchor[name]
                self._gradient[name] = parameter.grad - 2 * self.strength * self._importance[name] * way

    @torch.no_grad()
    def after_step(self, training: LocalTraining) -> None:
        for name, parameter in training.network.named_parameters():
            if name in self._gradient:
                self._path[name] -= self._gradient[name] * (parameter - self._before[name])
            self._before[name].copy_(parameter)

    @torch.no_grad()
    def after_round(self, training: LocalTraining, global_weights: Arrays, round_number: int) -> None:
        received = training.received_shared_arrays.items()
        # Arrays that are no parameters, such as running means of a normalisation, have no importance.
        self._added = {name: np.zeros_like(value) for name, value in received if name.startswith(self.prefix)}
        for name, parameter in training.network.named_parameters():
            moved = parameter - self._anchor[name]
            added = self._path[name].clamp_min(0) / (moved.square() + self.damping)
            self._added[self.prefix + name] = added.cpu().numpy()
        self._importance, self._anchor, self._path, self._before, self._gradient = {}, {}, {}, {}, {}

    def shared_arrays(self, training: LocalTraining) -> Arrays:
        return dict(self._added)

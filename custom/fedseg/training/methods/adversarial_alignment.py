"""Federated adversarial alignment: features that do not tell the site (Li et al., Medical Image Analysis 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from fedseg import allowed
from fedseg.contract.combinations import COUNTED_STEPS, PLAIN_STEPS
from fedseg.contract.plan import Plan
from fedseg.contract.report import ReportField
from fedseg.errors import RefusalError
from fedseg.networks.bottleneck import bottleneck_width
from fedseg.networks.weights import Arrays
from fedseg.randomness import derive_seed, generator
from fedseg.training.companions import Companion
from fedseg.training.hooks import LocalTraining, TrainingHook
from fedseg.training.methods.bottleneck_features import BottleneckFeatures

_DISCRIMINATOR = "discriminator"


class AdversarialAlignment(TrainingHook):
    """Trains the network so that a discriminator cannot tell this site's features from those of the others.

    1. z are the features of a patch: the output of the bottleneck, averaged over space. With each update a site sends
       features of its training patches under the weights of that update, with noise N(0, (noise * s)^2), s being their
       standard deviation; ``aggregators.shared_features.SharedFeatures`` passes them on to all other sites.
       **Features of patients so leave the site, by design.** The noise gives no guarantee.
    2. In each step the site's discriminator D, an MLP, takes a step of Adam along the mean of the binary
       cross-entropies of D(z) for its own batch (to be told as 1) and for the others' features (0).
    3. The loss of the network grows by ``strength`` times the mean of ``-log(1 - sigmoid(D(z)))``: it is small where D
       takes the site's features for those of others.

    The discriminator stays at the site. In the publication there is one for each pair of sites; here each site has one,
    between itself and all others, since the server does not say whose features are whose. No features leave after the
    last round, or before a round that does not use them; zeros do in their place.
    """

    prefix = "features/"
    sends_features = True
    withholds = frozenset({PLAIN_STEPS, COUNTED_STEPS})
    reports: ClassVar[Mapping[str, ReportField]] = {
        "discriminator_accuracy": ReportField(
            "share of features, own and others' counted alike, that the site's discriminator told apart", 0, 1
        )
    }

    def __init__(
        self, strength: float = 0.1, noise: float = 0.001, from_round: int = 1, hidden: int = 64, rate: float = 1e-3
    ) -> None:
        """Choose how strongly.

        Args:
            strength: weight of the term, from 0 up; 0 is FedAvg, and no features leave. With large values the network
                follows a discriminator that has not learned yet.
            noise: on the features that leave, as a multiple of their standard deviation, from 0 up.
            from_round: first round (from 0) with the term; 1 at least, since features come with the round before.
            hidden: units of the discriminator's hidden layer.
            rate: learning rate of the discriminator, above 0.
        """
        self.strength = allowed.number("strength", strength, least=0)
        self.noise = allowed.number("noise", noise, least=0)
        self.from_round = allowed.whole("from_round", from_round)
        self.hidden = allowed.whole("hidden", hidden, most=4096)
        self.rate = allowed.number("rate", rate, above=0, most=1)
        self._features = BottleneckFeatures()
        self._others = torch.zeros(0, 0)
        self._sent: Arrays = {}
        self._accuracies: list[float] = []

    def companions(self, plan: Plan) -> dict[str, Companion]:
        if not self.strength:
            return {}
        task, outputs = plan.task, plan.objective.output_channels
        width = bottleneck_width(plan.network, len(task.channels), outputs, task.patch_size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(plan.seed, _DISCRIMINATOR))
            network = nn.Sequential(nn.Linear(width, self.hidden), nn.ReLU(), nn.Linear(self.hidden, 1))
        return {_DISCRIMINATOR: _Discriminator(network, self.rate)}

    def before_round(self, training: LocalTraining, global_weights: Arrays, round_number: int) -> None:
        name = f"{self.prefix}bottleneck"
        if name not in training.received_shared_arrays:
            raise RefusalError("weights", "No features came with the model: the job lacks SharedFeatures.")
        bank = training.received_shared_arrays[name]
        self._sent = {name: np.zeros(bank.shape[1:], np.float32)}
        # Zeros stand for features that were not sent.
        others = torch.from_numpy(np.array(bank.reshape(-1, bank.shape[2])))
        self._others = others[others.any(dim=1)].to(training.device)
        self._accuracies = []
        self._features.release()
        if self.strength and round_number >= self.from_round and len(self._others):
            self._features.watch(training.plan.network.arguments.bottleneck(training.network))
        else:
            self._others = self._others[:0]

    def loss(
        self, training: LocalTraining, images: torch.Tensor, logits: torch.Tensor, classes: torch.Tensor
    ) -> torch.Tensor | None:
        if not len(self._others):
            return None
        features, discriminator = self._features.features(), training.companions[_DISCRIMINATOR]
        self._accuracies.append(_learn(discriminator, features.detach(), self._others))
        return self.strength * adversarial_term(discriminator.network, features)

    def after_round(self, training: LocalTraining, global_weights: Arrays, round_number: int) -> None:
        self._features.release()
        following = round_number + 1
        if self.strength and self.from_round <= following < training.total_rounds:
            (name, empty), *_ = self._sent.items()
            self._sent = {name: self._features_of_patches(training, len(empty), round_number)}

    def shared_arrays(self, training: LocalTraining) -> Arrays:
        return dict(self._sent)

    def report(self, training: LocalTraining) -> dict[str, float]:
        count = len(self._accuracies)
        return {"discriminator_accuracy": sum(self._accuracies) / count} if count else {}

    def _features_of_patches(self, training: LocalTraining, count: int, round_number: int) -> np.ndarray:
        """Features [count, width] of the first patches of the round, under the weights after it, with noise."""
        network, learning = training.network, training.network.training
        watched, found, epoch = BottleneckFeatures(), list[np.ndarray](), 0
        network.eval()
        watched.watch(training.plan.network.arguments.bottleneck(network))
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad(), training.autocast():
                while len(found) < count:
                    for batch in training.batches(round_number, epoch):
                        training.check_abort()
                        network(batch["image"].to(training.device))
                        found.extend(watched.features().cpu().numpy())
                    epoch += 1
        finally:
            watched.release()
            network.train(learning)
        features = np.stack(found[:count]).astype(np.float64)
        draw = generator(training.plan.seed, training.site, round_number, "features")
        return (features + draw.normal(size=features.shape) * self.noise * features.std()).astype(np.float32)


class _Discriminator(Companion):
    """A small network with Adam at a rate of its own."""

    def __init__(self, network: nn.Module, rate: float) -> None:
        self._rate = rate
        super().__init__(network)

    def _new_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.network.parameters(), self._rate)


def _learn(discriminator: Companion, own: torch.Tensor, others: torch.Tensor) -> float:
    """A step of the discriminator on features [B, width] and [N, width]; returns how well it told them apart before."""
    optimizer = discriminator.optimizer
    assert optimizer is not None
    told_own, told_others = discriminator.network(own), discriminator.network(others)
    optimizer.zero_grad(set_to_none=True)
    ((cross_entropy(told_own, 1.0) + cross_entropy(told_others, 0.0)) / 2).backward()
    optimizer.step()
    right = (told_own > 0).float().mean() + (told_others <= 0).float().mean()
    return float(right.detach()) / 2


def adversarial_term(discriminator: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """Mean of ``-log(1 - sigmoid(D(z)))`` over features [B, width], a scalar; no gradient goes to the discriminator."""
    frozen = {name: value.detach() for name, value in discriminator.named_parameters()}
    return cross_entropy(functional_call(discriminator, frozen, (features,)), 0.0)


def cross_entropy(logits: torch.Tensor, target: float) -> torch.Tensor:
    """Mean binary cross-entropy of logits with one target for all, a scalar.

    >>> round(float(cross_entropy(torch.zeros(3, 1), 0.0)), 4)
    0.6931
    """
    return functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))

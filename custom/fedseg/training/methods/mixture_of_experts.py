"""Mixture of experts: a private network beside the global one, and a gate that weighs them by the image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import nn

from fedseg import allowed
from fedseg.contract.combinations import COUNTED_STEPS, PLAIN_STEPS
from fedseg.contract.plan import Plan
from fedseg.contract.report import ReportField
from fedseg.errors import ConfigurationError
from fedseg.networks.parts.mixture import Mixture, MixturePart, mix, mixture_of
from fedseg.networks.weights import Arrays, get_weights
from fedseg.training.companions import Companion
from fedseg.training.hooks import LocalTraining
from fedseg.training.methods.personal_model import PersonalModel
from fedseg.training.patches import Sample

_EXPERT, _GATE = "expert", "gate"


class MixtureOfExperts(PersonalModel):
    """Keeps a private expert p beside the site's copy w of the global model, and a gate a(x) between their outputs.

    The personal model is y(x) = a(x) * w(x) + (1 - a(x)) * p(x), in logits, with a(x) the sigmoid of a linear function
    of w's bottleneck, averaged over space: one number for each image that passes, which is a patch or a window. With f
    the loss, in each step

    1. p moves along the gradient of f(p(x)), as at a site alone, with an optimizer of its own;
    2. w and the gate move along that of f(y(x)), p(x) being what it was before 1. With ``joint`` false w moves along
       that of f(w(x)) in its place, as without this method.

    Source: Li et al., Med Image Anal 2020, where x is a vector, and log-probabilities are mixed. p begins as the model
    that the site receives in its first round; p, the gate and their optimizers survive a restart. Only the change of w
    leaves the site. Each round takes twice the time.
    """

    trained = False
    personal_parts = (MixturePart(),)
    withholds = frozenset({PLAIN_STEPS, COUNTED_STEPS})
    reports: ClassVar[Mapping[str, ReportField]] = {
        **PersonalModel.reports,
        "global_share": ReportField("mean share of the global model in the site's mixture of experts", 0, 1),
    }

    def __init__(self, share: float = 0.5, adaptive: bool = True, joint: bool = True) -> None:
        """Choose the gate.

        Args:
            share: a of every image before the first step: from 0 (p alone) to 1 (w alone), both excluded where the gate
                learns, which could not leave them.
            adaptive: whether the gate learns.
            joint: whether w learns through the mixture, as published; else it is that of the job without this method.
        """
        self.share = allowed.number("share", share, least=0, most=1)
        self.adaptive, self.joint = allowed.switch("adaptive", adaptive), allowed.switch("joint", joint)
        if adaptive and share in (0, 1):
            remedy = "Set adaptive to false for one of the two alone."
            raise ConfigurationError("share", share, "between 0 and 1 where the gate learns", remedy)
        self._shares: list[float] = []
        self._lesson: tuple[torch.Tensor, torch.Tensor] | None = None

    def companions(self, plan: Plan) -> dict[str, Companion]:
        """The mixture, and once more its parts, which are the same modules, with optimizers."""
        found = super().companions(plan)
        mixture = mixture_of(found["personal"].network)
        mixture.open(self.share)
        mixture.gate.requires_grad_(self.adaptive)
        beside = {_EXPERT: mixture.expert, _GATE: mixture.gate}
        return {**found, **{name: Companion(module, plan.training) for name, module in beside.items()}}

    def before_round(self, training: LocalTraining, global_weights: Arrays, round_number: int) -> None:
        self._shares = []
        if not training.companions[_EXPERT].started:
            training.companions[_EXPERT].load(global_weights)

    def step(self, training: LocalTraining, batch: Sample) -> float:
        """A step of each; returns the loss of the mixture, or without ``joint`` that of w."""
        mixture = mixture_of(training.companions["personal"].network)
        rate, clip = float(training.optimizer.param_groups[0]["lr"]), training.settings.gradient_clip
        with _outputs(mixture.expert) as given:
            training.companion_gradients(_EXPERT, batch)
        training.companions[_EXPERT].step(rate, clip)
        with self._gated(training, mixture, given[-1].detach()):
            loss = training.compute_gradients(batch)
        training.apply_gradients()
        if self.adaptive:
            training.companions[_GATE].step(rate, clip)
        return loss

    def loss(
        self, training: LocalTraining, images: torch.Tensor, logits: torch.Tensor, classes: torch.Tensor
    ) -> torch.Tensor | None:
        """Without ``joint``: the loss of the mixture, whose gradient reaches the gate only."""
        if self.joint or not self.adaptive or self._lesson is None:
            return None
        share, private = self._lesson
        return training.loss(mix(share, logits.detach().float(), private.float()), classes)

    def train_personal(self, training: LocalTraining) -> None:
        """p and the gate were trained in the steps; w joins them."""
        personal = training.companions["personal"]
        personal.load({**personal.weights(), **get_weights(training.network)})

    def report(self, training: LocalTraining) -> dict[str, float]:
        shares = {"global_share": sum(self._shares) / len(self._shares)} if self._shares else {}
        return {**super().report(training), **shares}

    @contextmanager
    def _gated(self, training: LocalTraining, mixture: Mixture, private: torch.Tensor) -> Iterator[None]:
        """Where the outputs of the network in training meet those of the expert for the same images."""

        def meet(network: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
            share = mixture.share(features[-1])
            self._shares.append(float(share.detach().mean()))
            self._lesson = share, private
            return mix(share, output, private) if self.joint else None

        bottleneck = training.plan.network.arguments.bottleneck(training.network)
        with _outputs(bottleneck) as features:
            handle = training.network.register_forward_hook(meet)
            try:
                yield
            finally:
                handle.remove()
                self._lesson = None


@contextmanager
def _outputs(module: nn.Module) -> Iterator[list[torch.Tensor]]:
    """What a module gives in the passes within, in their order."""
    found: list[torch.Tensor] = []
    handle = module.register_forward_hook(lambda module, inputs, output: found.append(output))
    try:
        yield found
    finally:
        handle.remove()

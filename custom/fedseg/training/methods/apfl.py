"""APFL: a personal model that is a mixture of a local and the global one (Deng, Kamani and Mahdavi, 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from fedseg import allowed
from fedseg.contract.plan import Plan
from fedseg.contract.report import ReportField
from fedseg.networks.weights import Arrays, get_weights, is_averaged
from fedseg.training.companions import Companion
from fedseg.training.hooks import LocalTraining
from fedseg.training.methods.personal_model import PersonalModel
from fedseg.training.patches import Sample

_LOCAL = "local"


class APFL(PersonalModel):
    """Keeps a local model v beside the site's copy w of the global one; the personal model is their mixture.

    With u = alpha * v + (1 - alpha) * w, and f the loss of a batch:

    1. In the first step of a round, if ``adaptive``: alpha <- alpha - rate * <v - w, grad f(u)>, held within 0 and 1.
    2. In each step v moves along alpha * grad f(u), and w along grad f(w) as without this method.
    3. After the round u is the personal model. Only the change of w leaves the site.

    v starts as the received model of the site's first round; v, its optimizer and alpha survive a restart. v has the
    plan's optimizer, rate and gradient clip, but no other hook of the job. Each round takes twice the time. With alpha
    fixed at 1 the personal model is that of a site alone, at 0 the site's own model after each round.
    """

    trained = False
    # u and v lie beside the network; a gradient of u, and one of v.
    copies = 2
    reports: ClassVar[Mapping[str, ReportField]] = {
        **PersonalModel.reports,
        "local_share": ReportField("share of the site's local model in its personal one", 0, 1),
    }

    def __init__(self, alpha: float = 0.5, adaptive: bool = True) -> None:
        """Choose the mixture.

        Args:
            alpha: share of the local model, from 0 to 1; where it adapts, that of the first step.
            adaptive: whether each site finds its own alpha.
        """
        self.alpha = allowed.number("alpha", alpha, least=0, most=1)
        self.adaptive = allowed.switch("adaptive", adaptive)
        self.share, self._first = self.alpha, True

    def companions(self, plan: Plan) -> dict[str, Companion]:
        return {**super().companions(plan), _LOCAL: Companion(plan.build_network(), plan.training)}

    def before_round(self, training: LocalTraining, global_weights: Arrays, round_number: int) -> None:
        super().before_round(training, global_weights, round_number)
        if not training.companions[_LOCAL].started:
            training.companions[_LOCAL].load(global_weights)
        self._first = True

    def batch(self, training: LocalTraining, batch: Sample) -> Sample:
        """Move v, and at the start of a round alpha; w is still what it was before this batch."""
        personal, local = training.companions["personal"].network, training.companions[_LOCAL]
        mixed, own, shared = (dict(net.named_parameters()) for net in (personal, local.network, training.network))
        with torch.no_grad():
            for name, parameter in mixed.items():
                parameter.copy_(torch.lerp(shared[name], own[name], self.share))
        training.companion_gradients("personal", batch)
        found = {name: parameter.grad for name, parameter in mixed.items() if parameter.grad is not None}
        rate = float(training.optimizer.param_groups[0]["lr"])
        if self.adaptive and self._first:
            slope = sum(float(((own[n] - shared[n]).detach() * gradient).sum()) for n, gradient in found.items())
            self.share = min(1.0, max(0.0, self.share - rate * slope))
        self._first = False
        for name, parameter in own.items():
            parameter.grad = found[name].mul_(self.share) if name in found else None
        local.step(rate, training.settings.gradient_clip)
        return batch

    def train_personal(self, training: LocalTraining) -> None:
        own, local = get_weights(training.network), training.companions[_LOCAL].weights()
        share = self.share
        mixed = {n: share * local[n] + (1 - share) * value for n, value in own.items() if is_averaged(value)}
        training.companions["personal"].load({**own, **mixed})

    def report(self, training: LocalTraining) -> dict[str, float]:
        return {**super().report(training), "local_share": self.share}

    def state(self) -> dict[str, Any]:
        return {"share": self.share}

    def load_state(self, state: dict[str, Any] | None) -> None:
        self.share = float(state["share"]) if state else self.alpha

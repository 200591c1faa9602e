"""SCAFFOLD, the site's side: control variates against client drift (Karimireddy et al., ICML 2020, option II)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fedseg.contract.combinations import COUNTED_STEPS, PLAIN_STEPS
from fedseg.contract.plan import Plan
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.networks.weights import Arrays, check_weights
from fedseg.training.hooks import LocalTraining, TrainingHook


class Scaffold(TrainingHook):
    """Corrects each local gradient by what is known of the direction of all sites.

    With the server's control variate c, received with the weights x, and the site's own c_i (zeros at first):

    1. Each of the K steps uses the gradient g + c - c_i.
    2. After the round, which ended at the weights y: c_i+ = c_i - c + (x - y) / (sum of the learning rates of the K
       steps). With a constant rate that is the paper's K * rate; under a schedule each gradient counts by its step.
    3. c_i+ - c_i travels with the update; ``aggregators.control_variates.ControlVariates`` makes the next c of them.

    The correction comes before clipping: ``gradient_clip`` is there to bound what a step does to the weights, and a
    stale correction can be as wrong as a gradient. A clipped step is shorter, so x - y, and with it c_i+, then holds
    shortened gradients; choose a clip that seldom acts. Weight decay is part of c_i+ like any part of the gradient.

    If an update does not arrive, the site's c_i has moved and c has not; the paper's c = mean(c_i) then holds no more.
    """

    prefix = "control/"
    withholds = frozenset({PLAIN_STEPS, COUNTED_STEPS})
    # The server's control variates, the site's own, and their difference.
    copies = 3

    def __init__(self) -> None:
        self._own: dict[str, torch.Tensor] = {}
        self._change: Arrays = {}
        self._correction: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
        self._rates = 0.0

    def check_plan(self, plan: Plan) -> None:
        """Refuse optimizers whose steps are not rate times gradient: from their way no mean gradient follows."""
        remedy = "SCAFFOLD needs plain stochastic gradient descent."
        if plan.training.optimizer != "sgd":
            raise ConfigurationError("training.optimizer", plan.training.optimizer, "'sgd' with scaffold", remedy)
        if plan.training.momentum != 0:
            raise ConfigurationError("training.momentum", plan.training.momentum, "0 with scaffold", remedy)
        if plan.training.weight_average:
            raise ConfigurationError("training.weight_average", plan.training.weight_average, "0 with scaffold", remedy)

    def before_round(self, training: LocalTraining, global_weights: Arrays, round_number: int) -> None:
        named = _parameters(training)
        control = {
            name.removeprefix(self.prefix): value
            for name, value in training.received_shared_arrays.items()
            if name.startswith(self.prefix)
        }
        if not control:
            raise RefusalError("weights", "The server sent no control variates; its job lacks ControlVariates.")
        check_weights(named, control)
        if not self._own:
            self._own = {name: torch.zeros_like(p, device="cpu") for name, p in named.items()}
        self._rates = 0.0
        self._correction = [
            (p, (torch.as_tensor(control[name]) - self._own[name]).to(p))
            for name, p in training.network.named_parameters()
        ]

    def after_backward(self, training: LocalTraining) -> None:
        for parameter, correction in self._correction:
            if parameter.grad is not None:
                parameter.grad.add_(correction)

    def after_step(self, training: LocalTraining) -> None:
        self._rates += training.optimizer.param_groups[0]["lr"]

    def after_round(self, training: LocalTraining, global_weights: Arrays, round_number: int) -> None:
        self._correction = []
        for name, parameter in _parameters(training).items():
            start = np.asarray(global_weights[name], np.float64)
            mean_gradient = (start - parameter.detach().cpu().numpy().astype(np.float64)) / self._rates
            control = np.asarray(training.received_shared_arrays[self.prefix + name], np.float64)
            before = self._own[name].numpy()
            after = (before - control + mean_gradient).astype(before.dtype)
            self._change[self.prefix + name] = after - before
            self._own[name] = torch.from_numpy(after)

    def shared_arrays(self, training: LocalTraining) -> Arrays:
        return dict(self._change)

    def state(self) -> dict[str, Any]:
        return {"control": dict(self._own)}

    def load_state(self, state: dict[str, Any] | None) -> None:
        self._own = dict(state["control"]) if state else {}


def _parameters(training: LocalTraining) -> dict[str, torch.nn.Parameter]:
    """Parameters under every name that they have in the weights: a network may hold one module in two places."""
    return dict(training.network.named_parameters(remove_duplicate=False))

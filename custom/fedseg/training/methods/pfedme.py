"""pFedMe: personal models by Moreau envelopes (Dinh, Tran and Nguyen, NeurIPS 2020)."""

from __future__ import annotations

import torch
from torch import nn

from fedseg import allowed
from fedseg.contract.combinations import COUNTED_STEPS, LOCAL_STEPS, PLAIN_STEPS
from fedseg.errors import ConfigurationError
from fedseg.networks.weights import Arrays
from fedseg.training.hooks import LocalTraining
from fedseg.training.methods.personal_model import PersonalModel
from fedseg.training.optimisation import check_norm
from fedseg.training.patches import Sample


class PFedMe(PersonalModel):
    """Trains a personal model theta near the site's copy w of the global one, and moves w towards it.

    In each round theta and w start as the received model. For each batch, f being its loss:

    1. ``steps`` times theta moves along grad f(theta) + lam * (theta - w), with the plan's optimizer, rate and clip.
    2. w <- w - rate * lam * (w - theta), which is a step along the gradient of the Moreau envelope of f.

    Only the change of w leaves the site; theta is the personal model. The paper averages sites equally (FedAvg with
    ``weight_by`` ``"uniform"``). With ``steps`` 1 and ``rate`` 1 / lam a round is one of FedAvg, and theta the site's
    own model after it. No other hook goes with it, since none would have a part in its steps. A round takes ``steps``
    times the time.
    """

    withholds = frozenset({LOCAL_STEPS, PLAIN_STEPS, COUNTED_STEPS})

    def __init__(self, lam: float = 15.0, steps: int = 5, rate: float = 0.005) -> None:
        """Choose how personal.

        Args:
            lam: pull of theta towards w, above 0: the larger, the less personal.
            steps: of theta for each batch.
            rate: learning rate of w, above 0 and up to 1 / lam, with which w takes theta's place.
        """
        self.lam = allowed.number("lam", lam, above=0)
        self.steps = allowed.whole("steps", steps)
        self.rate = allowed.number("rate", rate, above=0)
        if self.rate * self.lam > 1 + 1e-9:
            raise ConfigurationError("rate", rate, f"at most 1 / lam, which is {1 / lam:.6g}", "w would pass theta.")

    def before_round(self, training: LocalTraining, global_weights: Arrays, round_number: int) -> None:
        training.companions["personal"].load(global_weights)

    def step(self, training: LocalTraining, batch: Sample) -> float:
        """Both parts for a batch; returns the loss of theta before it moved."""
        personal, losses = training.companions["personal"], []
        shared = {name: p for name, p in training.network.named_parameters() if p.requires_grad}
        theta = dict(personal.network.named_parameters())
        assert personal.optimizer is not None
        for group in personal.optimizer.param_groups:
            group["lr"] = training.optimizer.param_groups[0]["lr"]
        for _ in range(self.steps):
            losses.append(training.companion_gradients("personal", batch))
            for name, parameter in shared.items():
                gradient = theta[name].grad
                if gradient is not None:
                    gradient.add_((theta[name] - parameter).detach(), alpha=self.lam)
            check_norm(nn.utils.clip_grad_norm_(theta.values(), training.settings.gradient_clip))
            personal.optimizer.step()
        with torch.no_grad():
            for name, parameter in shared.items():
                parameter.copy_(torch.lerp(parameter, theta[name], min(1.0, self.rate * self.lam)))
        return losses[0]

    def train_personal(self, training: LocalTraining) -> None:
        """theta was trained in the steps."""

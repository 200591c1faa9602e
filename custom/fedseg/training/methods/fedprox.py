"""FedProx: local training stays near the global model (Li et al., MLSys 2020)."""

from __future__ import annotations

import torch

from fedseg import allowed
from fedseg.contract.combinations import PLAIN_STEPS
from fedseg.networks.weights import Arrays
from fedseg.training.hooks import LocalTraining, TrainingHook


class FedProx(TrainingHook):
    """Adds mu / 2 * ||w - w_global||^2 to the loss, over the trainable parameters.

    Its gradient is mu * (w - w_global), so mu is in units of 1 / learning rate: with plain SGD, learning rate times mu
    is the share of the way back to the global model that each step takes.
    """

    withholds = frozenset({PLAIN_STEPS})
    copies = 1

    def __init__(self, mu: float = 0.01) -> None:
        """Choose how strongly.

        Args:
            mu: from 0 up; 0 adds nothing, which is FedAvg. The paper tried 0.001 to 1.
        """
        allowed.number("mu", mu, least=0)
        self.mu = mu
        self._anchor: dict[str, torch.Tensor] = {}

    @property
    def pull(self) -> float:
        return self.mu

    def before_round(self, training: LocalTraining, global_weights: Arrays, round_number: int) -> None:
        self._anchor = {
            name: torch.as_tensor(global_weights[name]).to(parameter)
            for name, parameter in training.network.named_parameters()
            if parameter.requires_grad
        }

    def loss(
        self, training: LocalTraining, images: torch.Tensor, logits: torch.Tensor, classes: torch.Tensor
    ) -> torch.Tensor | None:
        if self.mu == 0:
            return None
        parameters = dict(training.network.named_parameters())
        squares = [(parameters[name] - anchor).square().sum() for name, anchor in self._anchor.items()]
        return self.mu / 2 * torch.stack(squares).sum()

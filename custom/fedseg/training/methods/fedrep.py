"""FedRep: a site's own layers are trained first, then those that all sites share (Collins et al., ICML 2021)."""

from __future__ import annotations

import torch

from fedseg import allowed
from fedseg.contract.combinations import OWN_LAYERS
from fedseg.contract.plan import Plan
from fedseg.errors import ConfigurationError
from fedseg.networks.weights import Arrays
from fedseg.training.hooks import LocalTraining, TrainingHook
from fedseg.training.patches import Sample


class FedRep(TrainingHook):
    """In each round ``head_epochs`` epochs change the site's own layers (the head) alone, then the round's
    ``local_epochs`` change the shared layers (the body) alone.

    A filter such as ``PrivateLayers`` says which layers are the site's own. Without this hook the job is FedPer, which
    trains both at once. With ``head_epochs`` 0 the head stays as the run began, the same at all sites (the body of
    FedBABU, Oh et al., ICLR 2022). The steps that a site reports are those of the body. The head's epochs have the
    loss, the schedule and the first batches of the round, but none of the job's hooks.
    """

    needs = TrainingHook.needs | {OWN_LAYERS}

    def __init__(self, head_epochs: int = 1) -> None:
        """Choose how long the head is trained.

        Args:
            head_epochs: from 0 up, beside the plan's ``local_epochs``, which are those of the body.
        """
        self.head_epochs = allowed.whole("head_epochs", head_epochs, least=0)
        self._trained: list[tuple[str, torch.nn.Parameter]] = []
        self._begun = False

    def check_plan(self, plan: Plan) -> None:
        """Refuse an average over the steps of a round: it would undo those of the head."""
        if plan.training.weight_average:
            raise ConfigurationError("training.weight_average", plan.training.weight_average, "0 with FedRep")

    def before_round(self, training: LocalTraining, global_weights: Arrays, round_number: int) -> None:
        """See what is head and what is body.

        Raises:
            ConfigurationError: the site has no layers of its own to train, or no others.
        """
        self._trained = [(name, p) for name, p in training.network.named_parameters() if p.requires_grad]
        own = [name in training.private for name, _ in self._trained]
        if all(own) or not any(own):
            found = f"{sum(own)} of {len(own)} trained arrays"
            raise ConfigurationError("FedRep: a site's own", found, "some arrays and not all", "Name them by a filter.")
        self._begun = False

    def batch(self, training: LocalTraining, batch: Sample) -> Sample:
        """Train the head before the first step, once all hooks have seen the received model."""
        if not self._begun:
            self._begun, rate = True, training.optimizer.param_groups[0]["lr"]
            if self.head_epochs:
                self._train_only(training, head=True)
                training.train_alone(self.head_epochs)
            self._train_only(training, head=False)
            for group in training.optimizer.param_groups:
                group["lr"] = rate
        return batch

    def after_round(self, training: LocalTraining, global_weights: Arrays, round_number: int) -> None:
        """Let both be trained again."""
        for _, parameter in self._trained:
            parameter.requires_grad_(True)

    def _train_only(self, training: LocalTraining, head: bool) -> None:
        for name, parameter in self._trained:
            parameter.requires_grad_((name in training.private) is head)
            parameter.grad = None

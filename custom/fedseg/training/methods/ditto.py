"""Ditto: a personal model beside the global one (Li, Hu, Beirami and Smith, ICML 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch

from fedseg import allowed
from fedseg.contract.report import ReportField
from fedseg.models.model_file import write_model
from fedseg.networks.weights import Arrays
from fedseg.tasks.segmentation.metrics import summarise
from fedseg.training.hooks import TrainingHook
from fedseg.training.methods.fedprox import FedProx
from fedseg.training.trainer import SiteTrainer

PERSONAL_MODEL = "personal.safetensors"


class Ditto(TrainingHook):
    """Trains a model v that never leaves the site, and leaves the round's update as it is.

    1. In a site's first round v starts as the received global model.
    2. After the round's training, v is trained for the same local epochs, on the same batches, with
       loss + lam / 2 * ||v - w_global||^2, w_global being the weights that the round started from. v has its own
       optimizer, which the site keeps together with v.
    3. v lies at the site as ``personal.safetensors`` in the run's state folder, a model for ``fedseg evaluate`` and
       ``fedseg predict``. Its mean Dice over the validation cases goes into the report as ``personal_dice``.

    v uses the loss of the site's training, class weights included, but no other hook. Each round takes twice the time.
    """

    reports: ClassVar[Mapping[str, ReportField]] = {
        "personal_dice": ReportField("mean Dice of the site's personal model", 0, 1)
    }

    def __init__(self, lam: float = 0.1, epochs: int | None = None) -> None:
        """Choose how personal.

        Args:
            lam: pull towards the global model, from 0 up; 0 is training at this site alone.
            epochs: local epochs of v in each round; None takes those of the plan.
        """
        allowed.number("lam", lam, least=0)
        allowed.optional(allowed.whole, "epochs", epochs)
        self.lam, self.epochs = lam, epochs
        self._network: dict[str, torch.Tensor] | None = None
        self._optimizer: dict[str, Any] = {}

    @property
    def personal(self) -> Arrays | None:
        """The weights v; None before the first round."""
        return None if self._network is None else {name: value.numpy() for name, value in self._network.items()}

    def after_round(self, trainer: SiteTrainer, global_weights: Arrays, round_number: int) -> None:
        settings = replace(trainer.settings, local_epochs=self.epochs or trainer.settings.local_epochs)
        personal = SiteTrainer(
            replace(trainer.plan, training=settings),
            trainer.site,
            trainer.datalist,
            device=str(trainer.device),
            hooks=[_Pull(self.lam, global_weights)],
            aborted=trainer.aborted,
        )
        personal.training_cases, personal.loss = trainer.training_cases, trainer.loss
        if self._optimizer:
            personal.optimizer.load_state_dict(self._optimizer)
        start = self.personal or global_weights
        result = personal.train_round(start, round_number, trainer.total_rounds)
        self._network = {name: torch.from_numpy(value) for name, value in result.weights.items()}
        self._optimizer = personal.optimizer.state_dict()
        if trainer.state is not None:
            write_model(trainer.state.folder / PERSONAL_MODEL, trainer.plan, result.weights, round_number)

    def report(self, trainer: SiteTrainer) -> dict[str, float]:
        if self.personal is None:
            return {}
        dice = summarise([case.score for case in trainer.validate(self.personal)])["dice"].get("mean")
        return {} if dice is None else {"personal_dice": dice}

    def state(self) -> dict[str, Any]:
        return {"network": self._network, "optimizer": self._optimizer}

    def load_state(self, state: dict[str, Any] | None) -> None:
        self._network, self._optimizer = (state["network"], state["optimizer"]) if state else (None, {})


class _Pull(FedProx):
    """The proximal term towards given weights, wherever the round starts."""

    def __init__(self, strength: float, towards: Arrays) -> None:
        super().__init__(strength)
        self._towards = towards

    def before_round(self, trainer: SiteTrainer, global_weights: Arrays, round_number: int) -> None:
        super().before_round(trainer, self._towards, round_number)

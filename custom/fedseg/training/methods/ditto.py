"""Ditto: a personal model near the global one (Li, Hu, Beirami and Smith, ICML 2021)."""

from __future__ import annotations

from fedseg import allowed
from fedseg.training.hooks import LocalTraining
from fedseg.training.methods.fedprox import FedProx
from fedseg.training.methods.personal_model import PersonalModel


class Ditto(PersonalModel):
    """After the round's training the personal model v is trained for the same local epochs, on the same batches, with
    loss + lam / 2 * ||v - w_global||^2, w_global being the weights that the round started from.

    v uses the loss of the site's training, class weights included, but no other hook. Each round takes twice the time.
    """

    copies = FedProx.copies

    def __init__(self, lam: float = 0.1, epochs: int | None = None) -> None:
        """Choose how personal.

        Args:
            lam: pull towards the global model, from 0 up; 0 is training at this site alone.
            epochs: local epochs of v in each round; None uses those of the plan.
        """
        allowed.number("lam", lam, least=0)
        allowed.optional(allowed.whole, "epochs", epochs)
        self.lam, self.epochs = lam, epochs

    def train_personal(self, training: LocalTraining) -> None:
        training.train_companion("personal", [FedProx(self.lam)], self.epochs)

"""A round of split training at one site: its batches, its half, and its state on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count

import numpy as np
import torch

from fedseg.errors import ConfigurationError, RefusalError
from fedseg.networks.split.parts import Tensors, join_weights, part_weights
from fedseg.networks.weights import Arrays, difference, split_shared
from fedseg.randomness import derive_seed
from fedseg.training.patches import Sample
from fedseg.training.split.halves import site_half
from fedseg.training.split.state import load_half
from fedseg.training.split.weights import check_part
from fedseg.training.trainer import SiteTrainer


class SplitSite:
    """One site's part of the network, trained with the patches that ``SiteTrainer`` cuts.

    Attributes:
        half: the part and its optimizer.
        steps: iterations of this round that came to their end here.
    """

    def __init__(self, trainer: SiteTrainer) -> None:
        """Build the half with the weights of the plan's seed.

        Args:
            trainer: of the site; its cases, state and device are used.

        Raises:
            ConfigurationError: the plan does not say how the network is split.
        """
        if trainer.plan.split is None:
            raise ConfigurationError("split", None, "given in the plan of a job of split training")
        self.trainer, self.split = trainer, trainer.plan.split
        self.half = site_half(
            trainer.plan, self.split, trainer.site, simulated=trainer.simulated, device=trainer.device
        )
        self._fresh = self.half.state()
        self._round, self._started_at = 0, 0
        self._batches: Iterator[Sample] = iter(())
        self._batch: Sample | None = None
        self._before: Arrays = {}
        self._went_back: int | None = None
        self._has_turn = False

    @property
    def steps(self) -> int:
        return self.half.steps - self._started_at

    def joined(self, received: Mapping[str, np.ndarray]) -> Arrays:
        """The whole network's weights: the server's with this site's part, where that is the site's own."""
        weights, _ = split_shared(received)
        own = {name for name in self.half.weights() if name not in weights}
        return join_weights({name: value for name, value in self.half.weights().items() if name in own}, weights)

    def restore(self, before_round: int) -> None:
        """Load what the last finished round before ``before_round`` left; the plan's fresh part where there is none.

        Raises:
            RefusalError: the site's state cannot be read (reason ``state``).
        """
        state = self.trainer.state
        saved = state.load_or_lose(before_round) if state is not None else None
        if saved is not None:
            content = {"weights": saved["network"], "optimizer": saved["optimizer"], "steps": saved["steps"]}
            self.half.load_state(content)
        elif state is not None:
            self.half.load_state(self._fresh)

    def begin(self, round_number: int, received: Mapping[str, np.ndarray]) -> Arrays:
        """Begin a round where this site's last finished one ended, or where the server says that all sites are.

        Args:
            round_number: from 0.
            received: the server's part; the common part of the sites too where they have one, and with ``summed``
                what its optimizer remembers.

        Returns:
            The whole network's weights with which the round begins.

        Raises:
            RefusalError: there are no training cases (``data``), or what was received does not fit (``weights``).
        """
        if not len(self.trainer.training_cases):
            raise RefusalError("data", "This site has no training cases.")
        self.restore(round_number)
        weights, memory = split_shared(received)
        if self.split.site_update != "separate":
            common = part_weights(weights, self.half.part)
            if self.split.site_update == "summed":
                load_half(self.half, common, memory)
            else:
                self.half.set_weights(common)
        self._round, self._started_at, self._before = round_number, self.half.steps, self.half.weights()
        self._batches, self._batch = self._endless(), None
        self._went_back, self._has_turn = None, False
        torch.manual_seed(derive_seed(self.trainer.plan.seed, self.trainer.site, round_number, "network"))
        return self.joined(received)

    def receive_part(self, weights: Mapping[str, np.ndarray]) -> None:
        """This site's turn: begin with the part of the site before it; the optimizer stays as it is.

        Raises:
            RefusalError: parts are not handed on in this job (reason ``state``), or it is no such part (``weights``).
        """
        self._check_turn()
        check_part(self.half.weights(), weights)
        self.half.set_weights(weights)
        self._has_turn = True

    def send_part(self) -> Arrays:
        """The end of this site's turn: what its part has become.

        Raises:
            RefusalError: parts are not handed on in this job, or this process has not begun the turn: it was restarted
                meanwhile, and its part is the one from before (reason ``state``).
        """
        self._check_turn()
        if not self._has_turn:
            raise RefusalError("state", "This site's process has not taken the part of the network in this round.")
        self._has_turn = False
        return self.half.weights()

    def _check_turn(self) -> None:
        if not self.split.in_turn:
            raise RefusalError("state", "In this job no site hands its part on.")

    def forward(self, progress: float) -> tuple[Tensors, torch.Tensor]:
        """Draw the next batch: its features, and its class values [B, 1, X, Y, Z] uint8.

        Args:
            progress: finished fraction of the whole job, 0 to 1, at this iteration.
        """
        self._batch = next(self._batches)
        self.half.set_progress(progress)
        return self.half.forward(self._batch["image"]), self._targets()

    def loss_gradient(self, predictions: torch.Tensor) -> tuple[torch.Tensor, float]:
        """See ``SiteHalf.loss_gradient``; for the present batch.

        Raises:
            RefusalError: there is none, or the predictions are not of it (reason ``state``); see there, too.
        """
        if self._batch is None or len(predictions) != len(self._batch["image"]):
            raise RefusalError("state", "The predictions are not those of the batch that this site has sent last.")
        return self.half.loss_gradient(predictions, self._targets())

    def backward(self, gradients: Tensors, step: int) -> Tensors:
        """See ``SiteHalf.backward``.

        Args:
            gradients: see there.
            step: of the round.

        Raises:
            RefusalError: see there.
        """
        self._went_back = None
        back = self.half.backward(gradients)
        self._went_back = step
        return back

    def apply(self, gradients: Tensors, step: int) -> None:
        """See ``SiteHalf.apply``; only after this process's own backward pass of the same step.

        A process that was restarted within the round has the part of the round's beginning: with the sum of one later
        step its part would differ from that of all other sites, unnoticed.

        Raises:
            RefusalError: there was no such backward pass (reason ``state``); see there, too.
        """
        went_back, self._went_back = self._went_back, None
        if went_back != step:
            raise RefusalError("state", "This site's process has had no backward pass of this step.")
        self.half.apply(gradients)

    def finish(self) -> Arrays:
        """Store what the next round starts from; what the part has become, as a difference, where all shall have it.

        Raises:
            RefusalError: the state cannot be written (reason ``state``).
        """
        self.half.forget()
        self._batch = None
        if self.trainer.state is not None:
            state = self.half.state()
            kept = {"network": state["weights"], "optimizer": state["optimizer"], "steps": state["steps"]}
            self.trainer.state.save(self._round, kept)
        return difference(self.half.weights(), self._before) if self.split.site_update == "averaged" else {}

    def _targets(self) -> torch.Tensor:
        """What the loss compares the present batch with, as its kind of task says."""
        assert self._batch is not None
        return self.trainer.objective.targets(self._batch)

    def _endless(self) -> Iterator[Sample]:
        """All cases again and again: a site with fewer cases than the largest one sees its own more often."""
        for epoch in count():
            yield from self.trainer.batches(self._round, epoch)

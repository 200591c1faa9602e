"""The server's side of an iteration of split training, whatever carries the calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch

from fedseg.contract.plan import Plan
from fedseg.errors import RefusalError
from fedseg.messages.calls.call import AT_PREDICTIONS, FEATURES, GRADIENTS, LABELS, PARAMETERS, PREDICTIONS, Ask, Call
from fedseg.networks.split.parts import Tensors
from fedseg.training.split.checks import batch_size, checked_labels
from fedseg.training.split.halves import plan_cost, segmentation_loss
from fedseg.training.split.message import StepBytes, pack, unpack
from fedseg.training.split.server_half import ServerHalf
from fedseg.training.split.site_half import SiteHalf
from fedseg.workflows.split.server_pass import Answered, Batches, Leave, ServerPass, finite

T = TypeVar("T")
Exchange = Callable[[Mapping[str, Call]], Mapping[str, Call]]
"""Sends a call to each site and gives the answers; who does not answer in time, or refuses, is missing."""


@dataclass
class RoundResult:
    """What the iterations of a round gave.

    Attributes:
        iterations: that came to their end.
        losses: of all samples together, one for each iteration.
        site_losses: each site's own; NaN where the site did not tell it.
        samples: that each site has contributed.
        seconds: duration of the iterations.
        bytes: that each site sent and received in the iterations.
    """

    iterations: int = 0
    losses: list[float] = field(default_factory=list)
    site_losses: dict[str, list[float]] = field(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    bytes: dict[str, StepBytes] = field(default_factory=dict)

    @property
    def mean_loss(self) -> float | None:
        """Mean loss of the round; None without an iteration, or where a site does not tell its loss."""
        return _mean(self.losses)

    def loss(self, site: str) -> float | None:
        """Mean loss of a site."""
        return _mean(self.site_losses.get(site, []))


class SplitIterations:
    """Goes on with the sites that answer; a site that does not is out until the next round.

    Answers carry the next features along, so that an iteration takes one exchange with shared labels, one more with
    private ones, and one more where the sites' gradients are summed.
    """

    def __init__(
        self,
        plan: Plan,
        server: ServerHalf,
        common: SiteHalf | None,
        start: str,
        number: int,
        exchange: Exchange,
        leave: Leave,
    ) -> None:
        """Prepare the iterations of a round.

        Args:
            plan: of the job.
            server: the server's half.
            common: the server's copy of the part that the sites have in common; None where each has its own. With
                ``site_update: summed`` it steps along.
            start: which start of the server this is.
            number: of the round, from 0.
            exchange: carries calls.
            leave: see ``ServerPass``.
        """
        self.plan, self.server, self.split = plan, server, server.split
        self.common = common
        self.exchange, self.leave = exchange, leave
        self.result = RoundResult()
        self._pass = ServerPass(server, leave)
        self._blank = Call(Ask.READY, start, number)
        cost = plan_cost(plan, self.split)
        self._shapes = dict(cost.shapes)
        self._logits = (plan.task.output_channels, *plan.task.patch_size)
        self._loss = segmentation_loss(plan)
        self._part = {} if common is None else {n: (v.dtype, v.shape) for n, v in common.parameters().items()}

    def _iterate(self, drawn: Batches, step: int, now: float, following: float | None) -> dict[str, Call]:
        """One iteration from the features of the sites; gives the answers that hold the next ones."""
        self.server.set_progress(now)
        private = self.split.labels == "private"
        found = self._pass.run(drawn, (lambda predictions: self._answers_to(predictions, step)) if private else None)
        if found is None:
            return {}
        gradients = {
            site: {GRADIENTS: pack(found.gradients[site], self.split.message)} for site in sorted(found.gradients)
        }
        if self.split.site_update == "summed" and self.common is not None:
            answers = self._sum_and_apply(self.common, gradients, step, now, following)
        else:
            answers = self._ask(list(gradients), Ask.BACKWARD, step, following, gradients)
            self.server.step()
        self.result.iterations += 1
        self.result.losses.append(found.loss)
        for site, loss in found.losses.items():
            self.result.site_losses.setdefault(site, []).append(loss)
            size = len(next(iter(found.gradients[site].values())))
            self.result.samples[site] = self.result.samples.get(site, 0) + size
        return answers

    def _answers_to(self, predictions: Mapping[str, torch.Tensor], step: int) -> Answered:
        """Predictions to the sites; the gradients at them and the losses of those that answer."""
        messages = {
            site: {PREDICTIONS: pack({PREDICTIONS: value}, self.split.message)} for site, value in predictions.items()
        }
        answers = self._ask(sorted(messages), Ask.ANSWER, step, None, messages)

        def read(site: str, answer: Call) -> tuple[torch.Tensor, float]:
            shapes = {AT_PREDICTIONS: self._logits}
            gradient = unpack(answer.group(AT_PREDICTIONS), shapes, self.split.message)[AT_PREDICTIONS]
            if gradient.shape != predictions[site].shape:
                raise RefusalError("data", f"The gradient is not {tuple(predictions[site].shape)}.")
            return gradient, float("nan") if answer.loss is None else float(answer.loss)

        return self._each(answers, read)

    def _sum_and_apply(
        self,
        common: SiteHalf,
        gradients: Mapping[str, Mapping[str, dict[str, np.ndarray]]],
        step: int,
        now: float,
        following: float | None,
    ) -> dict[str, Call]:
        """The second exchange of ``summed``: gradients of the parts up, their clipped sum down."""
        back = self._each(self._ask(list(gradients), Ask.BACKWARD, step, None, gradients), self._read_parameters)
        if not back:
            return {}
        total = self.server.step(back)
        common.set_progress(now)
        common.apply(total)
        arrays = {PARAMETERS: {name: value.cpu().numpy() for name, value in total.items()}}
        return self._ask(sorted(back), Ask.APPLY, step, following, dict.fromkeys(back, arrays))

    def _read_batch(self, site: str, answer: Call) -> tuple[Tensors, torch.Tensor | None]:
        features = unpack(answer.group(FEATURES), self._shapes, self.split.message)
        size = batch_size(site, features, self.server.receives)
        if size > self.plan.training.batch_size:
            raise RefusalError("data", f"The batch holds more than {self.plan.training.batch_size} samples.")
        if self.split.cut_gradient == "mean" and size < self.plan.training.batch_size:
            raise RefusalError("data", f"The batch holds less than {self.plan.training.batch_size} samples.")
        if self.split.labels == "private":
            if LABELS in answer.arrays:
                raise RefusalError("data", "The site sent labels, which are to stay there.")
            return features, None
        labels = torch.from_numpy(answer.group(LABELS).get(LABELS, np.zeros(0)).copy())
        logits = torch.empty(size, *self._logits, device="meta")
        return features, checked_labels(site, labels, logits, self._loss)

    def _read_parameters(self, site: str, answer: Call) -> Tensors:
        found = {name: torch.from_numpy(value.copy()) for name, value in answer.group(PARAMETERS).items()}
        if {name: (value.dtype, value.shape) for name, value in found.items()} != self._part:
            raise RefusalError("data", "The gradients are not those of the part that the sites have.")
        if not finite([torch.nn.utils.get_total_norm(list(found.values()))]):
            raise RefusalError("loss", "A gradient of the site's part is not finite, or too large.")
        return found

    def _ask(
        self,
        sites: Sequence[str],
        ask: Ask,
        step: int,
        following: float | None,
        arrays: Mapping[str, Mapping[str, dict[str, np.ndarray]]] | None = None,
    ) -> dict[str, Call]:
        call = replace(self._blank, ask=ask, step=step, next=following)
        return self._carry({site: replace(call, arrays=dict((arrays or {}).get(site, {}))) for site in sites})

    def _carry(self, calls: Mapping[str, Call]) -> dict[str, Call]:
        """The answers to calls."""
        return dict(self.exchange(calls))

    def _each(self, answers: Mapping[str, Call], read: Callable[[str, Call], T]) -> dict[str, T]:
        """What the answers hold; a site whose answer cannot be used is left out of the rest of the round."""
        found: dict[str, T] = {}
        for site in sorted(answers):
            try:
                found[site] = read(site, answers[site])
            except RefusalError as error:
                self.leave(site, f"{error.reason}: {error}")
        return found


def _mean(values: Sequence[float]) -> float | None:
    mean = sum(values) / len(values) if values else None
    return mean if mean is not None and np.isfinite(mean) else None

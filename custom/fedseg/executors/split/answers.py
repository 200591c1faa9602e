"""What a site answers to the server's direct calls."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from fedseg.errors import RefusalError
from fedseg.messages.calls.call import (
    AT_PREDICTIONS,
    FEATURES,
    GRADIENTS,
    LABELS,
    PARAMETERS,
    PART,
    PREDICTIONS,
    Ask,
    Call,
)
from fedseg.networks.weights import Arrays
from fedseg.training.split.halves import plan_cost
from fedseg.training.split.message import pack, unpack
from fedseg.training.split.site_round import SplitSite


class SplitAnswers:
    """Does with a site's half what the server's calls ask for, and writes the results into the answers.

    Attributes:
        site: the half, its batches and its state.
        loss: the site's mean loss of the round as the server counted it; None until the round's end, or where the
            server does not tell it.
        seconds: spent on answers in this round.
    """

    def __init__(self, site: SplitSite) -> None:
        """Answer for a site.

        Args:
            site: of the plan's split training.
        """
        plan = site.trainer.plan
        self.site, self.seconds = site, 0.0
        self.loss: float | None = None
        self._shapes = dict(plan_cost(plan, site.split).shapes)
        self._logits = {PREDICTIONS: (plan.task.output_channels, *plan.task.patch_size)}
        self._tells_loss = True

    def begin(self, tells_loss: bool) -> None:
        """A new round.

        Args:
            tells_loss: whether the loss of single batches may leave; only with private labels it would.
        """
        self.loss, self.seconds, self._tells_loss = None, 0.0, tells_loss

    def answer(self, call: Call) -> Call:
        """Do what a call asks.

        Raises:
            RefusalError: it cannot be done, see ``SplitSite`` and ``SiteHalf``.
        """
        start = time.perf_counter()
        arrays, loss = self._answer_iteration(call)
        if call.next is not None:
            features, classes = self.site.forward(call.next)
            arrays[FEATURES] = pack(features, self.site.split.message)
            if self.site.split.labels == "shared":
                arrays[LABELS] = {LABELS: classes.numpy()}
        self.seconds += time.perf_counter() - start
        return replace(call, next=None, loss=loss, secret="", arrays=arrays)

    def _answer_iteration(self, call: Call) -> tuple[dict[str, Arrays], float | None]:
        precision = self.site.split.message
        if call.ask is Ask.ANSWER:
            if self.site.split.labels != "private":
                raise RefusalError("state", "In this job the labels are shared, and the server has them.")
            seen = unpack(call.group(PREDICTIONS), self._logits, precision)[PREDICTIONS]
            gradient, loss = self.site.loss_gradient(seen)
            packed = pack({AT_PREDICTIONS: gradient}, precision)
            return {AT_PREDICTIONS: packed}, loss if self._tells_loss else None
        if call.ask is Ask.BACKWARD:
            back = self.site.backward(unpack(call.group(GRADIENTS), self._shapes, precision), call.step)
            own = {name: value.cpu().numpy() for name, value in back.items()}
            return ({PARAMETERS: own} if own else {}), None
        if call.ask is Ask.APPLY:
            total = call.group(PARAMETERS)
            self.site.apply({name: torch.from_numpy(value.copy()) for name, value in total.items()}, call.step)
        elif call.ask is Ask.RECEIVE:
            self.site.receive_part(call.group(PART))
        elif call.ask is Ask.SEND:
            return {PART: self.site.send_part()}, None
        elif call.ask is Ask.END:
            self.loss = call.loss
        return {}, None

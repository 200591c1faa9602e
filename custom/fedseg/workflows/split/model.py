"""What the server carries from round to round in split training: its part, and what it knows of the sites' parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from fedseg.contract.plan import Plan
from fedseg.contract.split_settings import SplitSettings
from fedseg.contract.update import Update
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.networks.split.parts import join_weights
from fedseg.networks.weights import Arrays, apply_difference, check_weights, join_shared, split_shared
from fedseg.training.inference import choose_device
from fedseg.training.split.halves import check_split, server_half, site_half, whole_weights
from fedseg.training.split.server_half import ServerHalf
from fedseg.training.split.site_half import SiteHalf
from fedseg.training.split.state import load_half, optimizer_arrays
from fedseg.training.split.weights import average_parts
from fedseg.workflows.run.checkpoint import Checkpoints
from fedseg.workflows.run.plain_model import PlainModel, select
from fedseg.workflows.run.record import RunRecord
from fedseg.workflows.run.run_model import Keep, RunModel, RunPlace
from fedseg.workflows.split.iterations import RoundResult

_SERVER, _COMMON = "server/", "common/"


class SplitModel(PlainModel):
    """Both parts of the network as far as the server has them.

    ``weights`` are what a round sends: with ``site_update: separate`` the server's part alone, for each site has a part
    of its own; else the whole network. With ``handed_on`` the server has the part between two turns, and with
    ``averaged`` between two rounds. With ``summed`` the server steps a copy of the sites' part along with them, so
    that it has part and optimizer of every site without being sent either: a site that missed a step gets them with the
    next round.

    Attributes:
        split: the job's settings.
        server: the server's half.
        common: the part that all sites have, and with ``summed`` its optimizer; None with ``separate``.
        parts: each site's own part, once it was sent at the end of the run.
        files: of the sites' models, once they are written.
        round: what the direct calls of the round gave.
    """

    split: SplitSettings
    server: ServerHalf
    plan: Plan

    def __init__(self) -> None:
        super().__init__()
        self.common: SiteHalf | None = None
        self.parts: dict[str, Arrays] = {}
        self.files: dict[str, str] = {}
        self.round = RoundResult()
        self._site_part: Arrays = {}
        self._names: list[str] = []
        self._updates: dict[str, Arrays] = {}

    def keep_average(self, decay: float) -> None:
        """See ``RunModel``, which refuses it: sites train a part of the network."""
        RunModel.keep_average(self, decay)

    def load(self, plan: Plan, place: RunPlace, checkpoints: Checkpoints) -> None:
        """Start from the plan's seeded network.

        Raises:
            ConfigurationError: the plan is none of split training, or the job brings a model to start from.
        """
        if plan.split is None:
            raise ConfigurationError("split", None, "given in the plan of a job of split training")
        if place.initial is not None:
            why = "Every site starts with the part that the plan's seed gives."
            raise ConfigurationError("initial model", place.initial.name, "left out in split training", why)
        torch.set_num_threads(plan.training.threads)
        check_split(plan.split, plan)
        super().load(plan, place, checkpoints)
        self.plan, self.split, self._names = plan, plan.split, list(self.weights)
        device = choose_device("auto")
        self.server = server_half(plan, plan.split, device)
        part = site_half(plan, plan.split, "all sites", device=device)
        self._site_part = part.weights()
        self.keeps_former = plan.split.site_update != "separate"
        self.common = part if self.keeps_former else None
        self._refresh()

    def outgoing(self, site: str | None) -> Arrays:
        """What a round sends to its sites; see the class."""
        if self.common is None or self.split.site_update != "summed":
            return dict(self.weights)
        return join_shared(self.weights, optimizer_arrays(self.common))

    def begin_round(self, keep: Keep | None = None) -> None:
        super().begin_round(keep)
        self._updates, self.round = {}, RoundResult()

    def accept_update(self, site: str, update: Update) -> None:
        """Accept a site's report, and with ``averaged`` what became of its part."""
        arrays, shared = split_shared(update.arrays)
        averaged = self.split.site_update == "averaged"
        if shared or (arrays and not averaged):
            raise RefusalError("weights", "The site sent arrays that this job does not use.")
        if averaged:
            check_weights(self._site_part, arrays)
            moved = {name: value + arrays[name] for name, value in self._common.weights().items()}
            if not all(np.isfinite(value).all() for value in moved.values()):
                raise RefusalError("weights", "The update is so large that the model would not stay finite.")
            self._updates[site] = arrays
        self.reports[site], self.steps[site] = update.report, ()

    def finish_round(self) -> None:
        """Average the sites' parts where that is asked for; all else has happened within the round."""
        samples = {site: self.round.samples.get(site, 0) for site in self._updates}
        if any(samples.values()):
            mean = average_parts(self._updates, samples)
            self._common.set_weights(apply_difference(self._common.weights(), mean))
        self._refresh()
        super().finish_round()

    def accept_part(self, site: str, weights: Mapping[str, np.ndarray]) -> None:
        """Keep a site's own part, which it sent at the end of the run.

        Raises:
            RefusalError: it is not that part of the network (reason ``weights``).
        """
        check_weights(self._site_part, weights)
        self.parts[site] = {name: np.array(weights[name]) for name in self._site_part}

    def whole(self, site: str) -> Arrays:
        """The weights of a site's whole network, once its part is here."""
        return self._in_order(whole_weights(self.plan, self.parts[site], self.server.weights()))

    def save_parts(self, record: RunRecord, plan: Plan, number: int) -> None:
        """Write one model for each site that has sent its part."""
        for site in sorted(self.parts):
            self.files[site] = f"last.{site}.safetensors"
            record.model(self.files[site], plan, self.whole(site), number)

    def save(self, record: RunRecord, plan: Plan, name: str, number: int, final: bool) -> dict[str, Any]:
        """See ``RunModel``; the server's part alone is no model."""
        if self.common is None:
            return {"model": None, "models": self.files}
        return super().save(record, plan, name, number, final)

    def describe(self) -> dict[str, Any]:
        """Name and settings of the method."""
        return {"name": "SplitNN" if self.split.in_turn else "SplitAVG", **self.split.to_dict()}

    def describe_round(self) -> dict[str, Any]:
        """See ``RunModel``; a site's weight is its share of the round's samples."""
        samples = {site: self.round.samples.get(site, 0) for site in sorted(self.reports)}
        total = sum(samples.values())
        return {
            "rule": self.describe(),
            "weights": {site: count / total for site, count in samples.items()} if total else {},
            "scales": {},
            "notes": {},
            "costs": {site: self.round.loss(site) for site in samples},
            "iterations": self.round.iterations,
            "seconds_per_iteration": self.round.seconds / max(1, self.round.iterations),
            "bytes_in_iterations": {s: [b.up, b.down] for s, b in sorted(self.round.bytes.items())},
            "train_loss": self.round.mean_loss,
        }

    def state(self) -> Arrays:
        """Weights, and what the optimizers remember."""
        stored = super().state()
        stored |= {_SERVER + name: value for name, value in optimizer_arrays(self.server).items()}
        if self.common is not None:
            stored |= {_COMMON + name: value for name, value in optimizer_arrays(self.common).items()}
        return stored

    def restore(self, number: int, arrays: Mapping[str, np.ndarray], history: Mapping[str, Any]) -> None:
        super().restore(number, arrays, history)
        for half, prefix in ((self.server, _SERVER), (self.common, _COMMON)):
            if half is not None:
                own = {name: self.weights[name] for name in half.weights() if name in self.weights}
                load_half(half, own, select(arrays, prefix))
        self._refresh()

    @property
    def _common(self) -> SiteHalf:
        if self.common is None:
            raise RefusalError("state", "The sites have no common part.")
        return self.common

    def _refresh(self) -> None:
        own = self.server.weights()
        self.weights = self._in_order(own if self.common is None else join_weights(self.common.weights(), own))

    def _in_order(self, weights: Arrays) -> Arrays:
        """In the network's order, which the parts do not keep."""
        return {name: weights[name] for name in self._names if name in weights}

"""Split training and what it is compared with in one process: the loop that a run over FLARE equals to the last bit.

For comparing methods on many seeds, where processes and messages would cost more than the training. Tests hold the runs
of the jobs equal to it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from fedseg import allowed
from fedseg.contract.plan import Plan
from fedseg.data.datalist import Datalist
from fedseg.errors import ConfigurationError
from fedseg.networks.weights import Arrays
from fedseg.randomness import derive_seed
from fedseg.simulation.in_process import score_sites
from fedseg.training.patches import Sample
from fedseg.training.split.halves import server_half, site_half, whole_weights
from fedseg.training.trainer import SiteTrainer, TrainerSetup
from split_baselines import cyclic_round, pooled_round, whole_network
from split_loops import splitavg_round, splitnn_round

SPLIT, CYCLIC, POOLED = "split", "cyclic", "pooled"
KINDS = (SPLIT, CYCLIC, POOLED)


class SplitInProcess:
    """Sites and server of split training, or of a baseline, without FLARE's processes and messages.

    Attributes:
        kind: ``split``: as ``plan.split`` says, SplitAVG and its variants or sequential split learning (SplitNN).
            ``cyclic``: the whole network visits site after site (cyclic weight transfer). ``pooled``: the whole network
            on the batches of all sites as one.
        trainers: by site; they cut the patches and score, and do not train here.
        rounds: for each round its loss, iterations, samples seen, and seconds.
        bytes: what each site sent and received in all iterations, as messages would; empty without a split.
    """

    def __init__(self, plan: Plan, datalists: Mapping[str, Datalist], kind: str, cache: Path | None = None) -> None:
        """Build both halves, or the whole network, with the weights of the plan's seed.

        Args:
            plan: of the job; its ``split`` is needed for the kind of this name.
            datalists: the cases of each site.
            kind: see above.
            cache: folder for prepared cases, shared by all sites (``cache: disk``).

        Raises:
            ConfigurationError: the kind is unknown, or needs a plan that splits the network.
        """
        allowed.one_of("kind", kind, KINDS)
        if kind == SPLIT and plan.split is None:
            raise ConfigurationError("split", None, "given in the plan of split training")
        torch.set_num_threads(plan.training.threads)
        self.plan, self.kind = plan, kind
        self.trainers = {s: SiteTrainer(plan, s, datalists[s], TrainerSetup(cache=cache)) for s in sorted(datalists)}
        self.rounds: list[dict[str, Any]] = []
        self._drawn = 0
        self.bytes: dict[str, list[int]] = {}
        self._carried = kind == CYCLIC or (plan.split is not None and kind == SPLIT and plan.split.in_turn)
        if plan.split is not None and kind == SPLIT:
            self._server = server_half(plan, plan.split)
            self._halves = {site: site_half(plan, plan.split, site, simulated=True) for site in self.trainers}
        elif kind == CYCLIC:
            self._wholes = {site: whole_network(plan) for site in self.trainers}
        else:
            self._wholes = dict.fromkeys(self.trainers, whole_network(plan))

    def run_round(self, total_rounds: int, steps: int | None = None) -> None:
        """One round.

        Args:
            total_rounds: of the whole job; the learning rate's schedule spans them.
            steps: iterations with a batch of every site; None makes a pass over the cases of the largest site, as the
                job does. Where site comes after site, each makes a pass over its own cases.
        """
        number, began = len(self.rounds), time.perf_counter()
        self._drawn = 0
        batches = {site: self._batches(site, number) for site in self.trainers}
        passes = {site: -(-len(t.training_cases) // self.plan.training.batch_size) for site, t in self.trainers.items()}
        count, span = steps or max(passes.values()), (number / total_rounds, (number + 1) / total_rounds)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.plan.seed, number, "network"))
            losses = self._train(batches, passes, count, *span)
        self.rounds.append(
            {
                "loss": sum(losses) / len(losses),
                "iterations": len(losses),
                "samples": self._drawn,
                "seconds": time.perf_counter() - began,
            }
        )

    def _train(
        self, batches: Mapping[str, Iterator[Sample]], passes: Mapping[str, int], count: int, start: float, end: float
    ) -> list[float]:
        """The iterations of a round; the loss of each."""
        if self.kind == CYCLIC:
            return cyclic_round(self._wholes, batches, passes, start, end)
        if self.kind == POOLED:
            return pooled_round(next(iter(self._wholes.values())), batches, count, start, end)
        if self._carried:
            done = splitnn_round(self._server, self._halves, batches, passes, start, end)
        else:
            done = splitavg_round(self._server, self._halves, batches, count, start, end)
        for site, size in ((s, b) for iteration in done for s, b in iteration.bytes.items()):
            up, down = self.bytes.get(site, [0, 0])
            self.bytes[site] = [up + size.up, down + size.down]
        return [iteration.loss for iteration in done]

    def weights(self, site: str) -> Arrays:
        """The whole network that a site uses after the rounds so far."""
        if self.kind == SPLIT:
            return whole_weights(self.plan, self.site_part(site), self._server)
        return self._wholes[self._holder(site)].weights()

    def site_part(self, site: str) -> Arrays:
        """The part of the network that a site uses; only of a split network."""
        return self._halves[self._holder(site)].weights()

    def evaluate(self, distances: bool = False) -> dict[str, Any]:
        """Score each site's model on its final split; the form of ``final`` in ``summary.json``."""
        return score_sites(self.trainers, self.weights, len(self.rounds) - 1, distances)

    def _holder(self, site: str) -> str:
        """Whose weights a site goes on with: what is carried from site to site lies at the last one."""
        return sorted(self.trainers)[-1] if self._carried else site

    def _batches(self, site: str, number: int) -> Iterator[Sample]:
        """A site's batches of a round, again and again; counts the samples."""
        for epoch in itertools.count():
            for batch in self.trainers[site].batches(number, epoch):
                self._drawn += len(batch["image"])
                yield batch

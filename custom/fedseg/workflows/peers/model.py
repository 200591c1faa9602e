"""The model of a swarm as its server knows it: by digests, since the sites have it and the server does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from nvflare.app_common.abstract.fl_model import FLModel

from fedseg.aggregators.base import AggregationError, Aggregator
from fedseg.contract.plan import Plan
from fedseg.contract.protocol import HELD
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.files.digest import model_digest
from fedseg.models.model_file import initial_weights
from fedseg.models.note import write_note
from fedseg.provenance.swarm.signatures import ROOT_FILE, Root
from fedseg.training.hooks import TrainingHook
from fedseg.workflows.peers.at_sites import ModelsAtSites
from fedseg.workflows.run.checkpoint import Checkpoints
from fedseg.workflows.run.record import RunRecord
from fedseg.workflows.run.run_model import Keep, RunPlace, check_halves


@dataclass(frozen=True)
class Merged:
    """What the leader of a round told of it.

    Attributes:
        leader: its name.
        digest: of the merged model.
        block: digest of the block of the ledger.
        updates: digest of each update in it, by site.
        weights, scales, notes: of the rule.
        takers: the sites that have the model.
        traffic: bytes from and to each other site, as the leader counted them.
    """

    leader: str
    digest: str
    block: str
    updates: Mapping[str, str]
    weights: Mapping[str, float]
    scales: Mapping[str, float]
    notes: Mapping[str, Any]
    takers: Sequence[str] = ()
    traffic: Mapping[str, Sequence[int]] = field(default_factory=dict)


class SwarmModel(ModelsAtSites):
    """Digests of the models that the sites of a swarm have made, and the rule by which they do.

    Attributes:
        aggregator: the rule; the sites build their own from the job, and this one never sees an update.
        digests: of the model after each finished round; before them that of the start.
        heads: of the ledger after each finished round, as its leader told; before them that of its opening.
        merged: of the round at hand, once a site has merged it.
        root: fingerprint of the federation's root certificate; empty in a simulation.
    """

    server = "the server of a swarm"

    def __init__(self, aggregator: Aggregator) -> None:
        """Check the rule.

        Args:
            aggregator: by which the leader of a round merges.

        Raises:
            ConfigurationError: it remembers former rounds, or needs to know how sites were drawn.
        """
        super().__init__()
        kind = type(aggregator)
        if kind.history is not Aggregator.history:
            why = "In each round another site merges, and it knows nothing of the rounds before."
            allowed = "a rule that remembers nothing of former rounds"
            raise ConfigurationError("workflow.aggregator", kind.__name__, allowed, why)
        self.aggregator, self.components = aggregator, (aggregator,)
        self.digests: list[str] = []
        self.heads: list[str] = []
        self.merged: Merged | None = None
        self.root = ""

    def check_plan(self, plan: Plan) -> None:
        self.aggregator.check_plan(plan)

    def check_hooks(self, hooks: Sequence[TrainingHook]) -> None:
        self.aggregator.check_pull(sum(hook.pull for hook in hooks))
        check_halves(hooks, None)

    def load(self, plan: Plan, place: RunPlace, checkpoints: Checkpoints) -> None:
        """See ``RunModel``; what the run starts from is no secret, and is forgotten at once."""
        self.check_plan(plan)
        self.digests = [model_digest(initial_weights(plan, place.initial))]
        certificate = place.config.parent / "startup" / ROOT_FILE
        self.root = Root.read(certificate).fingerprint if certificate.is_file() else ""

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "start": self.digests[0]}

    # ------------------------------------------------------------------ a round

    def training_message(self, sites: Sequence[str]) -> FLModel:
        return self.scoring_message(len(self.digests) - 2, sites)

    def scoring_message(self, number: int, sites: Sequence[str]) -> FLModel:
        return FLModel(metrics={"round": float(number)}, meta={HELD: self.digest_after(number)})

    def begin_round(self, keep: Keep | None = None) -> None:
        super().begin_round(keep)
        self.merged = None

    def accept_merged(self, merged: Merged) -> None:
        """Keep what the leader told; the reports of sites whose updates are not in the model are forgotten.

        Raises:
            RefusalError: the model holds an update that the round does not have (reason ``report``).
        """
        if not merged.updates or not set(merged.updates) <= set(self.reports):
            raise RefusalError("report", "The merged model is not made of the updates of the round's sites.")
        self.reports = {site: self.reports[site] for site in sorted(merged.updates)}
        self.merged = merged

    def finish_round(self) -> None:
        """Count the round.

        Raises:
            AggregationError: no site has merged it.
        """
        if self.merged is None:
            raise AggregationError("No site merged the round. The model of the round before is kept at the sites.")
        self.digests.append(self.merged.digest)
        self.heads.append(self.merged.block)

    # ------------------------------------------------------------------ what is told and stored

    def describe(self) -> dict[str, Any]:
        return self.aggregator.describe()

    def describe_round(self) -> dict[str, Any]:
        """Also who led the round, who has its model, and the bytes between the leader and each other site."""
        described, merged = super().describe_round(), self.merged
        if merged is None:
            return described
        told = {"weights": dict(merged.weights), "scales": dict(merged.scales), "notes": dict(merged.notes)}
        swarm = {
            "leader": merged.leader,
            "block": merged.block,
            "takers": list(merged.takers),
            "bytes": dict(merged.traffic),
        }
        return {**described, **told, "swarm": swarm}

    def digest_after(self, number: int) -> str:
        return self.digests[number + 1]

    def save(self, record: RunRecord, plan: Plan, name: str, number: int, final: bool) -> dict[str, Any]:
        """Write where the model comes from; the model itself lies at each site under this name."""
        note = record.note(name, plan, self.digest_after(number), number)
        if note is not None:
            write_note(record.folder / name, note)
        return {"model": name, "at_sites": True}

    def history(self) -> dict[str, Any]:
        return {"digests": self.digests, "heads": self.heads}

    def restore(self, number: int, arrays: Mapping[str, np.ndarray], history: Mapping[str, Any]) -> None:
        self.digests, self.heads = list(history["digests"]), list(history["heads"])

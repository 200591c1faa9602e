"""Fully asynchronous training: every update makes a new version of the model by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedseg.aggregators.base import AggregationError
from fedseg.allowed import number
from fedseg.contract.arguments import takes_arguments_of
from fedseg.contract.combinations import EVERY_COORDINATE, KNOWN_DRAWS, ONE_START, SAME_SITES
from fedseg.contract.update import Update
from fedseg.networks.weights import Arrays
from fedseg.workflows.buffered_training import Buffered, BufferSettings, LateModel, check_selection, take_late
from fedseg.workflows.run.late_updates import Late, LateSettings
from fedseg.workflows.run.method_parts import MethodParts, take_parts
from fedseg.workflows.run.plain_model import PlainModel, select
from fedseg.workflows.run.run_model import Keep
from fedseg.workflows.run.run_state import RunState
from fedseg.workflows.run.settings import RunSettings, refuse_given
from fedseg.workflows.run.workflow import Workflow

_VERSIONS = "versions/"


class MixedModel(PlainModel, LateModel):
    """A model with which the model of a site is mixed: W <- (1 - m) W + m W_j, where m falls with the staleness.

    W_j is the model of site j after its training: the version that the site received plus its update. The versions that
    sites are training stay here, and in checkpoints, until their updates have come.
    """

    def __init__(self, mixing: float, settings: BufferSettings) -> None:
        """Begin without weights; see ``AsynchronousTraining``."""
        super().__init__()
        self.mixing, self.settings, self.late = mixing, settings, Late()
        self._versions: dict[int, Arrays] = {}
        self._updates: dict[str, Arrays] = {}
        self._shares: dict[str, float] = {}

    def begin_round(self, keep: Keep | None = None) -> None:
        super().begin_round(keep)
        self.late.begin_round()
        self._versions[self.finished + 1] = self.weights
        self._updates, self._shares = {}, {}

    def accept_update(self, site: str, update: Update) -> None:
        arrays, _ = self.check(site, update)
        self.keep_arrays(site, arrays)
        self._updates[site] = arrays
        self.reports[site], self.steps[site] = update.report, update.steps

    def finish_round(self) -> None:
        """Mix in the update of the round.

        Raises:
            AggregationError: the model would not be finite.
        """
        for site, update in self._updates.items():
            staleness = self.late.staleness[site]
            received = self._versions[self.finished + 1 - staleness]
            self._shares[site] = share = self.mixing * self.settings.factor(staleness)
            self.weights = {**self.weights, **{n: self._mixed(n, received[n], update[n], share) for n in update}}
        super().finish_round()
        self.drop_late_scores()
        needed = set(self.late.in_flight.values())
        self._versions = {version: weights for version, weights in self._versions.items() if version in needed}

    def _mixed(self, name: str, received: np.ndarray, update: np.ndarray, share: float) -> np.ndarray:
        own = self.weights[name]
        trained = np.add(received, update, dtype=np.float64)
        with np.errstate(over="ignore"):
            mixed: np.ndarray = ((1 - share) * own.astype(np.float64) + share * trained).astype(own.dtype)
        if not np.isfinite(mixed).all():
            raise AggregationError(f"Mixing made a model with values that are not finite (array {name}).")
        return mixed

    def describe(self) -> dict[str, Any]:
        own = {key: value for key, value in self.settings.describe().items() if key != "buffer"}
        return {"name": "FedAsync", "mixing": self.mixing, **own}

    def describe_round(self) -> dict[str, Any]:
        """Also the share of the site's model in the new one, as the factor of its update, and what is under way."""
        weights = dict.fromkeys(self._shares, 1.0)
        told = {"weights": weights, "scales": dict(self._shares), "notes": self.late.notes()}
        return {**super().describe_round(), **told}

    def state(self) -> Arrays:
        kept = {
            f"{_VERSIONS}{version}/{name}": value
            for version, weights in self._versions.items()
            for name, value in weights.items()
        }
        return {**super().state(), **kept}

    def history(self) -> dict[str, Any]:
        return {"late": self.late.history()}

    def restore(self, number: int, arrays: Mapping[str, np.ndarray], history: Mapping[str, Any]) -> None:
        super().restore(number, arrays, history)
        self.late.restore(history["late"])
        self._versions = {}
        for name, value in select(arrays, _VERSIONS).items():
            version, _, own = name.partition("/")
            self._versions.setdefault(int(version), {})[own] = value


class OneByOne(Buffered):
    """A round is one update; see ``Buffered``."""

    def participants(self, run: RunState) -> list[str]:
        """All, once there is an update: ``min_sites`` is about the sites that accept the job."""
        return sorted(run.facts) if run.model.reports else []


class AsynchronousTraining(Workflow):
    """Train one model fully asynchronously (FedAsync, Xie, Koyejo and Gupta, 2019).

    1. Every site that is there trains all the time. When it has answered, it is sent the newest model.
    2. Each update makes a new version: W <- (1 - m) W + m W_j with the model W_j that the site has trained, where
       m = mixing * s(staleness), and the staleness is the number of versions that were made since the site's model was
       sent. A round is one version.

    What is said of order, states, scores and resumption in ``BufferedTraining`` holds here, too. A slow site that comes
    with a model of an old version pulls the new one back towards it, which is what s is against. It would do so with
    every coordinate that a sparse update leaves out, so filters that leave out coordinates are refused. Each version is
    scored at one site, so none is known as the best, and the last one is the result.
    """

    needs = frozenset({EVERY_COORDINATE})
    withholds = frozenset({ONE_START, SAME_SITES, KNOWN_DRAWS})

    @takes_arguments_of(MethodParts, RunSettings, LateSettings)
    def __init__(self, num_rounds: int, mixing: float = 0.6, **arguments: Any) -> None:
        """Check the arguments.

        Args:
            num_rounds: versions that are made.
            mixing: share of a fresh site's model in the new version, above 0 and up to 1; 0.6 in the paper.
            arguments: see ``LateSettings``; ``MethodParts``, of which ``selection`` says who is sent the newest model
                when it is idle, and the others must be left out, since one model at a time is mixed in; and
                ``RunSettings``, of which ``target_dice``, ``patience`` and ``max_epsilon`` must be left out.

        Raises:
            ConfigurationError: a value is not allowed, or an argument has no meaning here.
        """
        absent = ("aggregator", "server_optimizer", "shared_arrays", "target_dice", "patience", "max_epsilon")
        refuse_given("asynchronous training", arguments, *absent)
        late = take_late(arguments)
        parts, settings = take_parts(arguments), RunSettings(num_rounds, **arguments)
        check_selection(parts.asked)
        share = number("workflow.mixing", mixing, above=0, most=1)
        model = MixedModel(share, BufferSettings(**late, buffer=1))
        super().__init__(settings, model, OneByOne(model), parts.asked)

"""What the server carries from round to round: the model of a run, whatever it consists of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedseg.aggregators.base import Draw
from fedseg.aggregators.shared_state import SharedState
from fedseg.contract.plan import Plan
from fedseg.contract.report import SiteReport
from fedseg.contract.update import Step, Update
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.networks.weights import Arrays
from fedseg.training.hooks import TrainingHook, replaces
from fedseg.workflows.run.checkpoint import Checkpoints
from fedseg.workflows.run.model_average import ModelAverage
from fedseg.workflows.run.record import RunRecord
from fedseg.workflows.run.sites import Message

Keep = Callable[[str, Arrays], None]
"""Stores arrays under the name of a site, or those of the model before the round under ``global``."""


@dataclass(frozen=True)
class RunPlace:
    """Where a run's server has its files.

    Attributes:
        state: its state folder; the run has a folder of its own in it.
        config: the server's ``local`` folder, beside which keys and contexts may lie.
        initial: a model file to start from; None for the plan's seeded network.
        models: model files that are scored at the end, by name.
    """

    state: Path
    config: Path
    initial: Path | None = None
    models: Mapping[str, Path] = field(default_factory=dict)


class RunModel(ABC):
    """The model of a run at the server.

    A round sends ``training_message`` to its sites, and calls ``begin_round``, ``accept_update`` for each site and
    ``finish_round``. After that the model of the round is there for everybody who asks by the number of a finished
    round (-1 for the start).

    >>> class Longest(RunModel):  # the largest number of training cases
    ...     most = 0
    ...     def accept_update(self, site, update):
    ...         self.reports[site] = update.report
    ...     def finish_round(self):
    ...         self.most = max(report.num_samples for report in self.reports.values())
    ...     def describe(self):
    ...         return {"name": "Longest"}
    ...     load = training_message = scoring_message = digest_after = save = restore = None
    >>> model = Longest()
    >>> model.begin_round()
    >>> model.accept_update("a", Update({}, SiteReport(num_samples=7, num_steps=4, train_loss=0.5, val_loss=None)))
    >>> model.finish_round()
    >>> model.most, model.describe_round()["costs"]
    (7, {'a': 0.5})

    Attributes:
        components: the parts of a job of which it consists.
        takes_shared_arrays: whether shared arrays come with updates; known once ``check_plan`` was called.
        keeps_former: whether the models of earlier rounds can still be had, so that the best one can be chosen.
        remark: what whoever runs the server should know of this model; empty for nothing.
        average: of the models of all rounds; None where the job asks for none.
        reports: what the sites whose updates were accepted in this round reported.
        steps: what the filters of these sites did to their updates.
    """

    components: Sequence[object] = ()
    takes_shared_arrays = False
    keeps_former = True
    remark = ""
    average: ModelAverage | None = None

    def __init__(self) -> None:
        self.reports: dict[str, SiteReport] = {}
        self.steps: dict[str, tuple[Step, ...]] = {}
        self._keep: Keep | None = None

    # ------------------------------------------------------------------ a run

    def keep_average(self, decay: float) -> None:
        """Keep an average of the models of all rounds beside them, see ``ModelAverage``; called before the run.

        Raises:
            ConfigurationError: the server has no whole model of which it could.
        """
        why = "There the server has no whole model in clear."
        allowed = "null in encrypted and in split training and where sites merge"
        raise ConfigurationError("workflow.model_average", decay, allowed, why)

    def check_plan(self, plan: Plan) -> None:
        """Refuse a plan in which sites would not report or send what the model needs.

        Raises:
            ConfigurationError: a setting of the plan must be another.
        """

    def check_hooks(self, hooks: Sequence[TrainingHook]) -> None:
        """Refuse hooks at the sites of which the model lacks the other half, or that lack theirs.

        Raises:
            ConfigurationError: names the half that is missing.
        """
        check_halves(hooks, None)

    @abstractmethod
    def load(self, plan: Plan, place: RunPlace, checkpoints: Checkpoints) -> None:
        """Start from the plan's seeded network, or from a model that the job brings.

        Raises:
            ConfigurationError: the plan does not fit.
            DataError: the model file cannot be read, or is of another task or network.
        """

    def start(self, total_sites: int) -> None:
        """Prepare what depends on the number of sites that accepted the job; before round 0 only."""

    @property
    def before_rounds(self) -> bool:
        """Whether sites are asked for arrays before round 0; known once ``check_plan`` was called."""
        return False

    def accept_before_rounds(self, site: str, update: Update) -> None:
        """Check what a site sent before round 0, and let it count.

        Raises:
            RefusalError: a name, a shape or a value does not fit (reason ``weights``).
        """
        raise RefusalError("weights", "This job does not use arrays before its first round.")

    def finish_before_rounds(self, samples: Mapping[str, float]) -> None:
        """Make of it what round 0 needs.

        Args:
            samples: training cases of the sites whose arrays count.

        Raises:
            AggregationError: no site sent anything.
        """

    def add_site(self) -> None:
        """One more site takes part from now on."""

    # ------------------------------------------------------------------ a round

    @abstractmethod
    def training_message(self, sites: Sequence[str]) -> Message:
        """What a round sends to its sites: one message for all, or one for each site."""

    def begin_round(self, keep: Keep | None = None) -> None:
        """Forget the updates of the round before.

        Args:
            keep: stores the arrays of updates once they are known to be good, before they count; where it fails, the
                update is left out. None stores none.
        """
        self.reports, self.steps, self._keep = {}, {}, keep

    def sites_drawn(self, draw: Draw) -> None:
        """How the sites of the round at hand were drawn."""

    @abstractmethod
    def accept_update(self, site: str, update: Update) -> None:
        """Check a site's update and let it count.

        Raises:
            RefusalError: the report, a name, a shape or a value does not fit.
            AggregationError: it holds no arrays.
        """

    @abstractmethod
    def finish_round(self) -> None:
        """Make the next model from the updates that were accepted.

        Raises:
            AggregationError: it cannot be made. The model stays as it was.
        """

    # ------------------------------------------------------------------ what is told and stored

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Names and arguments of everything that decides how updates become a model."""

    def identity(self) -> dict[str, Any]:
        """What must be equal for a run to continue from a checkpoint."""
        return {"rule": self.describe()}

    def describe_round(self) -> dict[str, Any]:
        """Weights, scales and notes of the round, and the cost of every site."""
        costs = {site: self.reports[site].train_loss for site in sorted(self.reports)}
        return {"rule": self.describe(), "weights": {}, "scales": {}, "notes": {}, "costs": costs}

    @abstractmethod
    def digest_after(self, number: int) -> str:
        """The name of the model after a finished round in the run's record."""

    @abstractmethod
    def scoring_message(self, number: int, sites: Sequence[str]) -> Message:
        """What brings the model after a finished round to sites that score it."""

    @abstractmethod
    def save(self, record: RunRecord, plan: Plan, name: str, number: int, final: bool) -> dict[str, Any]:
        """Write the model after a round in place of the one of the same name.

        Args:
            record: of the run.
            plan: of the job.
            name: of the file.
            number: of the finished round.
            final: whether the rounds are over.

        Returns:
            What the results say of it, with the name of its file under ``model``.
        """

    def own_models(self) -> dict[str, str]:
        """Where each site has a model of its own and there is no common one: the digest of each; else empty."""
        return {}

    def state(self) -> Arrays:
        """The arrays to be stored at the end of a round; ``history`` comes beside them."""
        return {}

    def history(self) -> dict[str, Any]:
        """What is remembered of former rounds, as plain JSON."""
        return {}

    @abstractmethod
    def restore(self, number: int, arrays: Mapping[str, np.ndarray], history: Mapping[str, Any]) -> None:
        """Restore what ``state`` and ``history`` gave after a finished round."""


def check_halves(hooks: Sequence[TrainingHook], shared: SharedState | None) -> None:
    """Refuse a hook that sends arrays that nothing at the server combines, and what combines arrays that no hook sends.

    Raises:
        ConfigurationError: names the half that is missing.
    """
    moments = ("shared_arrays", "arrays_before_rounds")
    sending = {h.prefix: type(h).__name__ for h in hooks if any(replaces(h, moment) for moment in moments)}
    combining = {} if shared is None else {shared.prefix: type(shared).__name__}
    remedy = "docs/reference/method-table.md names both halves of each method."
    for prefix in sorted(set(sending) - set(combining)):
        wanted = f"what combines the arrays {prefix!r} of {sending[prefix]}"
        raise ConfigurationError("workflow.shared_arrays", " ".join(combining.values()) or None, wanted, remedy)
    for prefix in sorted(set(combining) - set(sending)):
        wanted = f"a list with the hook that sends the arrays {prefix!r} of {combining[prefix]}"
        raise ConfigurationError("executor.hooks", sorted(type(h).__name__ for h in hooks), wanted, remedy)

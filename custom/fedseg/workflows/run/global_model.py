"""The global model and all that the server carries with it from round to round."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from fedseg.aggregators.base import AggregationError, Aggregator
from fedseg.aggregators.server_optimizers import ServerOptimizer
from fedseg.aggregators.shared_state import SharedState
from fedseg.contract.plan import Plan
from fedseg.contract.protocol import STEPS
from fedseg.contract.report import ReportField, SiteReport, parse_report
from fedseg.contract.update import Step, parse_steps
from fedseg.errors import RefusalError
from fedseg.models.model_file import initial_weights
from fedseg.networks.weights import Arrays, apply_difference, check_weights, is_averaged, join_extras, split_extras

_OPTIMIZER, _SHARED, _WEIGHTS = "optimizer/", "shared/", "weights/"


class GlobalModel:
    """Weights, the rule that updates them, and what the rule, a server optimizer and shared arrays remember.

    It knows nothing of messages: FLARE's workflow and the loop in one process drive it alike.

    Attributes:
        weights: parameters and buffers of the global model.
        reports: what the sites whose updates were taken in this round reported.
        report_fields: what the job's components declare to report beside the fixed fields.
        steps: what the filters of these sites did to their updates, see ``privacy.update``.
    """

    def __init__(
        self,
        aggregator: Aggregator,
        server_optimizer: ServerOptimizer | None = None,
        shared_arrays: SharedState | None = None,
    ) -> None:
        self.aggregator, self.server_optimizer, self.shared_arrays = aggregator, server_optimizer, shared_arrays
        self.weights: Arrays = {}
        self.reports: dict[str, SiteReport] = {}
        self.steps: dict[str, tuple[Step, ...]] = {}
        self.report_fields: Mapping[str, ReportField] = {}

    def open(self, plan: Plan, initial: Path | None = None) -> None:
        """Start from the plan's seeded network, or from a model that the job brings.

        Args:
            plan: the job's plan.
            initial: a model file of the same task and network, see ``training.model_file``; None for the seeded one.

        Raises:
            ConfigurationError: the rule needs reports that sites of this plan do not give.
            DataError: the model file cannot be read, or is of another task or network.
        """
        self.aggregator.check_plan(plan)
        self.weights = initial_weights(plan, initial)
        if self.shared_arrays is not None:
            self.shared_arrays.open(plan, self._averaged())

    def start(self, total_sites: int) -> None:
        """Prepare what depends on the number of sites that accepted the job; before round 0 only."""
        if self.shared_arrays is not None:
            self.shared_arrays.start(total_sites)

    def join(self) -> None:
        """One more site takes part from now on."""
        if self.shared_arrays is not None:
            self.shared_arrays.join()

    def outgoing(self) -> Arrays:
        """What a round sends to its sites: the weights, and further arrays of the method."""
        return join_extras(self.weights, self.shared_arrays.outgoing("") if self.shared_arrays is not None else {})

    def begin_round(self) -> None:
        """Forget the updates of the round before."""
        self.reports, self.steps = {}, {}
        self.aggregator.reset_stats()
        if self.shared_arrays is not None:
            self.shared_arrays.reset_round()

    def take(self, model: FLModel, keep: Callable[[str, Arrays], None] | None = None) -> SiteReport:
        """Check a site's update and hand it to the rule.

        Args:
            model: the update, its report in the meta.
            keep: gets site and arrays once they are known to be good, before they count; an error leaves them out.

        Raises:
            RefusalError: the report, a name, a shape or a value does not fit.
            AggregationError: it is no weight difference.
        """
        site, report = model.meta["client_name"], parse_report(model.meta)
        steps = parse_steps(model.meta.get(STEPS))
        update, extras = split_extras(model.params or {})
        if model.params_type != ParamsType.DIFF or not update:
            raise AggregationError(f"The update of {site} is not a weight difference (WEIGHT_DIFF) with arrays.")
        averaged = self._averaged()
        check_weights({name: averaged[name] for name in averaged if name in update}, update)
        with np.errstate(over="ignore"):
            # In the model's own precision: a value that only a wider type can hold would end the round for everybody.
            update = {name: np.asarray(value).astype(averaged[name].dtype) for name, value in update.items()}
            moved = {name: averaged[name] + value for name, value in update.items()}
        if not all(np.isfinite(value).all() for value in moved.values()):
            raise RefusalError("weights", "The update is so large that the model would not stay finite.")
        if self.shared_arrays is not None:
            self.shared_arrays.accept(site, extras)
        elif extras:
            raise RefusalError(
                "weights", f"The update holds {len(extras)} further array(s) that this job does not use."
            )
        if keep is not None:
            keep(site, join_extras(update, extras))
        self.aggregator.accept_model(FLModel(params_type=ParamsType.DIFF, params=update, meta=model.meta))
        self.reports[site], self.steps[site] = report, steps
        return report

    def finish_round(self) -> None:
        """Make the next global model from the updates that were taken.

        Raises:
            AggregationError: there are none, or the rule could not combine them. The weights stay as they were.
        """
        update = self.aggregator.aggregate_model().params
        if self.server_optimizer is not None:
            update = self.server_optimizer.step(update)
        weights = apply_difference(self.weights, update)
        broken = [name for name, value in weights.items() if not np.isfinite(value).all()]
        if broken:
            raise AggregationError(
                f"The rule made a model with values that are not finite ({len(broken)} arrays, first {broken[0]})."
            )
        self.weights = weights
        if self.shared_arrays is not None:
            self.shared_arrays.finish_round({site: r.num_samples for site, r in self.reports.items()})

    def describe(self) -> dict[str, Any]:
        """Names and arguments of everything that decides how updates become a model."""
        rule = self.aggregator.describe()
        if self.server_optimizer is not None:
            rule["server_optimizer"] = self.server_optimizer.describe()
        if self.shared_arrays is not None:
            rule["shared_arrays"] = self.shared_arrays.describe()
        return rule

    def describe_round(self) -> dict[str, Any]:
        """Weights, scales and notes of the round, and the cost of every site, as the rule used them."""
        reports = {site: self.reports[site] for site in sorted(self.reports)}
        return {
            "rule": self.describe(),
            "weights": self.aggregator.last_weights,
            "scales": self.aggregator.last_scales,
            "notes": self.aggregator.last_notes,
            "costs": self.aggregator.costs(reports),
        }

    def arrays(self) -> Arrays:
        """Everything to be stored at the end of a round, as named arrays; ``history`` of the rule comes beside it."""
        stored = {_WEIGHTS + name: value for name, value in self.weights.items()}
        if self.server_optimizer is not None:
            stored |= {_OPTIMIZER + name: value for name, value in self.server_optimizer.state().items()}
        if self.shared_arrays is not None:
            stored |= {_SHARED + name: value for name, value in self.shared_arrays.state().items()}
        return stored

    def restore(self, arrays: Mapping[str, np.ndarray], history: Mapping[str, Any]) -> None:
        """Take back what ``arrays`` and the rule's ``history`` gave."""
        weights = select(arrays, _WEIGHTS)
        check_weights(self.weights, weights)
        # In the network's order, which files do not keep.
        self.weights = {name: weights[name] for name in self.weights}
        self.aggregator.restore(history)
        if self.server_optimizer is not None:
            self.server_optimizer.restore(select(arrays, _OPTIMIZER))
        if self.shared_arrays is not None:
            self.shared_arrays.restore(select(arrays, _SHARED))

    def _averaged(self) -> Arrays:
        return {name: value for name, value in self.weights.items() if is_averaged(value)}


def select(arrays: Mapping[str, np.ndarray], prefix: str) -> Arrays:
    """The arrays whose names start with ``prefix``, without it."""
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def stored_weights(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """The global model's weights among the arrays of a checkpoint."""
    return select(arrays, _WEIGHTS)

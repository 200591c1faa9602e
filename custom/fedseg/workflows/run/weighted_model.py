"""The global model that a rule makes from updates, and all that the server carries with it from round to round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedseg.aggregators.base import Aggregator
from fedseg.aggregators.server_optimizers import ServerOptimizer
from fedseg.aggregators.shared_state import SharedState
from fedseg.contract.plan import Plan
from fedseg.contract.update import Update
from fedseg.networks.weights import Arrays, join_extras
from fedseg.workflows.run.checkpoint import Checkpoints
from fedseg.workflows.run.plain_model import PlainModel, select
from fedseg.workflows.run.run_model import Keep, RunModel, RunPlace

_OPTIMIZER, _SHARED = "optimizer/", "shared/"


class WeightedModel(PlainModel):
    """Weights, the rule that updates them, and what the rule, a server optimizer and shared arrays remember."""

    def __init__(
        self,
        aggregator: Aggregator,
        server_optimizer: ServerOptimizer | None = None,
        shared_arrays: SharedState | None = None,
    ) -> None:
        super().__init__()
        self.aggregator, self.server_optimizer, self.shared_arrays = aggregator, server_optimizer, shared_arrays
        self.further_arrays = shared_arrays is not None

    def check_plan(self, plan: Plan) -> None:
        self.aggregator.check_plan(plan)

    @property
    def per_site(self) -> bool:
        return self.shared_arrays is not None and self.shared_arrays.per_site

    def load(self, plan: Plan, place: RunPlace, checkpoints: Checkpoints) -> None:
        super().load(plan, place, checkpoints)
        if self.shared_arrays is not None:
            self.shared_arrays.open(plan, self._averaged())

    def start(self, total_sites: int) -> None:
        if self.shared_arrays is not None:
            self.shared_arrays.start(total_sites)

    def add_site(self) -> None:
        if self.shared_arrays is not None:
            self.shared_arrays.join()

    def outgoing(self, site: str | None) -> Arrays:
        """The weights, and further arrays of the method."""
        return join_extras(self.weights, {} if self.shared_arrays is None else self.shared_arrays.outgoing(site or ""))

    def begin_round(self, keep: Keep | None = None) -> None:
        super().begin_round(keep)
        self.aggregator.reset_stats()
        if self.shared_arrays is not None:
            self.shared_arrays.reset_round()

    def accept_update(self, site: str, update: Update) -> None:
        arrays, extras = self.check(site, update)
        if self.shared_arrays is not None:
            self.shared_arrays.accept(site, extras)
        self.keep_arrays(site, join_extras(arrays, extras))
        self.aggregator.accept_update(site, arrays, update.report)
        self.reports[site], self.steps[site] = update.report, update.steps

    def finish_round(self) -> None:
        update = self.aggregator.aggregate_model().params
        self.apply(update if self.server_optimizer is None else self.server_optimizer.step(update))
        if self.shared_arrays is not None:
            self.shared_arrays.finish_round({site: report.num_samples for site, report in self.reports.items()})
        super().finish_round()

    def describe(self) -> dict[str, Any]:
        rule = self.aggregator.describe()
        if self.server_optimizer is not None:
            rule["server_optimizer"] = self.server_optimizer.describe()
        if self.shared_arrays is not None:
            rule["shared_arrays"] = self.shared_arrays.describe()
        return rule

    def describe_round(self) -> dict[str, Any]:
        return describe_rule(self, self.aggregator)

    def state(self) -> Arrays:
        stored = super().state()
        if self.server_optimizer is not None:
            stored |= {_OPTIMIZER + name: value for name, value in self.server_optimizer.state().items()}
        if self.shared_arrays is not None:
            stored |= {_SHARED + name: value for name, value in self.shared_arrays.state().items()}
        return stored

    def history(self) -> dict[str, Any]:
        return self.aggregator.history()

    def restore(self, number: int, arrays: Mapping[str, np.ndarray], history: Mapping[str, Any]) -> None:
        super().restore(number, arrays, history)
        self.aggregator.restore(history)
        if self.server_optimizer is not None:
            self.server_optimizer.restore(select(arrays, _OPTIMIZER))
        if self.shared_arrays is not None:
            self.shared_arrays.restore(select(arrays, _SHARED))


def describe_rule(model: RunModel, rule: Aggregator) -> dict[str, Any]:
    """Weights, scales and notes of a round, and the cost of every site, as a rule used them."""
    reports = {site: model.reports[site] for site in sorted(model.reports)}
    return {
        "rule": model.describe(),
        "weights": rule.last_weights,
        "scales": rule.last_scales,
        "notes": rule.last_notes,
        "costs": rule.costs(reports),
    }

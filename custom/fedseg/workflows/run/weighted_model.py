"""The global model that a rule makes from updates, and all that the server carries with it from round to round."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedseg.aggregators.base import Aggregator, Draw
from fedseg.aggregators.server_optimizers import ServerOptimizer
from fedseg.aggregators.shared_state import SharedState
from fedseg.contract.plan import Plan
from fedseg.contract.update import Update
from fedseg.networks.weights import Arrays, join_shared
from fedseg.training.hooks import TrainingHook
from fedseg.workflows.run.plain_model import select
from fedseg.workflows.run.run_model import Keep, RunModel
from fedseg.workflows.run.sharing_model import SharingModel

_OPTIMIZER = "optimizer/"


class WeightedModel(SharingModel):
    """Weights, the rule that updates them, and what the rule, a server optimizer and shared arrays remember."""

    def __init__(
        self,
        aggregator: Aggregator,
        server_optimizer: ServerOptimizer | None = None,
        shared_arrays: SharedState | None = None,
    ) -> None:
        super().__init__(shared_arrays)
        self.aggregator, self.server_optimizer = aggregator, server_optimizer
        self.components = (aggregator, server_optimizer, shared_arrays)

    def check_plan(self, plan: Plan) -> None:
        self.aggregator.check_plan(plan)
        super().check_plan(plan)

    def check_hooks(self, hooks: Sequence[TrainingHook]) -> None:
        self.aggregator.check_pull(math.fsum(hook.pull for hook in hooks))
        super().check_hooks(hooks)

    def begin_round(self, keep: Keep | None = None) -> None:
        super().begin_round(keep)
        self.aggregator.reset_stats()
        self.aggregator.received = self.weights

    def sites_drawn(self, draw: Draw) -> None:
        self.aggregator.draw = draw

    def accept_update(self, site: str, update: Update) -> None:
        arrays, shared = self.check(site, update)
        if self.shared_arrays is not None:
            self.shared_arrays.accept(site, shared)
        self.keep_arrays(site, join_shared(arrays, shared))
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
        return stored

    def history(self) -> dict[str, Any]:
        return self.aggregator.history()

    def restore(self, number: int, arrays: Mapping[str, np.ndarray], history: Mapping[str, Any]) -> None:
        super().restore(number, arrays, history)
        self.aggregator.restore(history)
        if self.server_optimizer is not None:
            self.server_optimizer.restore(select(arrays, _OPTIMIZER))


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

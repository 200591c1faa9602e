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
from fedseg.contract.shapes import array_owners
from fedseg.contract.update import Update
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.networks.weights import Arrays, get_weights, is_averaged, join_shared, split_shared
from fedseg.training.hooks import TrainingHook
from fedseg.workflows.run.plain_model import PlainModel, select
from fedseg.workflows.run.run_model import Keep, RunModel, check_halves

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
        self.components = (aggregator, server_optimizer, shared_arrays)

    def check_plan(self, plan: Plan) -> None:
        self.aggregator.check_plan(plan)
        if self.shared_arrays is not None:
            arrays = get_weights(plan.build_network())
            self.shared_arrays.set_plan(plan, {name: value for name, value in arrays.items() if is_averaged(value)})
            self.takes_shared_arrays = self.shared_arrays.every_round
            hands_on = self.shared_arrays.hands_on_private
            if self.takes_shared_arrays and not hands_on and array_owners(plan):
                parts, name = [part.name for part in plan.network.parts], type(self.shared_arrays).__name__
                allowed = f"parts whose arrays all sites share and train from the first round, with {name}"
                why = "What comes with updates beside the network's arrays would tell those that stay at a site."
                raise ConfigurationError("network.parts", parts, allowed, why)

    def check_hooks(self, hooks: Sequence[TrainingHook]) -> None:
        self.aggregator.check_pull(math.fsum(hook.pull for hook in hooks))
        check_halves(hooks, self.shared_arrays)

    @property
    def per_site(self) -> bool:
        return self.shared_arrays is not None and self.shared_arrays.per_site

    def start(self, total_sites: int) -> None:
        if self.shared_arrays is not None:
            self.shared_arrays.start(total_sites)

    @property
    def before_rounds(self) -> bool:
        return self.shared_arrays is not None and self.shared_arrays.before_rounds

    def accept_before_rounds(self, site: str, update: Update) -> None:
        arrays, shared = split_shared(update.arrays)
        if self.shared_arrays is None or arrays:
            raise RefusalError("weights", "The site sent arrays of the network before the first round.")
        self.shared_arrays.accept(site, shared, before_rounds=True)

    def finish_before_rounds(self, samples: Mapping[str, float]) -> None:
        if self.shared_arrays is not None:
            self.shared_arrays.finish_before_rounds(samples)
            for name, value in self.shared_arrays.model_arrays().items():
                self.weights[name] = value.astype(self.weights[name].dtype)

    def add_site(self) -> None:
        if self.shared_arrays is not None:
            self.shared_arrays.join()

    def outgoing(self, site: str | None) -> Arrays:
        """The weights, and shared arrays of the method."""
        return join_shared(self.weights, {} if self.shared_arrays is None else self.shared_arrays.outgoing(site or ""))

    def begin_round(self, keep: Keep | None = None) -> None:
        super().begin_round(keep)
        self.aggregator.reset_stats()
        self.aggregator.received = self.weights
        if self.shared_arrays is not None:
            self.shared_arrays.reset_round()

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

"""A model beside which arrays of a method travel: sent by the sites, combined, and sent out again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedseg.aggregators.shared_state import SharedState
from fedseg.contract.plan import Plan
from fedseg.contract.shapes import array_owners
from fedseg.contract.update import Update
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.networks.weights import Arrays, get_weights, is_averaged, join_shared, split_shared
from fedseg.training.hooks import TrainingHook
from fedseg.workflows.run.plain_model import PlainModel, select
from fedseg.workflows.run.run_model import Keep, check_halves

_SHARED = "shared/"


class SharingModel(PlainModel):
    """Sends its weights together with shared arrays, where the method has such arrays, and is stored with both.

    Attributes:
        shared_arrays: the arrays and how they are combined; None without any.
    """

    def __init__(self, shared_arrays: SharedState | None = None) -> None:
        super().__init__()
        self.shared_arrays = shared_arrays

    def check_plan(self, plan: Plan) -> None:
        if self.shared_arrays is None:
            return
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
        if self.shared_arrays is not None:
            self.shared_arrays.reset_round()

    def state(self) -> Arrays:
        stored = super().state()
        if self.shared_arrays is not None:
            stored |= {_SHARED + name: value for name, value in self.shared_arrays.state().items()}
        return stored

    def restore(self, number: int, arrays: Mapping[str, np.ndarray], history: Mapping[str, object]) -> None:
        super().restore(number, arrays, history)
        if self.shared_arrays is not None:
            self.shared_arrays.restore(select(arrays, _SHARED))

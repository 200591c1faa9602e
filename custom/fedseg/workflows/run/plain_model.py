"""A model whose weights the server has; those of earlier rounds lie in checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from fedseg.aggregators.base import AggregationError
from fedseg.contract.plan import Plan
from fedseg.contract.shapes import array_owners
from fedseg.contract.update import Update
from fedseg.errors import RefusalError
from fedseg.files.digest import model_digest
from fedseg.models.model_file import initial_weights
from fedseg.networks.parts.part import Ownership
from fedseg.networks.weights import Arrays, apply_difference, check_weights, is_averaged, split_shared
from fedseg.workflows.run.checkpoint import Checkpoints
from fedseg.workflows.run.model_average import ModelAverage
from fedseg.workflows.run.record import RunRecord
from fedseg.workflows.run.run_model import Keep, RunModel, RunPlace
from fedseg.workflows.run.sites import Message

_WEIGHTS, _AVERAGE = "weights/", "average/"


class PlainModel(RunModel):
    """Sends its weights, and is stored with them.

    Attributes:
        weights: parameters and buffers of the global model.
        finished: the last finished round; -1 before the first.
    """

    checkpoints: Checkpoints

    def __init__(self) -> None:
        super().__init__()
        self.weights: Arrays = {}
        self.finished = -1
        self._owners: dict[str, Ownership] = {}

    def keep_average(self, decay: float) -> None:
        self.average = ModelAverage(decay)

    def load(self, plan: Plan, place: RunPlace, checkpoints: Checkpoints) -> None:
        self.check_plan(plan)
        self.checkpoints = checkpoints
        self.weights, self._owners = initial_weights(plan, place.initial), array_owners(plan)

    @property
    def per_site(self) -> bool:
        """Whether ``outgoing`` differs from site to site."""
        return False

    def outgoing(self, site: str | None) -> Arrays:
        """What a round sends to a site; ``site`` is None where all get the same."""
        return self.weights

    def training_message(self, sites: Sequence[str]) -> Message:
        if self.per_site:
            return {site: _message(self.outgoing(site)) for site in sites}
        return _message(self.outgoing(None))

    def begin_round(self, keep: Keep | None = None) -> None:
        super().begin_round(keep)
        if self.average is not None:
            self.average.begin(self.weights)
        self.keep_arrays("global", self.weights)

    def keep_arrays(self, name: str, arrays: Arrays) -> None:
        """Store arrays of the round, where the job asks for it."""
        if self._keep is not None:
            self._keep(name, arrays)

    def finish_round(self) -> None:
        """Count the round; a subclass makes its model first."""
        self.finished += 1
        if self.average is not None:
            self.average.take(self.weights, self.finished + 1)

    def weights_after(self, number: int) -> Arrays:
        """The weights after a finished round."""
        if number == self.finished:
            return self.weights
        return select(self.checkpoints.load(number)[0], _WEIGHTS)

    def digest_after(self, number: int) -> str:
        return model_digest(self.weights_after(number))

    def scoring_message(self, number: int, sites: Sequence[str]) -> Message:
        return _message(self.weights_after(number))

    def save(self, record: RunRecord, plan: Plan, name: str, number: int, final: bool) -> dict[str, Any]:
        record.model(name, plan, self.weights_after(number), number)
        return {"model": name}

    def state(self) -> Arrays:
        average = {} if self.average is None else self.average.weights
        stored = {_WEIGHTS + name: value for name, value in self.weights.items()}
        return stored | {_AVERAGE + name: value for name, value in average.items()}

    def restore(self, number: int, arrays: Mapping[str, np.ndarray], history: Mapping[str, Any]) -> None:
        # In the network's order, which files do not keep.
        order, weights = list(self.weights), select(arrays, _WEIGHTS)
        check_weights(self.weights, weights)
        self.weights, self.finished = {name: weights[name] for name in order}, number
        if self.average is not None:
            average = select(arrays, _AVERAGE)
            check_weights(self.weights, average)
            self.average.weights = {name: average[name] for name in order}

    def check(self, site: str, update: Update) -> tuple[Arrays, Arrays]:
        """A site's arrays in the model's own precision, since a value that only a wider type holds would end the round.

        Returns:
            The difference of the network's arrays, and shared arrays.

        Raises:
            RefusalError: names or shapes do not fit, the site does not share an array, or the model would not stay
                finite (reason ``weights``).
            AggregationError: there are no arrays.
        """
        arrays, shared = split_shared(update.arrays)
        if not arrays:
            raise AggregationError(f"The update of {site} is not a weight difference (WEIGHT_DIFF) with arrays.")
        for name, owner in self._owners.items():
            if name in arrays and not owner.sent(site, self.finished + 1):
                raise RefusalError("weights", f"The update holds {name}, which this site does not share in this round.")
        own = self._averaged()
        check_weights({name: own[name] for name in own if name in arrays}, arrays)
        with np.errstate(over="ignore"):
            arrays = {name: np.asarray(value).astype(own[name].dtype) for name, value in arrays.items()}
            moved = [own[name] + value for name, value in arrays.items()]
        if not all(np.isfinite(value).all() for value in moved):
            raise RefusalError("weights", "The update is so large that the model would not stay finite.")
        if shared and not self.takes_shared_arrays:
            text = f"The update holds {len(shared)} shared array(s) that this job does not use."
            raise RefusalError("weights", text)
        return arrays, shared

    def apply(self, update: Arrays) -> None:
        """Add a difference to the weights.

        Raises:
            AggregationError: values would not be finite. The weights stay as they were.
        """
        weights = apply_difference(self.weights, update)
        broken = [name for name, value in weights.items() if not np.isfinite(value).all()]
        if broken:
            raise AggregationError(
                f"The rule made a model with values that are not finite ({len(broken)} arrays, first {broken[0]})."
            )
        self.weights = weights

    def _averaged(self) -> Arrays:
        return {name: value for name, value in self.weights.items() if is_averaged(value)}


def _message(arrays: Arrays) -> FLModel:
    return FLModel(params_type=ParamsType.FULL, params=arrays, meta={})


def select(arrays: Mapping[str, np.ndarray], prefix: str) -> Arrays:
    """The arrays whose names start with ``prefix``, without it."""
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}

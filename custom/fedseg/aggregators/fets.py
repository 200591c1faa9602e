"""Every rule as an aggregation function of the FeTS challenge, Task 1, which runs on OpenFL.

The challenge calls one function per tensor and round, with the tensors of all collaborators; a rule of this package
wants whole updates, once per round. What the function finds in OpenFL's tensor database, a pandas frame with the
columns ``tensor_name, origin, round, report, tags, nparray``:

==================================  =============================================================================
tags                                row
==================================  =============================================================================
``('model',)``                      a tensor of the global model that collaborators received in this round
``('trained', ..., collaborator)``  the same tensor after the collaborator's training
``('metric', collaborator)``        what training reported; its loss is called ``loss``
``('metric', 'validate_agg', c)``   scores of the received model at collaborator c: ``valid_loss``, ``valid_dice``
``('metric', 'validate_local', c)`` the same of its own model after training
==================================  =============================================================================

All rows of a round are there before the first tensor is aggregated. Needs neither OpenFL nor pandas.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from fedseg.aggregators.base import AggregationError, Aggregator
from fedseg.contract.report import SiteReport
from fedseg.errors import FedsegError
from fedseg.networks.weights import Arrays, apply_difference, difference, is_averaged

logger = logging.getLogger(__name__)

# OpenFL knows shares of the training cases, no numbers; shares travel in billionths.
CASES = 10**9
_COUNTER, _OPTIMIZER = "num_batches_tracked", "__opt"


class LocalTensor(Protocol):
    """OpenFL's named tuple: one tensor of one collaborator, and the collaborator's share of all training cases."""

    col_name: str
    tensor: np.ndarray
    weight: float


OpenFLFunction = Callable[[Sequence[LocalTensor], Any, str, int, Any, Any], np.ndarray]


@dataclass(frozen=True)
class MetricNames:
    """What OpenFL's task runner calls the numbers of a report; the defaults are those of the challenge.

    Attributes:
        train_loss: metric of the training; None if there is none, which is for rules only that do not weigh by it.
        val_loss, val_dice: metrics of the validation tasks.
    """

    train_loss: str | None = "loss"
    val_loss: str = "valid_loss"
    val_dice: str = "valid_dice"


def as_openfl_function(
    rule: Aggregator, metrics: MetricNames | None = None, initial: Mapping[str, np.ndarray] | None = None
) -> OpenFLFunction:
    """The rule as ``aggregation_function`` of ``run_challenge_experiment``; one function per experiment.

    What OpenFL does not supply is treated so:

    - Numbers of training cases: shares stand for them, see ``CASES``. Rules only use ratios.
    - Optimizer steps: in proportion to the cases, as in the challenge (equal epochs, batches of one) but for their
      absolute number, so that FedNova's correction for the momentum of the first steps vanishes.
    - Scores of a collaborator that did not validate, or that are not finite: none, as from a site without cases.
    - What is no weight: optimizer states (``__opt...``) and tensors unknown to the global model are averaged by share,
      counters of batches are those of the largest collaborator.
    - The global model, in versions that do not store it under ``('model',)``: what the function returned in the round
      before, and ``initial`` in the first round.
    - History: it lives in the rule, however few rounds OpenFL stores. After a restart from a checkpoint of the
      challenge it is empty, unless ``rule.restore`` is given what ``rule.history`` said before.

    Args:
        rule: any aggregation rule.
        metrics: names of the metrics.
        initial: tensors of the initial global model.

    Returns:
        ``f(local_tensors, tensor_db, tensor_name, fl_round, collaborators_chosen_each_round,
        collaborator_times_per_round)``, which gives the tensor of the next global model.
    """
    return _Rounds(rule, metrics or MetricNames(), dict(initial or {}))


class _Rounds:
    """Aggregates a whole round when its first tensor is asked for, and then hands out tensor by tensor."""

    def __init__(self, rule: Aggregator, metrics: MetricNames, initial: Arrays) -> None:
        self.rule, self.metrics = rule, metrics
        self._round: int | None = None
        self._model = initial
        self._combined: set[str] = set()

    def __call__(
        self,
        local_tensors: Sequence[LocalTensor],
        tensor_db: Any,
        tensor_name: str,
        fl_round: int,
        collaborators_chosen_each_round: Any = None,
        collaborator_times_per_round: Any = None,
    ) -> np.ndarray:
        """The tensor of the next global model.

        Raises:
            AggregationError: the global model or a training loss is not in the database, rounds run backwards, or the
                rule could not combine the updates.
        """
        if fl_round != self._round:
            self._aggregate(local_tensors, tensor_db, fl_round)
        if tensor_name in self._combined:
            return self._model[tensor_name]
        shares = [tensor.weight for tensor in local_tensors]
        arrays = [np.asarray(tensor.tensor) for tensor in local_tensors]
        if _is_counter(tensor_name, arrays[0]):
            return arrays[int(np.argmax(shares))]
        return np.average(arrays, axis=0, weights=shares)

    def _aggregate(self, local_tensors: Sequence[LocalTensor], tensor_db: Any, fl_round: int) -> None:
        if self._round is not None and fl_round < self._round:
            raise AggregationError(
                f"Round {fl_round} came after round {self._round}: make a new rule and function for each experiment."
            )
        shares = {tensor.col_name: float(tensor.weight) for tensor in local_tensors}
        found = _read_round(tensor_db, fl_round, set(shares))
        received = found.model or self._model
        if not received:
            raise AggregationError(
                f"The tensor database holds no global model of round {fl_round} (rows tagged ('model',)): "
                "give as_openfl_function the initial model."
            )
        base = {name: value for name, value in received.items() if _is_combined(name, value)}
        self.rule.reset_stats()
        self.rule.received = base
        for collaborator, share in shares.items():
            trained = found.trained.get(collaborator, {})
            update = difference(trained, {name: value for name, value in base.items() if name in trained})
            meta = {"client_name": collaborator, **self._report(collaborator, share, found.metrics).to_meta()}
            try:
                self.rule.accept_model(FLModel(params_type=ParamsType.DIFF, params=update, meta=meta))
            except FedsegError as error:
                logger.warning("Update of %s left out of round %d: %s", collaborator, fl_round, error)
        self._model = apply_difference(base, self.rule.aggregate_model().params)
        self._combined, self._round = set(base), fl_round

    def _report(self, collaborator: str, share: float, metrics: Mapping[tuple[str, ...], float]) -> SiteReport:
        names = self.metrics
        cases = max(1, round(share * CASES))
        train_loss = metrics.get((names.train_loss, collaborator)) if names.train_loss else 0.0
        if train_loss is None:
            raise AggregationError(
                f"{collaborator} reported no {names.train_loss}: give as_openfl_function the name of its training loss."
            )

        def score(name: str, task: str) -> float | None:
            value = metrics.get((name, task, collaborator))
            return value if value is not None and math.isfinite(value) else None

        return SiteReport(
            num_samples=cases,
            num_steps=cases,
            train_loss=train_loss,
            val_loss=score(names.val_loss, "validate_agg"),
            val_scores={"mean": score(names.val_dice, "validate_agg")},
            val_loss_after=score(names.val_loss, "validate_local"),
            val_score_after=score(names.val_dice, "validate_local"),
        )


@dataclass(frozen=True)
class _RoundRows:
    """The rows of one round: the received model, each collaborator's own, and metrics by (name, tags...)."""

    model: Arrays
    trained: dict[str, Arrays]
    metrics: dict[tuple[str, ...], float]


def _read_round(tensor_db: Any, fl_round: int, collaborators: set[str]) -> _RoundRows:
    found = _RoundRows({}, {}, {})
    for name, tags, value in _rows(tensor_db, fl_round):
        owner = tags[-1] if tags else None
        if tags == ("model",):
            found.model[name] = np.asarray(value)
        elif owner not in collaborators:
            continue
        elif tags[0] == "metric":
            found.metrics[name, *tags[1:]] = float(np.asarray(value).item())
        elif tags[0] == "trained" and "delta" not in tags:
            found.trained.setdefault(tags[-1], {})[name] = np.asarray(value)
    return found


def _rows(tensor_db: Any, fl_round: int) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    columns = (tensor_db[column] for column in ("tensor_name", "round", "tags", "nparray"))
    for name, number, tags, value in zip(*columns, strict=True):
        if number == fl_round:
            yield name, (tags,) if isinstance(tags, str) else tuple(tags), value


def _is_counter(name: str, value: np.ndarray) -> bool:
    """Whether it counts batches: as integers, or as the floats in which OpenFL sends everything."""
    return name.endswith(_COUNTER) or not is_averaged(value)


def _is_combined(name: str, value: np.ndarray) -> bool:
    """Whether the rule combines it. OpenFL keeps optimizer states among the tensors of the model."""
    return not name.startswith(_OPTIMIZER) and not _is_counter(name, value)

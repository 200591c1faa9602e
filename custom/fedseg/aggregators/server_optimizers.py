"""Server optimizers: what is made of the aggregated update before it is added to the global weights.

The update, new minus old weights, stands for a negative gradient (Reddi et al., "Adaptive federated optimization", ICLR
2021). Running means and variances of normalisation layers are no parameters and have no gradient: they are added as
they are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from fedseg import allowed
from fedseg.aggregators.base import AggregationError
from fedseg.contract.arguments import arguments_of
from fedseg.errors import ConfigurationError
from fedseg.networks.weights import Arrays

_STATISTICS = ("running_mean", "running_var")
_STEPS, _FIRST, _SECOND = "steps", "first", "second"


class ServerOptimizer(ABC):
    """Keeps moments per array over the rounds; an array that an update lacks keeps its own and does not move.

    >>> optimizer = FedAvgM(learning_rate=0.5, momentum=0.5)
    >>> [optimizer.step({"w": np.ones(1)})["w"].tolist() for _ in range(3)]
    [[0.5], [0.75], [0.875]]

    Attributes:
        kinds: names of the moments that it keeps of each array.
    """

    kinds: ClassVar[tuple[str, ...]]

    def __init__(self) -> None:
        self._kept: Arrays = {}

    def step(self, update: Mapping[str, np.ndarray]) -> Arrays:
        """What is to be added to the global weights.

        Args:
            update: the aggregated difference.

        Returns:
            Arrays of the same names, shapes and types.

        Raises:
            AggregationError: a moment would not be finite; all moments stay those of the round before.
        """
        moves: Arrays = {}
        kept = dict(self._kept)
        for name, value in update.items():
            if name.rpartition(".")[2] in _STATISTICS:
                moves[name] = value
                continue
            former = {kind: kept[f"{kind}/{name}"] for kind in self.kinds if f"{kind}/{name}" in kept}
            with np.errstate(over="ignore", invalid="ignore"):
                move, moments = self._move(value, former)
            if not all(np.isfinite(moment).all() for moment in moments.values()):
                raise AggregationError(f"The update of {name} is not finite, or too large for {type(self).__name__}.")
            moves[name] = np.asarray(move)
            kept |= {f"{kind}/{name}": np.asarray(moment) for kind, moment in moments.items()}
        self._kept = kept
        return moves

    @abstractmethod
    def _move(self, update: np.ndarray, former: Mapping[str, np.ndarray]) -> tuple[np.ndarray, Arrays]:
        """One array's movement and its new moments by kind; ``former`` is empty at the array's first step."""

    def describe(self) -> dict[str, Any]:
        """Name and arguments, for the run's summary."""
        return {"name": type(self).__name__, **arguments_of(self)}

    def state(self) -> Arrays:
        """The moments as ``<kind>/<array>``, for checkpoints; ``restore`` takes them back to the last bit."""
        return dict(self._kept)

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Take back what ``state`` gave.

        Raises:
            AggregationError: it is the state of another kind of optimizer.
        """
        for name in state:
            if name.partition("/")[0] not in self.kinds:
                raise AggregationError(
                    f"The stored state of the server optimizer holds {name}, which {type(self).__name__} does not use. "
                    "Go on with the optimizer that the run started with."
                )
        self._kept = {name: np.array(value) for name, value in state.items()}


class FedAvgM(ServerOptimizer):
    """Momentum at the server (Hsu et al., 2019): m = momentum m + u; the weights move by learning_rate m.

    A steady update u moves the weights by learning_rate u / (1 - momentum) a round in the long run. The default rate is
    1 - momentum, with which that is u; the published rate of 1 moves them ten times as far with a momentum of 0.9, and
    diverges where local training goes far already.

    With the default rate the global model is an exponential moving average over the rounds, e <- momentum e +
    (1 - momentum) w, where w is the start and all updates after it; sites train from e. With a momentum of 0 that is
    FedAvg, to the bit.
    """

    kinds = (_FIRST,)

    def __init__(self, learning_rate: float | None = None, momentum: float = 0.9) -> None:
        """Set rate and momentum.

        Args:
            learning_rate: above 0; None for 1 - momentum.
            momentum: from 0 to below 1; 0 leaves every update as it is, unless a rate is given.
        """
        super().__init__()
        allowed.optional(allowed.number, "learning_rate", learning_rate, above=0)
        allowed.number("momentum", momentum, least=0, below=1)
        self.learning_rate, self.momentum = 1 - momentum if learning_rate is None else learning_rate, momentum

    def _move(self, update: np.ndarray, former: Mapping[str, np.ndarray]) -> tuple[np.ndarray, Arrays]:
        first = self.momentum * former[_FIRST] + update if former else np.array(update)
        return self.learning_rate * first, {_FIRST: first}


class _Adaptive(ServerOptimizer):
    """The weights move by learning_rate m / (sqrt(v) + tau), with m = beta1 m + (1 - beta1) u and a rule for v."""

    kinds = (_STEPS, _FIRST, _SECOND)

    def __init__(self, learning_rate: float, beta1: float, tau: float, initial: float) -> None:
        super().__init__()
        allowed.number("learning_rate", learning_rate, above=0)
        allowed.number("beta1", beta1, least=0, below=1)
        allowed.number("tau", tau, above=0)
        allowed.number("initial", initial, least=0)
        self.learning_rate, self.beta1, self.tau, self.initial = learning_rate, beta1, tau, initial

    @abstractmethod
    def _second(self, second: np.ndarray, square: np.ndarray) -> np.ndarray:
        """The next v from the last one and u^2."""

    def _corrections(self, steps: int) -> tuple[float, float]:
        """What m and v are divided by."""
        return 1.0, 1.0

    def _move(self, update: np.ndarray, former: Mapping[str, np.ndarray]) -> tuple[np.ndarray, Arrays]:
        steps = int(former[_STEPS]) + 1 if former else 1
        first = former[_FIRST] if former else np.zeros_like(update)
        second = former[_SECOND] if former else np.full_like(update, self.initial)
        first = self.beta1 * first + (1 - self.beta1) * update
        second = self._second(second, np.square(update))
        for_first, for_second = self._corrections(steps)
        move = self.learning_rate * (first / for_first) / (np.sqrt(second / for_second) + self.tau)
        return move, {_STEPS: np.array(steps, np.int64), _FIRST: first, _SECOND: second}


class FedAdam(_Adaptive):
    """Adam at the server: v = beta2 v + (1 - beta2) u^2 (Reddi et al., ICLR 2021, algorithm 2).

    The defaults but the rate are those of Adam itself (Kingma & Ba, ICLR 2015), as most implementations have them:
    v starts at 0, and m and v are divided by 1 - beta^n at an array's n-th step. Adam's rate of 1e-3 is made for
    thousands of steps; in a federation's few rounds hardly a weight moves. The paper corrects nothing and starts v
    at tau^2 or more, with beta2 = 0.99 and tau = 1e-3: ``bias_correction`` false, ``initial`` = tau^2.
    """

    def __init__(
        self,
        learning_rate: float = 1e-2,
        beta1: float = 0.9,
        beta2: float = 0.999,
        tau: float = 1e-8,
        bias_correction: bool = True,
        initial: float = 0.0,
    ) -> None:
        """Set the rate and how fast moments follow.

        Args:
            learning_rate: about how far a weight moves in a round.
            beta1: share of m that stays in a round, from 0 to below 1.
            beta2: share of v that stays in a round, from 0 to below 1.
            tau: what keeps the quotient finite; of the size of updates, it limits adaptivity.
            bias_correction: divide m and v by their bias towards the start from 0.
            initial: v before an array's first step; 0 with bias correction, which assumes it.
        """
        super().__init__(learning_rate, beta1, tau, initial)
        allowed.number("beta2", beta2, least=0, below=1)
        allowed.switch("bias_correction", bias_correction)
        if bias_correction and initial > 0:
            raise ConfigurationError("initial", initial, "0 with bias_correction", "Set bias_correction to false.")
        self.beta2, self.bias_correction = beta2, bias_correction

    def _second(self, second: np.ndarray, square: np.ndarray) -> np.ndarray:
        return self.beta2 * second + (1 - self.beta2) * square

    def _corrections(self, steps: int) -> tuple[float, float]:
        return (1 - self.beta1**steps, 1 - self.beta2**steps) if self.bias_correction else (1.0, 1.0)


class FedYogi(FedAdam):
    """Yogi at the server: v = v - (1 - beta2) u^2 sign(v - u^2) (Zaheer et al., NeurIPS 2018; Reddi et al., ICLR 2021).

    As ``FedAdam``, but v shrinks by no more than u^2 allows, so that a quiet round does not make the next step long.
    """

    def _second(self, second: np.ndarray, square: np.ndarray) -> np.ndarray:
        return second - (1 - self.beta2) * square * np.sign(second - square)


class FedAdagrad(_Adaptive):
    """Adagrad at the server: v = v + u^2 (Reddi et al., ICLR 2021, algorithm 2), so that steps only become shorter.

    The paper starts v at tau^2 or more, with tau = 1e-3; here ``initial`` is 0 as in Adagrad itself.
    """

    def __init__(
        self, learning_rate: float = 3e-2, beta1: float = 0.0, tau: float = 1e-8, initial: float = 0.0
    ) -> None:
        """Set the rate; the arguments mean what they mean in ``FedAdam``."""
        super().__init__(learning_rate, beta1, tau, initial)

    def _second(self, second: np.ndarray, square: np.ndarray) -> np.ndarray:
        return second + square

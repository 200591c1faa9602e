"""Composition of releases that are stated in one convention; ``accounting`` says what the numbers mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import log_expit, ndtri_exp

from fedseg.errors import ConfigurationError

# Privacy losses are rounded up to multiples of this, or of a fraction of their range where that is wide: of all
# releases together, and (where every bin costs a call) of a single sampled one. Either changes epsilon by less than
# 1e-4 of itself.
_INTERVAL = 1e-4
_BINS = 1e6
_SAMPLED_BINS = 1e5

# From here on nothing is protected, and the plain sum says so as well as a distribution of privacy losses does.
_WIDE = 700.0

_WHOLE_ORDERS = (*range(2, 65), 96, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Parts:
    """What is composed, by kind; noise is relative to the sensitivity.

    Attributes:
        gaussian: sum of count / multiplier^2 over Gaussian releases without sampling: they act as a single one.
        sampled: (multiplier, probability, count) of Gaussian releases under Poisson sampling.
        laplace: (multiplier, count) of Laplace releases. In many dimensions with one L1 sensitivity they are at worst
            what they are in one: splitting a shift over coordinates only lowers the hockey-stick divergence.
        pure: (epsilon, count).
        replaced: the convention is replacement, not adding or removing.
    """

    gaussian: float
    sampled: Sequence[tuple[float, float, int]]
    laplace: Sequence[tuple[float, int]]
    pure: Sequence[tuple[float, int]]
    replaced: bool

    @property
    def pure_sum(self) -> float:
        """Epsilon of what has no delta, by plain addition."""
        return math.fsum([e * n for e, n in self.pure] + [n / b for b, n in self.laplace])

    def bound(self, delta: float) -> float:
        """An upper bound without distributions: exact for the Gaussian part without sampling, a sum for the rest.

        Sampling is ignored: a unit that takes part for certain is the worst case of one that takes part at times.
        """
        return _gaussian(self.gaussian + sum(n / m**2 for m, _, n in self.sampled), delta) + self.pure_sum


def tight(parts: Parts, delta: float) -> float:
    """Epsilon by privacy loss distributions, or in closed form where there is one."""
    bound = parts.bound(delta)
    if not (parts.sampled or parts.laplace or parts.pure):
        return bound
    span = min(bound, 2 * _rdp(parts, delta))
    if span > _WIDE:
        return bound
    interval = max([_INTERVAL, span / _BINS, *(_step(m) / _SAMPLED_BINS for m, _, _ in parts.sampled)])
    return min(bound, float(_distribution(parts, interval).get_epsilon_for_delta(delta)))


def adaptive(parts: Parts, delta: float) -> float:
    """Epsilon that holds too where each release was chosen after the results of those before it were seen.

    Distributions of privacy losses are composed for releases that are fixed beforehand; whether they may decide when to
    stop a row that is chosen as it goes is not known. Gaussian differential privacy may: as long as the squares of all
    mu add up to no more than mu^2, the whole is mu-Gaussian, whatever was chosen (Smith and Thakurta, "Fully adaptive
    composition for Gaussian differential privacy", 2022; Koskela, Tobaben and Honkela, ICLR 2023). So every release
    counts as the least Gaussian one that tells at least as much, see ``pure_mu`` and ``laplace_mu``, and sampling is
    not made use of. Gaussian releases alone cost exactly what ``tight`` says. Releases without a delta may be added up
    instead, whatever was chosen (Rogers et al., "Privacy odometers and filters", 2016); of a row that has such releases
    only, the smaller of both counts, since the sum uses none of delta.
    """
    squares = [n / m**2 for m, _, n in parts.sampled]
    squares += [n * laplace_mu(m) ** 2 for m, n in parts.laplace] + [n * pure_mu(e) ** 2 for e, n in parts.pure]
    found = _gaussian(parts.gaussian + math.fsum(squares), delta)
    return found if parts.gaussian or parts.sampled else min(found, parts.pure_sum)


def pure_mu(epsilon: float) -> float:
    """The mu of the least Gaussian release that tells at least as much as any with a pure ``epsilon``.

    The trade-off curve of pure epsilon is two straight lines that meet at 1 / (1 + e^epsilon) on the diagonal. A
    Gaussian curve is convex and has the same ends, so it lies below both lines once it passes through that point.
    """
    return float(-2 * ndtri_exp(log_expit(-epsilon)))


def laplace_mu(multiplier: float) -> float:
    """The same for a Laplace release whose scale is ``multiplier`` sensitivities.

    With epsilon = 1 / multiplier its curve is a straight line down to (e^-epsilon / 2, 1/2), then e^-epsilon / 4a, then
    a line again. On the middle piece the distance to a Gaussian curve, measured in mu, is concave in log a and
    symmetric, so it is largest on the diagonal, at e^(-epsilon/2) / 2. Below the lines lies a convex curve with the
    same ends anyway.
    """
    return float(-2 * ndtri_exp(-0.5 / multiplier - math.log(2)))


def renyi(parts: Parts, delta: float) -> float:
    """Epsilon by Renyi divergences.

    Raises:
        ConfigurationError: sampling under replacement, of which these accountants know nothing.
    """
    if parts.sampled and parts.replaced:
        raise ConfigurationError("accountant", "rdp", "pld where sampled releases are stated for replacement")
    without_pure = Parts(parts.gaussian, parts.sampled, parts.laplace, (), parts.replaced)
    return min(_rdp(parts, delta), _rdp(without_pure, delta) + math.fsum(e * n for e, n in parts.pure))


def _gaussian(precision: float, delta: float) -> float:
    """Epsilon of one Gaussian release with the multiplier precision^-1/2 (Balle and Wang, 2018)."""
    import dp_accounting

    if not precision:
        return 0.0
    # The library's search starts from numbers of ordinary size; beyond, the quadratic term is all there is.
    if precision > 1e12:
        return precision if math.isfinite(precision) else math.inf
    # Its search takes the logarithm of 0 where delta vanishes, and continues correctly.
    with np.errstate(divide="ignore"):
        return float(dp_accounting.get_epsilon_gaussian(1 / math.sqrt(precision), delta))


def _rdp(parts: Parts, delta: float) -> float:
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    # The series for orders between whole ones does not always converge under sampling.
    accountant = RdpAccountant(_WHOLE_ORDERS if parts.sampled else None)
    if parts.gaussian:
        accountant.compose(dp_accounting.GaussianDpEvent(1 / math.sqrt(parts.gaussian)))
    for multiplier, probability, count in parts.sampled:
        event = dp_accounting.GaussianDpEvent(multiplier)
        accountant.compose(dp_accounting.PoissonSampledDpEvent(probability, event), count)
    for multiplier, count in parts.laplace:
        accountant.compose(dp_accounting.LaplaceDpEvent(multiplier), count)
    for epsilon, count in parts.pure:
        # Pure epsilon is epsilon^2 / 2 zero-concentrated (Bun and Steinke, 2016, proposition 1.4).
        accountant.compose(dp_accounting.ZCDpEvent(rho=epsilon * epsilon / 2, xi=0.0), count)
    return float(accountant.get_epsilon(delta))


def _distribution(parts: Parts, interval: float) -> Any:
    """The privacy loss distribution of all parts together, rounded to the pessimistic side."""
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import common
    from dp_accounting.pld import privacy_loss_distribution as losses

    found = losses.identity(interval)
    if parts.gaussian:
        single = losses.from_gaussian_mechanism(1 / math.sqrt(parts.gaussian), value_discretization_interval=interval)
        found = found.compose(single)
    relation = NeighboringRelation.REPLACE_ONE if parts.replaced else NeighboringRelation.ADD_OR_REMOVE_ONE
    for multiplier, probability, count in parts.sampled:
        # Under replacement the library counts noise in clipping norms, of which the sensitivity has two.
        deviation = 2 * multiplier if parts.replaced else multiplier
        single = losses.from_gaussian_mechanism(
            deviation,
            value_discretization_interval=interval,
            sampling_prob=probability,
            neighboring_relation=relation,
        )
        found = found.compose(single.self_compose(count))
    for multiplier, count in parts.laplace:
        single = losses.from_laplace_mechanism(multiplier, value_discretization_interval=interval)
        found = found.compose(single.self_compose(count))
    for epsilon, count in parts.pure:
        single = losses.from_privacy_parameters(common.DifferentialPrivacyParameters(epsilon, 0.0), interval)
        found = found.compose(single.self_compose(count))
    return found


def _step(multiplier: float) -> float:
    """About the largest privacy loss of a single release that is not cut off (a probability of e^-50)."""
    return 0.5 / multiplier**2 + 10 / multiplier

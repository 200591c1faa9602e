"""FedNova: normalised averaging of sites that take different numbers of steps (Wang et al., NeurIPS 2020)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fedseg import allowed
from fedseg.aggregators.weighted import WeightedAggregator, normalised
from fedseg.contract.combinations import COUNTED_STEPS, PLAIN_STEPS, SCALING
from fedseg.contract.plan import Plan
from fedseg.contract.report import SiteReport
from fedseg.errors import ConfigurationError


class FedNova(WeightedAggregator):
    """Updates count per effective local step, so that sites with more steps do not pull the model to their optimum.

    1. p_j = s_j / S, the sites' shares of the training cases.
    2. a_j = the effective steps of site j, see ``accumulated_steps``; tau = sum_j p_j a_j.
    3. Update = tau sum_j p_j u_j / a_j.

    With equal steps at all sites it is FedAvg. Steps 2 and 3 rest on a local optimizer that starts afresh in every
    round, so ``check_plan`` refuses plans with another one. A learning rate that changes within a round is the same
    function of the round's progress at every site and cancels but for terms of the order of its change in a round. A
    site that reports no step has no direction and the weight 0.

    FedProx at the sites pulls every step back, so that many steps go less far than their number says: ``mu`` must be
    that of its term, and the learning rate constant. Other hooks that bend steps (SCAFFOLD, MOON) are refused.

    So are filters that clip, with noise or without. a_j says how far n steps go; a clipped update has the clip's length
    after any number of them, and divided by a_j it would count the less the more its site has worked. Noise would be
    stretched by tau / a_j at the sites with the fewest steps. (The guarantee itself would hold: p_j and a_j follow from
    counts of patients, which are equal for neighbouring data, and what the server computes of a noisy update costs
    nothing more.)

    ``last_notes`` holds ``accumulated`` (a_j of each site) and ``effective`` (tau).
    """

    needs = frozenset({SCALING, COUNTED_STEPS})

    def __init__(self, momentum: float = 0.9, nesterov: bool = True, mu: float = 0.0) -> None:
        """Describe the local optimizer; the defaults are those of ``optimizer: sgd``.

        Args:
            momentum: its momentum, from 0 to below 1.
            nesterov: whether it is Nesterov's.
            mu: of FedProx at the sites, from 0 up; 0 without.
        """
        super().__init__()
        allowed.number("momentum", momentum, least=0, below=1)
        allowed.switch("nesterov", nesterov)
        allowed.number("mu", mu, least=0)
        self.momentum, self.nesterov, self.mu = momentum, nesterov, mu
        self._pull = 0.0
        if mu == 0:
            self.needs |= {PLAIN_STEPS}

    def check_pull(self, mu: float) -> None:
        if mu != self.mu:
            raise ConfigurationError(
                "mu", self.mu, f"{mu}, the mu of FedProx at the sites", "Give FedNova the same mu."
            )

    def check_plan(self, plan: Plan) -> None:
        settings = plan.training
        if settings.weight_average:
            remedy = "FedNova knows how far a site went from its number of steps."
            raise ConfigurationError("training.weight_average", settings.weight_average, "0 with FedNova", remedy)
        if self.mu and settings.schedule != "constant":
            remedy = "How far FedProx holds steps back depends on the learning rate."
            raise ConfigurationError(
                "training.schedule", settings.schedule, "constant with FedNova and FedProx", remedy
            )
        self._pull = settings.learning_rate * self.mu
        if settings.optimizer != "sgd":
            remedy = "FedNova counts the steps of SGD; those of an adaptive optimizer cannot be compared between sites."
            raise ConfigurationError("training.optimizer", settings.optimizer, "sgd with FedNova", remedy)
        if settings.momentum != self.momentum:
            remedy = "Give FedNova the momentum of the plan's training.momentum."
            raise ConfigurationError("momentum", self.momentum, f"{settings.momentum}, as at the sites", remedy)
        if self.momentum and not self.nesterov:
            raise ConfigurationError("nesterov", False, "true, as at the sites")
        if self.momentum and not settings.reset_optimizer:
            remedy = "A momentum that outlives the round belongs to no number of steps; or set training.momentum to 0."
            raise ConfigurationError(
                "training.reset_optimizer", settings.reset_optimizer, "true with FedNova and momentum", remedy
            )

    def site_weights(self, reports: Mapping[str, SiteReport]) -> dict[str, float]:
        return normalised({site: report.num_samples if report.num_steps else 0 for site, report in reports.items()})

    def site_scales(self, reports: Mapping[str, SiteReport], weights: Mapping[str, float]) -> dict[str, float]:
        optimizer = self.momentum, self.nesterov, self._pull
        accumulated = {site: accumulated_steps(report.num_steps, *optimizer) for site, report in reports.items()}
        effective = math.fsum(weights[site] * steps for site, steps in accumulated.items())
        self.last_notes = {"accumulated": accumulated, "effective": effective}
        if len(set(accumulated.values())) == 1:
            return {}
        return {site: effective / steps for site, steps in accumulated.items() if steps > 0}


def accumulated_steps(steps: int, momentum: float, nesterov: bool, pull: float = 0.0) -> float:
    """How many learning rates SGD from rest moves along a constant gradient: the L1 norm of the paper's vector a_j.

    torch's SGD keeps b_k = momentum b_(k-1) + g from b_0 = 0 and moves by b_k, or by g + momentum b_k in Nesterov's
    form. With g = 1, b_k = (1 - momentum^k) / (1 - momentum); its sum over k = 1..n is
    B = (n - momentum (1 - momentum^n) / (1 - momentum)) / (1 - momentum), and Nesterov's displacement n + momentum B.

    With a proximal term the gradient is 1 - pull x after a displacement of x learning rates. Without momentum that
    gives (1 - (1 - pull)^n) / pull, the paper's a_j of FedProx; with momentum the recursion is carried out.

    Args:
        steps: n.
        momentum: from 0 to below 1; at 0 the result is n in both forms.
        nesterov: the form.
        pull: learning rate times mu of the proximal term.
    """
    if pull:
        return _pulled_steps(steps, momentum, nesterov, pull)
    rest = 1 - momentum
    plain = (steps - momentum * (1 - momentum**steps) / rest) / rest
    return steps + momentum * plain if nesterov else plain


def _pulled_steps(steps: int, momentum: float, nesterov: bool, pull: float) -> float:
    moved = buffer = 0.0
    for _ in range(steps):
        gradient = 1 - pull * moved
        buffer = momentum * buffer + gradient
        moved += gradient + momentum * buffer if nesterov else buffer
    return moved

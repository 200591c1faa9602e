"""Averaging of updates of limited length (Sun et al., "Can you really backdoor federated learning?", 2019)."""

from __future__ import annotations

from collections.abc import Mapping

from fedseg import allowed
from fedseg.aggregators.fedavg import FedAvg
from fedseg.aggregators.geometry import measure
from fedseg.contract.combinations import COMPARED_UPDATES, SCALING
from fedseg.contract.report import SiteReport


class NormClipped(FedAvg):
    """FedAvg in which no update is longer than a bound: u_j becomes u_j min(1, bound / |u_j|).

    It limits how far one of three or more sites can move the model, whatever it sends; it hides nothing of a
    patient, for no noise is added.

    ``last_notes`` holds ``norms``, the length of each update as it came, and ``bound``, the bound of the round.
    """

    needs = COMPARED_UPDATES | {SCALING}

    def __init__(self, bound: float | None = None, weight_by: str = "samples") -> None:
        """Set the bound.

        Args:
            bound: largest Euclidean norm of an update, over all its arrays; None takes the median norm of the round's
                updates (of those that are not all zeros), so that it follows the course of the training.
            weight_by: as in ``FedAvg``.
        """
        super().__init__(weight_by)
        allowed.optional(allowed.number, "bound", bound, above=0)
        self.bound = bound

    def site_scales(self, reports: Mapping[str, SiteReport], weights: Mapping[str, float]) -> dict[str, float]:
        geometry = measure(self._spool)
        norms = dict(zip(geometry.sites, geometry.norms.tolist(), strict=True))
        bound = self.bound
        if bound is None:
            lengths = sorted(norm for norm in norms.values() if norm > 0) or [0.0]
            # The lower of two middle ones: half of the sites must not be able to lift it.
            bound = lengths[(len(lengths) - 1) // 2]
        self.last_notes = {"norms": norms, "bound": bound}
        return {site: bound / norm for site, norm in norms.items() if norm > bound}

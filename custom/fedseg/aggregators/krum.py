"""Krum and multi-Krum: take the updates with the closest neighbours (Blanchard et al., NeurIPS 2017)."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np

from fedseg import allowed
from fedseg.aggregators.geometry import measure
from fedseg.aggregators.weighted import WeightedAggregator
from fedseg.contract.combinations import COMPARED_UPDATES
from fedseg.contract.report import SiteReport

logger = logging.getLogger(__name__)


class Krum(WeightedAggregator):
    """The plain mean of the ``select`` updates with the lowest scores; the others do not count in the round.

    The score of an update is the sum of its squared distances to its J - byzantine - 2 nearest neighbours, J being the
    sites that answered. Equal scores go by the sites' names.

    The paper's guarantee needs J >= 2 byzantine + 3 and ``select`` up to J - byzantine - 2. With fewer sites the
    round is not thrown away: a site that is away for a night would otherwise end the run. Down to J = 3 at least
    one neighbour is compared; of two updates neither can be told from the other, so both are averaged. Such rounds
    are logged and noted.

    ``last_notes`` holds ``scores``, ``neighbours`` (how many each score sums over) and ``guaranteed``.
    """

    needs = COMPARED_UPDATES

    def __init__(self, byzantine: int = 1, select: int = 1) -> None:
        """Set how many sites may be faulty, and how many updates are used.

        Args:
            byzantine: sites whose updates may be arbitrary.
            select: updates to average; 1 is Krum, more is multi-Krum. All are used if fewer sites answer.
        """
        super().__init__()
        allowed.whole("byzantine", byzantine, least=0)
        allowed.whole("select", select, allowed="a whole number from 1 up")
        self.byzantine, self.select = byzantine, select

    def site_weights(self, reports: Mapping[str, SiteReport]) -> dict[str, float]:
        geometry = measure(self._spool)
        sites = geometry.sites
        neighbours = min(max(1, len(sites) - self.byzantine - 2), len(sites) - 1)
        scores = dict(zip(sites, krum_scores(geometry.squared, neighbours).tolist(), strict=True))
        honest = len(sites) - self.byzantine
        guaranteed = honest >= self.byzantine + 3 and self.select <= honest - 2
        self.last_notes = {"scores": scores, "neighbours": neighbours, "guaranteed": guaranteed}
        if not guaranteed:
            needed = max(2 * self.byzantine + 3, self.byzantine + self.select + 2)
            logger.warning(
                "Krum that selects %d withstands %d faulty site(s) from %d sites up.",
                self.select,
                self.byzantine,
                needed,
            )
        selected = sites if len(sites) < 3 else sorted(sites, key=lambda s: (scores[s], s))[: self.select]
        return {site: 1 / len(selected) if site in selected else 0.0 for site in sites}


def krum_scores(squared: np.ndarray, neighbours: int) -> np.ndarray:
    """Sum of each row's smallest squared distances to others.

    Args:
        squared: squared distances [J, J].
        neighbours: how many others to sum over, at most J - 1.

    Returns:
        Scores [J].
    """
    others = squared.astype(np.float64)
    np.fill_diagonal(others, np.inf)
    return np.sort(others, axis=1)[:, :neighbours].sum(axis=1)

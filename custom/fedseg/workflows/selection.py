"""Which sites take part in a round. Every policy says of every site why it was asked or left out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.stats import poisson

from fedseg import allowed
from fedseg.contract.combinations import DURATION
from fedseg.workflows.run.site_selection import SiteFacts, SiteSelection


class AllSites(SiteSelection):
    """Every site in every round."""

    withholds = frozenset()

    def judge(self, facts: Mapping[str, SiteFacts], draw: np.random.Generator) -> dict[str, tuple[bool, str]]:
        return dict.fromkeys(facts, (True, "all sites are asked"))


class _SomeSites(SiteSelection):
    """A policy that takes k."""

    def __init__(self, k: int) -> None:
        """Choose how many.

        Args:
            k: sites in each round.
        """
        self.k = allowed.whole("selection.k", k)


class LargestSites(_SomeSites):
    """The k sites with the most training cases; equal ones by name. (An entry of the FeTS challenge took 6.)"""

    def judge(self, facts: Mapping[str, SiteFacts], draw: np.random.Generator) -> dict[str, tuple[bool, str]]:
        order = sorted(facts, key=lambda site: (-facts[site].num_samples, site))
        return {
            s: (order.index(s) < self.k, f"rank {order.index(s) + 1} by training cases, k = {self.k}") for s in facts
        }


class RandomSites(_SomeSites):
    """k sites drawn without replacement, all equally likely."""

    def judge(self, facts: Mapping[str, SiteFacts], draw: np.random.Generator) -> dict[str, tuple[bool, str]]:
        drawn = {list(facts)[i] for i in draw.permutation(len(facts))[: self.k]}
        counts = f"{len(drawn)} of {len(facts)} sites"
        return {s: (s in drawn, f"{'drawn' if s in drawn else 'not drawn'}: {counts}") for s in facts}


class DropSlow(SiteSelection):
    """Leave out sites whose last round took longer than ``factor`` times the median; asked again every few rounds.

    A site that is left out has no new duration. It is given another chance after ``rest`` rounds, since what slowed
    it may be over.
    """

    needs = frozenset({DURATION})

    def __init__(self, factor: float = 2.0, rest: int = 5) -> None:
        """Choose what is slow.

        Args:
            factor: above 1.
            rest: rounds after which a slow site is asked again.
        """
        allowed.number("selection.factor", factor, above=1)
        self.factor, self.rest = factor, allowed.whole("selection.rest", rest)
        self._waited: dict[str, int] = {}

    def judge(self, facts: Mapping[str, SiteFacts], draw: np.random.Generator) -> dict[str, tuple[bool, str]]:
        known = [f.seconds for f in facts.values() if f.seconds is not None]
        limit = self.factor * float(np.median(known)) if known else math.inf
        judged = {}
        for site, fact in facts.items():
            if fact.seconds is None or fact.seconds <= limit:
                self._waited[site] = 0
                judged[site] = (True, "no duration known yet" if fact.seconds is None else "fast enough")
                continue
            self._waited[site] = self._waited.get(site, 0) + 1
            again = self._waited[site] > self.rest
            if again:
                self._waited[site] = 0
            took = f"its last round took {fact.seconds:.3g} s, the limit is {limit:.3g} s"
            judged[site] = (again, f"{took}; {'asked again' if again else 'left out'}")
        return judged

    def describe(self) -> dict[str, Any]:
        return {"name": "DropSlow", "factor": self.factor, "rest": self.rest}

    def history(self) -> dict[str, Any]:
        return {"waited": dict(self._waited)}

    def restore(self, history: Mapping[str, Any]) -> None:
        self._waited = dict(history.get("waited", {}))


class PoissonBySize(SiteSelection):
    """Large outliers take part less often (FedPIDAvg, Maechler et al., FeTS 2022).

    The sizes of the sites are taken as draws of a Poisson distribution with their mean. A site above its ``quantile``
    is asked with probability ``outlier_probability`` in each round, all others always. The paper gives no exact rule;
    this is our reading, and the default probability lies in the middle of the range that others searched (.05 to .30).
    """

    def __init__(self, quantile: float = 0.95, outlier_probability: float = 0.2) -> None:
        """Choose who is an outlier and how often it takes part.

        Args:
            quantile: above 0 and below 1.
            outlier_probability: 0 to 1.
        """
        allowed.number("selection.quantile", quantile, above=0, below=1)
        allowed.number("selection.outlier_probability", outlier_probability, least=0, most=1)
        self.quantile, self.outlier_probability = quantile, outlier_probability

    def judge(self, facts: Mapping[str, SiteFacts], draw: np.random.Generator) -> dict[str, tuple[bool, str]]:
        mean = float(np.mean([fact.num_samples for fact in facts.values()]))
        limit = int(poisson.ppf(self.quantile, mean))
        judged = {}
        for site, fact in facts.items():
            # Drawn for every site, so that a site's draw does not depend on the sizes of the others.
            drawn = float(draw.random()) < self.outlier_probability
            if fact.num_samples <= limit:
                judged[site] = (True, f"{fact.num_samples} cases, not above {limit}")
            else:
                text = f"{fact.num_samples} cases, above {limit}: asked with probability {self.outlier_probability}"
                judged[site] = (drawn, f"{text}; {'drawn' if drawn else 'not drawn'}")
        return judged

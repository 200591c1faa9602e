"""Which sites take part in a round. Every policy says of every site why it was asked or left out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.stats import poisson

from fedseg import allowed
from fedseg.contract.combinations import COUNTED_DRAWS, DURATION, EVERY_CASE, KNOWN_DRAWS, SAME_SITES
from fedseg.contract.round_settings import RoundSettings
from fedseg.workflows.run.selection_base import SiteFacts, SiteSelection


class AllSites(SiteSelection):
    """Every site in every round."""

    withholds = frozenset()

    def judge(self, facts: Mapping[str, SiteFacts], draw: np.random.Generator) -> dict[str, tuple[bool, str]]:
        return dict.fromkeys(facts, (True, "all sites are asked"))

    def expected_draws(self, facts: Mapping[str, SiteFacts]) -> dict[str, float]:
        return dict.fromkeys(facts, 1.0)


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
    """k sites drawn without replacement, all equally likely.

    A rule that weighs the drawn sites by their cases then favours small sites: on average over the draws a site does
    not weigh what it would among all. ``FedAvg`` with ``unbiased`` makes up for it.
    """

    withholds = frozenset({SAME_SITES})

    def judge(self, facts: Mapping[str, SiteFacts], draw: np.random.Generator) -> dict[str, tuple[bool, str]]:
        drawn = {list(facts)[i] for i in draw.permutation(len(facts))[: self.k]}
        counts = f"{len(drawn)} of {len(facts)} sites"
        return {s: (s in drawn, f"{'drawn' if s in drawn else 'not drawn'}: {counts}") for s in facts}

    def expected_draws(self, facts: Mapping[str, SiteFacts]) -> dict[str, float]:
        return dict.fromkeys(facts, min(self.k, len(facts)) / len(facts))


class SitesBySize(_SomeSites):
    """k draws in which a site j is drawn k s_j / S times on average, in proportion to its training cases s_j.

    So the plain mean of the drawn updates estimates the mean over all cases without bias (scheme I of Li et al., ICLR
    2020); a rule must not weigh by cases once more. The draws are systematic (Madow, Ann Math Stat 1949): sites lie in
    random order on a line, each as long as its cases, and k points at equal distances fall on them. So a site is drawn
    as often as the whole number below or above its average says, and draws scatter less than independent ones. A site
    with more than S / k cases may be drawn twice; it then trains once and counts twice.
    """

    needs = frozenset({COUNTED_DRAWS})
    withholds = frozenset({SAME_SITES})

    def judge(self, facts: Mapping[str, SiteFacts], draw: np.random.Generator) -> dict[str, tuple[int, str]]:
        order = [list(facts)[i] for i in draw.permutation(len(facts))]
        ends = np.cumsum([facts[site].num_samples for site in order])
        points = (draw.random() + np.arange(self.k)) * (ends[-1] / self.k)
        # Rounding may put the last point on the end of the line.
        hit = np.minimum(np.searchsorted(ends, points, side="right"), len(order) - 1)
        counts = {site: int((hit == place).sum()) for place, site in enumerate(order)}
        averages = self.expected_draws(facts)
        return {s: (counts[s], f"drawn {counts[s]} times in {self.k}; {averages[s]:.3g} on average") for s in facts}

    def expected_draws(self, facts: Mapping[str, SiteFacts]) -> dict[str, float]:
        total = sum(fact.num_samples for fact in facts.values())
        return {site: self.k * fact.num_samples / total for site, fact in facts.items()}


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

    def history(self) -> dict[str, Any]:
        return {"waited": dict(self._waited)}

    def restore(self, history: Mapping[str, Any]) -> None:
        self._waited = dict(history.get("waited", {}))


class PoissonBySize(SiteSelection):
    """Large outliers take part less (FedPIDAvg, Maechler et al., FeTS 2022).

    The sizes of the sites are taken as draws of a Poisson distribution with their mean; a site above its ``quantile``
    is an outlier, all others take part as ever. The paper gives no exact rule, and its text can be read in two ways:

    - ``rounds``: an outlier is asked with probability ``outlier_probability`` in each round. As with ``RandomSites`` it
      then weighs less on average than among all, unless ``FedAvg`` is ``unbiased``.
    - ``iterations`` ("adjusting the training iterations for each center accordingly", its abstract): an outlier is
      asked in every round, and each of its local epochs goes over that part of its cases only, drawn anew. Its weight
      stays that of all its cases.

    Both spare an outlier as many iterations on average. The default probability lies in the middle of the range that
    others searched (.05 to .30).
    """

    def __init__(self, quantile: float = 0.95, outlier_probability: float = 0.2, fewer: str = "rounds") -> None:
        """Choose who is an outlier and how much it takes part.

        Args:
            quantile: above 0 and below 1.
            outlier_probability: with which an outlier is asked, or each of its cases is in an epoch: 0 to 1, with
                ``iterations`` above 0.
            fewer: what an outlier has less of: ``rounds`` or ``iterations``.
        """
        allowed.number("selection.quantile", quantile, above=0, below=1)
        self.fewer = allowed.one_of("selection.fewer", fewer, ("rounds", "iterations"))
        if self._shortens:
            allowed.number("selection.outlier_probability", outlier_probability, above=0, most=1)
        else:
            allowed.number("selection.outlier_probability", outlier_probability, least=0, most=1)
        self.quantile, self.outlier_probability = quantile, outlier_probability
        some = frozenset({SAME_SITES} if outlier_probability else {SAME_SITES, KNOWN_DRAWS})
        self.withholds = frozenset({EVERY_CASE}) if self._shortens else some

    def judge(self, facts: Mapping[str, SiteFacts], draw: np.random.Generator) -> dict[str, tuple[bool, str]]:
        limit, shorter = self._limit(facts), self.site_settings(facts)
        judged = {}
        for site, fact in facts.items():
            # Drawn for every site, so that a site's draw does not depend on the sizes of the others.
            drawn = float(draw.random()) < self.outlier_probability
            if fact.num_samples <= limit:
                judged[site] = (True, f"{fact.num_samples} cases, not above {limit}")
            elif site in shorter:
                each = f"{shorter[site].epoch_cases} of them in each local epoch"
                judged[site] = (True, f"{fact.num_samples} cases, above {limit}: {each}")
            else:
                text = f"{fact.num_samples} cases, above {limit}: asked with probability {self.outlier_probability}"
                judged[site] = (drawn, f"{text}; {'drawn' if drawn else 'not drawn'}")
        return judged

    def expected_draws(self, facts: Mapping[str, SiteFacts]) -> dict[str, float]:
        limit, probability = self._limit(facts), 1.0 if self._shortens else self.outlier_probability
        return {s: 1.0 if fact.num_samples <= limit else probability for s, fact in facts.items()}

    def site_settings(self, facts: Mapping[str, SiteFacts]) -> dict[str, RoundSettings]:
        if not self._shortens:
            return {}
        limit = self._limit(facts)
        return {
            site: RoundSettings(epoch_cases=max(1, round(self.outlier_probability * fact.num_samples)))
            for site, fact in facts.items()
            if fact.num_samples > limit
        }

    @property
    def _shortens(self) -> bool:
        return self.fewer == "iterations"

    def _limit(self, facts: Mapping[str, SiteFacts]) -> int:
        """The most cases of a site that is no outlier, which the smallest never is."""
        sizes = [fact.num_samples for fact in facts.values()]
        return max(min(sizes), int(poisson.ppf(self.quantile, float(np.mean(sizes)))))

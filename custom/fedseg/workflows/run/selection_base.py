"""What a rule that selects sites may know, and what it answers; the rules are in ``workflows.selection``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from fedseg.aggregators.base import Draw
from fedseg.contract.arguments import arguments_of
from fedseg.contract.combinations import KNOWN_DRAWS, SAME_SITES
from fedseg.contract.round_settings import RoundSettings
from fedseg.randomness import generator


@dataclass(frozen=True)
class SiteFacts:
    """What a policy may know of a site.

    Attributes:
        num_samples, val_cases: training and validation cases, as the site said when it accepted the job.
        seconds: duration of its last finished round; None before the first.
    """

    num_samples: int
    seconds: float | None = None
    val_cases: int = 0


@dataclass(frozen=True)
class Selection:
    """Who takes part in a round.

    Attributes:
        sites: who is asked.
        reasons: for every site of the job why it is asked or not.
        draw: how the sites were drawn.
        settings: what holds at single sites in the place of the round's settings.
    """

    sites: list[str]
    reasons: dict[str, str]
    draw: Draw
    settings: Mapping[str, RoundSettings] = field(default_factory=dict)


class SiteSelection(ABC):
    """Picks the sites of a round; draws follow from the job's seed and the round alone.

    Attributes:
        needs, withholds: see ``contract.combinations``; scores of rounds can be compared where each asks every site.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    withholds: frozenset[str] = frozenset({SAME_SITES, KNOWN_DRAWS})

    def select(self, facts: Mapping[str, SiteFacts], seed: int, round_number: int) -> Selection:
        """Choose.

        Args:
            facts: every site that accepted the job, by name.
            seed: the job's seed.
            round_number: from 0.

        Returns:
            At least one site; when a policy leaves nobody, the largest site is asked, and the reason says so.
        """
        ordered = {site: facts[site] for site in sorted(facts)}
        judged = self.judge(ordered, generator(seed, "selection", round_number))
        counts = {site: int(asked) for site, (asked, _) in judged.items() if asked}
        reasons = {site: reason for site, (_, reason) in judged.items()}
        if not counts:
            largest = max(ordered, key=lambda site: ordered[site].num_samples)
            counts, reasons[largest] = {largest: 1}, "the policy left nobody; asked as the largest site"
        samples = {site: fact.num_samples for site, fact in ordered.items()}
        own = {site: settings for site, settings in self.site_settings(ordered).items() if site in counts}
        return Selection(list(counts), reasons, Draw(counts, self.expected_draws(ordered), samples), own)

    @abstractmethod
    def judge(self, facts: Mapping[str, SiteFacts], draw: np.random.Generator) -> Mapping[str, tuple[int, str]]:
        """For every site, sorted by name: whether it is asked, or how often it was drawn; and why."""

    def expected_draws(self, facts: Mapping[str, SiteFacts]) -> dict[str, float]:
        """How often each site is drawn in a round on average; empty where that is not known, or 0 for some site."""
        return {}

    def site_settings(self, facts: Mapping[str, SiteFacts]) -> dict[str, RoundSettings]:
        """What holds at single sites, where they take part, in the place of the round's settings."""
        return {}

    def describe(self) -> dict[str, Any]:
        """Name and arguments, for the run's summary."""
        return {"name": type(self).__name__, **arguments_of(self)}

    def history(self) -> dict[str, Any]:
        """What the policy remembers of former rounds, as plain JSON; ``restore`` takes it back."""
        return {}

    def restore(self, history: Mapping[str, Any]) -> None:
        """Restore what ``history`` gave, when a stopped run is continued."""
        return

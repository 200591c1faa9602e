"""Version vectors of BrainTorrent: which models of peers are newer than those that a site has merged already.

Each site counts how often it trained its own model: its own version. Beside it stands, for each peer, the version of
that peer's model that the site merged last; 0 is the model with which all sites start. An initiator asks its peers for
their versions, takes the models that are newer than what it knows, merges them with its own by numbers of cases,
trains, and raises its own version by one. A model that is not newer does not travel. Nobody leads, and there is no
order: an initiator that dies has changed nothing, since only ``merged`` and ``trained`` make a new vector.

Roy, Siddiqui, Pölsterl, Navab and Wachinger, "BrainTorrent: a peer-to-peer environment for decentralized federated
learning" (2019), algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fedseg.allowed import is_count
from fedseg.errors import RefusalError
from fedseg.files.names import SITE


@dataclass(frozen=True)
class PeerVersions:
    """What a site has of its own model and of those of others.

    Attributes:
        site: whose vector it is.
        own: how often the site trained its model.
        known: for each peer the version of its model that was merged last; a peer that is absent stands at 0.

    Raises:
        RefusalError: a version is no whole number from 0 up, or a name is none of a site (reason ``report``).
    """

    site: str
    own: int = 0
    known: Mapping[str, int] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        _check({self.site: self.own, **_checked(self.known)})
        if self.site in self.known:
            raise RefusalError("report", f"The versions of the site {self.site} name it among its peers.")

    def newer(self, offered: Mapping[str, int]) -> tuple[str, ...]:
        """The peers whose models are newer than those that this site merged, in the order of their names.

        Args:
            offered: own versions of the peers that answered; one of this site itself does not count.

        Raises:
            RefusalError: see above.
        """
        return tuple(
            peer for peer in sorted(_checked(offered)) if peer != self.site and offered[peer] > self.known.get(peer, 0)
        )

    def is_newer_for(self, peer: str, known: int) -> bool:
        """Whether this site's model is newer than the one of it that a peer merged last.

        Args:
            peer: its name.
            known: the version that it merged.

        Raises:
            RefusalError: the peer says that it merged a version that this site never had (reason ``state``).
        """
        _check({peer: known})
        if known > self.own:
            raise RefusalError(
                "state",
                f"The site {peer} merged version {known} of the model of the site {self.site}, which has version "
                f"{self.own}: one of the two lost its state.",
            )
        return self.own > known

    def merged(self, taken: Mapping[str, int]) -> PeerVersions:
        """After models of peers were merged into the site's own.

        Args:
            taken: their versions.

        Raises:
            RefusalError: one is not newer than what was merged before, or is the site's own (reason ``state``).
        """
        newer = self.newer(taken)
        if stale := sorted(set(taken) - set(newer)):
            raise RefusalError(
                "state", f"The model of {stale[0]} in version {taken[stale[0]]} is not newer than what was merged."
            )
        return replace(self, known={**self.known, **taken})

    def trained(self) -> PeerVersions:
        """After the site trained its merged model."""
        return replace(self, own=self.own + 1)

    def to_json(self) -> dict[str, Any]:
        """JSON values by name."""
        return {"site": self.site, "own": self.own, "known": dict(sorted(self.known.items()))}

    @classmethod
    def from_json(cls, content: Any) -> PeerVersions:
        """Read what ``to_json`` wrote.

        Raises:
            RefusalError: it is another thing (reason ``report``).
        """
        if not isinstance(content, Mapping) or set(content) != {"site", "own", "known"}:
            raise RefusalError("report", "The versions of a peer do not hold its name, its version and those it knows.")
        return cls(content["site"], content["own"], _checked(content["known"]))


def shares(cases: Mapping[str, int]) -> dict[str, float]:
    """The weight of each model in a merge, by numbers of training cases; they sum to 1.

    Args:
        cases: of this site and of the peers whose models were taken, each at least 1.

    Raises:
        RefusalError: a number is no whole number of at least 1, or there is none (reason ``report``).
    """
    _check(cases)
    if not cases or min(cases.values()) < 1:
        raise RefusalError("report", "A model without training cases cannot be merged.")
    total = sum(cases.values())
    return {site: cases[site] / total for site in sorted(cases)}


def _checked(versions: Any) -> dict[str, int]:
    if not isinstance(versions, Mapping):
        raise RefusalError("report", "Versions of peers are no numbers by site.")
    _check(versions)
    return dict(versions)


def _check(counts: Mapping[str, Any]) -> None:
    for site, count in counts.items():
        if not SITE.fits(site):
            raise RefusalError("report", "Versions of peers name something that is no site.")
        if not is_count(count):
            raise RefusalError("report", f"The number of the site {site} is no whole number from 0 up.")

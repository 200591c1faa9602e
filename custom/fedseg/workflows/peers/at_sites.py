"""What the servers of a swarm and of BrainTorrent have in common: models lie at the sites, and reports come alone."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from typing import Any, ClassVar

from fedseg.allowed import is_count
from fedseg.contract.update import Update
from fedseg.errors import RefusalError
from fedseg.workflows.run.run_model import RunModel

_LONGEST = 1000


class ModelsAtSites(RunModel, ABC):
    """Models that the server knows by their digests.

    Attributes:
        server: how a refusal calls it.
    """

    server: ClassVar[str] = "the server, which sees no model"

    def accept_update(self, site: str, update: Update) -> None:
        """Accept a site's report.

        Raises:
            RefusalError: arrays came with it, which are to go to other sites alone (reason ``privacy``).
        """
        if update.arrays:
            raise RefusalError("privacy", f"The site sent arrays to {self.server}; they were dropped.")
        self.reports[site], self.steps[site] = update.report, update.steps


def are_digests(*values: Any) -> bool:
    """Whether all of them can be digests."""
    return all(isinstance(each, str) and len(each) == 64 for each in values)


def traffic_of(told: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """The bytes from and to each other site in a site's account, trusting nothing.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: they are something else.
    """
    traffic = {str(site): tuple(pair) for site, pair in told["bytes"].items()}
    if not all(len(pair) == 2 and all(map(is_count, pair)) for pair in traffic.values()):
        raise ValueError
    return {site: (up, down) for site, (up, down) in traffic.items()}


def missing_of(told: Mapping[str, Any]) -> dict[str, str]:
    """Why nothing came of other sites, in a site's account, trusting nothing; long texts are cut.

    Raises:
        TypeError, KeyError, AttributeError: it is something else.
    """
    return {str(site): str(why)[:_LONGEST] for site, why in told["missing"].items()}

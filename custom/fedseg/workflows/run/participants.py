"""Who takes part in a run: sites accept the job or refuse it, before the first round or when they are invited later."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from nvflare.app_common.abstract.fl_model import FLModel

from fedseg.contract.protocol import PLAN_DIGEST, PREPARE
from fedseg.workflows.run.acceptance import Acceptance, read_acceptance
from fedseg.workflows.run.selection_base import SiteFacts
from fedseg.workflows.run.sites import Sites


class Participants:
    """The sites of a run and how they came into it.

    Attributes:
        facts: what is known of every site that accepted the job.
        answers: what each of them said when it accepted.
        former: sites that took part before the run was stopped, with the seconds of their last round.
    """

    def __init__(self, sites: Sites, event: Callable[..., None]) -> None:
        """Begin with nobody.

        Args:
            sites: asked and invited.
            event: tells of an event of the run, see ``RunRecord.event``.
        """
        self.facts: dict[str, SiteFacts] = {}
        self.answers: dict[str, Acceptance] = {}
        self.former: dict[str, float | None] = {}
        self._sites, self._event = sites, event
        self._newcomers: dict[str, Acceptance] = {}
        self._invited: set[str] = set()
        self._lock = threading.Lock()

    def prepare(self, digest: str, timeout: int) -> dict[str, Acceptance]:
        """Ask every connected site to take part, and wait for the answers.

        Args:
            digest: of the plan that the sites must have too.
            timeout: see ``Sites.ask``.

        Returns:
            The answers of the sites that accepted, sorted by name.
        """
        asked = self._sites.connected()
        self._event("prepare", sites=asked, run_id=self._sites.run_id)
        accepted: dict[str, Acceptance] = {}
        self._sites.ask(PREPARE, _question(digest), asked, timeout, partial(_accept, accepted))
        for site in sorted(accepted):
            self._add(site, accepted[site])
        self._invited = {site for site in asked if site in self._sites.heard}
        for site in sorted(set(self.former) - set(self.facts)):
            self._sites.note(site, "took part before the run was stopped, and is missing now")
        return {site: accepted[site] for site in sorted(accepted)}

    def add_newcomers(self, digest: str) -> list[str]:
        """Add sites that answered an invitation, and invite those that have not answered so far.

        Returns:
            Names of the sites that take part from now on, sorted.
        """
        with self._lock:
            arrived, self._newcomers = self._newcomers, {}
        for site in sorted(arrived):
            self._add(site, arrived[site])
        for site in self._sites.connected():
            if site not in self._invited and site not in self.facts:
                self._invited.add(site)
                self._sites.send(PREPARE, _question(digest), site, self._accept_newcomer)
        return sorted(arrived)

    def _accept_newcomer(self, site: str, answer: FLModel) -> None:
        """An answer waits until the next round begins, whenever it comes."""
        with self._lock:
            _accept(self._newcomers, site, answer)

    def _add(self, site: str, answer: Acceptance) -> None:
        self.answers[site] = answer
        self.facts[site] = SiteFacts(answer.cases["training"], self.former.get(site), answer.cases["validation"])
        self._event("accepted", site=site, cases=answer.cases)


def _accept(accepted: dict[str, Acceptance], site: str, answer: FLModel) -> None:
    accepted[site] = read_acceptance(answer.metrics)


def _question(digest: str) -> FLModel:
    meta: dict[str, Any] = {PLAN_DIGEST: digest}
    return FLModel(metrics={"prepare": 1.0}, meta=meta)

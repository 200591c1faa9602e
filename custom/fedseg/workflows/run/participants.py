"""Who takes part in a run: sites accept the job or refuse it, before the first round or when they are invited later."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from nvflare.app_common.abstract.fl_model import FLModel

from fedseg.contract.protocol import EVALUATE, PLAN_DIGEST, PREPARE
from fedseg.errors import RefusalError
from fedseg.workflows.run.acceptance import Acceptance, read_acceptance
from fedseg.workflows.run.selection_base import SiteFacts
from fedseg.workflows.run.sites import Sites


class Participants:
    """The sites of a run and how they came into it.

    Attributes:
        facts: what is known of every site that accepted the job, and so trains.
        evaluators: the answers of sites that score models only.
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
        self.evaluators: dict[str, Acceptance] = {}
        self._asked_to_evaluate: Sequence[str] = ()
        self.former: dict[str, float | None] = {}
        self._sites, self._event = sites, event
        self._newcomers: dict[str, Acceptance] = {}
        self._invited: set[str] = set()
        self._lock = threading.Lock()

    def prepare(self, digest: str, timeout: int, asked_to_evaluate: Sequence[str] = ()) -> dict[str, Acceptance]:
        """Ask every connected site to take part, and wait for the answers.

        Args:
            digest: of the plan that the sites must have too.
            timeout: see ``Sites.ask``.
            asked_to_evaluate: sites that the job leaves out of the training; they are asked to score only.

        Returns:
            The answers of the sites that accepted and train, sorted by name.
        """
        self._asked_to_evaluate = sorted(asked_to_evaluate)
        asked = self._sites.connected()
        self._event("prepare", sites=asked, run_id=self._sites.run_id)
        accepted: dict[str, Acceptance] = {}
        self._sites.ask(PREPARE, self._question(digest), asked, timeout, partial(self._accept, accepted))
        for site in sorted(accepted):
            self._add(site, accepted[site])
        self._invited = {site for site in asked if site in self._sites.heard}
        for site in sorted(set(self.former) - set(self.facts)):
            self._sites.note(site, "took part before the run was stopped, and is missing now")
        for site in sorted(set(self._asked_to_evaluate) - set(asked)):
            self._sites.note(site, "is to score models only (workflow.evaluate_only), and is not connected")
        return {site: accepted[site] for site in sorted(accepted) if site in self.facts}

    def add_newcomers(self, digest: str) -> list[str]:
        """Add sites that answered an invitation, and invite those that have not answered so far.

        Returns:
            Names of the sites that train from now on, sorted.
        """
        with self._lock:
            arrived, self._newcomers = self._newcomers, {}
        for site in sorted(arrived):
            self._add(site, arrived[site])
        for site in self._sites.connected():
            if site not in self._invited and site not in self.answers:
                self._invited.add(site)
                self._sites.send(PREPARE, self._question(digest), site, self._accept_newcomer)
        return [site for site in sorted(arrived) if site in self.facts]

    def _accept_newcomer(self, site: str, answer: FLModel) -> None:
        """An answer waits until the next round begins, whenever it comes."""
        with self._lock:
            self._accept(self._newcomers, site, answer)

    def _add(self, site: str, answer: Acceptance) -> None:
        self.answers[site] = answer
        if answer.evaluates:
            self.evaluators[site] = answer
            if site not in self._asked_to_evaluate:
                self._sites.note(site, "scores models only, and does not train: its policy says evaluate_only")
            self._event("accepted", site=site, cases={}, evaluates=True)
            return
        self.facts[site] = SiteFacts(answer.cases["training"], self.former.get(site), answer.cases["validation"])
        self._event("accepted", site=site, cases=answer.cases)

    def _accept(self, accepted: dict[str, Acceptance], site: str, answer: FLModel) -> None:
        found = read_acceptance(answer.metrics)
        if site in self._asked_to_evaluate and not found.evaluates:
            raise RefusalError("report", "The site was asked to score models only, but wants to train.")
        accepted[site] = found

    def _question(self, digest: str) -> FLModel:
        meta: dict[str, Any] = {PLAN_DIGEST: digest}
        if self._asked_to_evaluate:
            meta[EVALUATE] = list(self._asked_to_evaluate)
        return FLModel(metrics={"prepare": 1.0}, meta=meta)

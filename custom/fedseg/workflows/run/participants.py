"""Who takes part in a job: sites accept it or refuse it, before the first round or when they are invited later."""

from __future__ import annotations

from nvflare.app_common.abstract.fl_model import FLModel

from fedseg.contract.protocol import PLAN_DIGEST, PREPARE
from fedseg.errors import FedsegError
from fedseg.workflows.run.acceptance import Acceptance, read_acceptance
from fedseg.workflows.run.site_dialogue import SiteDialogue
from fedseg.workflows.run.site_selection import SiteFacts


class Participants(SiteDialogue):
    """The sites of a job and how they came into it.

    Attributes:
        sites: what is known of every site that accepted the job.
        former: sites that took part before the run was stopped, with the seconds of their last round.
    """

    def __init__(self, run_id: str, task_check_period: float, site_silence: int = 0) -> None:
        super().__init__(run_id, task_check_period, site_silence)
        self.sites: dict[str, SiteFacts] = {}
        self.former: dict[str, float | None] = {}
        self._newcomers: dict[str, Acceptance] = {}
        self._invited: set[str] = set()

    def admit(self, digest: str, timeout: int) -> dict[str, Acceptance]:
        """Ask every connected site to take part, and wait for the answers.

        Args:
            digest: of the plan that the sites must have too.
            timeout: see ``ask``.

        Returns:
            The answers of the sites that accepted, by name.
        """
        asked = self.all_sites()
        self.record.event("prepare", sites=asked, run_id=self.run_id)
        accepted: dict[str, Acceptance] = {}
        self.ask(PREPARE, _question(digest), asked, timeout, lambda answer: self._take(answer, accepted))
        for site in sorted(accepted):
            self._enter(site, accepted[site])
        self._invited = {site for site in asked if site in self._heard}
        for site in sorted(set(self.former) - set(self.sites)):
            self.note(site, "took part before the run was stopped, and is missing now")
        return {site: accepted[site] for site in sorted(accepted)}

    def take_in_newcomers(self, digest: str) -> list[str]:
        """Enter sites that answered an invitation, and invite those that have not answered so far.

        Returns:
            Names of the sites that take part from now on.
        """
        with self._lock:
            arrived, self._newcomers = self._newcomers, {}
        for site in sorted(arrived):
            self._enter(site, arrived[site])
        for site in self.all_sites():
            if site not in self._invited and site not in self.sites:
                self._invited.add(site)
                self.invite(_question(digest), site, self._take_newcomer)
        return sorted(arrived)

    def _enter(self, site: str, answer: Acceptance) -> None:
        self.sites[site] = SiteFacts(answer.cases["training"], self.former.get(site), answer.cases["validation"])
        self.record.event("accepted", site=site, cases=answer.cases)

    def _take(self, answer: FLModel, accepted: dict[str, Acceptance]) -> bool:
        """Keep an answer that can be read."""
        site = answer.meta["client_name"]
        try:
            accepted[site] = read_acceptance(answer.metrics)
        except FedsegError as error:
            self.note(site, f"left out: {error}")
            return False
        return True

    def _take_newcomer(self, answer: FLModel) -> bool:
        """Called from FLARE's threads: the answer waits until the next round begins."""
        with self._lock:
            return self._take(answer, self._newcomers)


def _question(digest: str) -> FLModel:
    return FLModel(metrics={"prepare": 1.0}, meta={PLAN_DIGEST: digest})

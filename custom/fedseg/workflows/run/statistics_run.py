"""A run that trains nothing: every site counts its cases, and the server merges what the sites tell."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Any

from nvflare.app_common.abstract.fl_model import FLModel

from fedseg.contract.plan import Plan
from fedseg.contract.protocol import COUNT, STATISTICS
from fedseg.errors import DataError, FedsegError, RefusalError
from fedseg.statistics.document import FederationStatistics
from fedseg.statistics.site_statistics import Statistics, parse_statistics
from fedseg.workflows.run.participants import Participants
from fedseg.workflows.run.record import RunRecord
from fedseg.workflows.run.sites import Sites


class StatisticsRun:
    """Ask who takes part, ask for statistics, merge them, and write ``results.json``.

    Sites that refuse, stay silent or send something else are named with the reason, and left out, and so are those that
    counted in other bins than the job asks for; with fewer than ``min_sites`` the run fails.

    >>> def count(sites, plan, folder):  # sites: a ``Sites``
    ...     run = StatisticsRun(plan, sites, RunRecord(folder), fine=True, min_sites=2)
    ...     run.execute()
    ...     return run.found
    """

    def __init__(
        self, plan: Plan, sites: Sites, record: RunRecord, fine: bool, min_sites: int, timeout: int = 0
    ) -> None:
        """Take the parts.

        Args:
            plan: of the job.
            sites: the port to the sites.
            record: where the run writes down what happens.
            fine: whether the job asks for fine bins; it does where it asks for no noise.
            min_sites: fewest sites whose statistics are needed.
            timeout: seconds after which a task ends without the sites that have not answered; 0 waits for all.
        """
        self.found: dict[str, Statistics] = {}
        self._plan, self._sites, self._record = plan, sites, record
        self._fine, self._min_sites, self._timeout = fine, min_sites, timeout
        sites.note = record.note_site

    def execute(self) -> None:
        """The whole run.

        Raises:
            FedsegError: too few sites take part, or tell their statistics; the text names each with its reason.
        """
        start = time.monotonic()
        # As of a training before its first round; a job of statistics has no model that could be named.
        place = {"start": uuid.uuid4().hex, "round": -1, "model": ""}
        self._record.append("start", **self._record.job, plan=self._plan.digest, num_rounds=0, **place)
        participants = Participants(self._sites, self._record.event)
        accepted = sorted(participants.prepare(self._plan.digest, self._timeout))
        for site in sorted(participants.evaluators):
            self._record.note_site(site, "scores models only, and tells no statistics")
        self._check_enough(accepted, "accepted the job")
        message = FLModel(metrics={COUNT: 1.0}, meta={})
        self._record.event("count", sites=accepted)
        self._sites.ask(COUNT, message, accepted, self._timeout, self._accept)
        self._check_enough(sorted(self.found), "told their statistics")
        left_out = {event["site"]: event["what"] for event in self._record.events if event["site"] not in self.found}
        statistics = FederationStatistics(self._plan.task, self.found, left_out)
        self._record.append("statistics", sites=sorted(self.found), left_out=sorted(left_out))
        self._record.results(
            {
                "run_id": self._sites.run_id,
                "plan": self._plan.to_dict(),
                "sites": sorted(self.found),
                "events": self._record.events,
                "phantoms": [site for site in accepted if participants.answers[site].phantoms],
                "seconds": time.monotonic() - start,
                STATISTICS: statistics.to_dict(),
            }
        )
        self._record.finished(sites=sorted(self.found))

    def progress(self) -> dict[str, Any]:
        """See ``Sites.progress``."""
        return self._sites.progress()

    def _accept(self, site: str, answer: FLModel) -> None:
        content = answer.metrics if isinstance(answer.metrics, Mapping) else {}
        try:
            found = parse_statistics(content.get(STATISTICS), self._plan.task)
        except DataError as error:
            raise RefusalError("report", str(error)) from None
        # Noise, and so the bins, follow from the job; who counted otherwise could be merged with nobody.
        if found.fine != self._fine or (found.noise is None) != self._fine:
            asked = "no noise" if self._fine else "noise"
            raise RefusalError("report", f"The job asks for {asked}, and these statistics are otherwise.")
        self.found[site] = found

    def _check_enough(self, sites: list[str], what: str) -> None:
        if len(sites) < self._min_sites:
            told = "; ".join(f"{event['site']}: {event['what']}" for event in self._record.events)
            raise FedsegError(
                f"{len(sites)} site(s) {what}, but {self._min_sites} must. {told or 'No other site answered.'}"
            )

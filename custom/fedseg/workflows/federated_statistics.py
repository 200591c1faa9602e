"""Federated statistics: what the cases of all sites are like, as numbers that merge; nothing is trained."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nvflare.apis.fl_context import FLContext

from fedseg.allowed import number, setting, whole
from fedseg.contract.arguments import takes_arguments_of
from fedseg.contract.plan import read_plan
from fedseg.contract.protocol import COUNT, PLAN_FILE, PREPARE, STATISTICS
from fedseg.errors import ConfigurationError
from fedseg.messages.job import sites_part
from fedseg.provenance.run_log import RECORD_FILE, SERVER_SIDE, RunLog
from fedseg.site.state import check_run_id
from fedseg.statistics.noise import NoiseSetting, parse_noise
from fedseg.workflows.run.flare_workflow import FlareWorkflow
from fedseg.workflows.run.record import RunRecord
from fedseg.workflows.run.round_protocol import JobParts
from fedseg.workflows.run.settings import check_fields
from fedseg.workflows.run.sites import Sites
from fedseg.workflows.run.statistics_run import StatisticsRun

EXECUTOR = "fedseg.executors.statistics.StatisticsExecutor"


@dataclass(frozen=True)
class StatisticsSettings:
    """Settings of federated statistics at the server, the same names as the arguments of the workflow.

    Attributes:
        min_sites: sites that must tell their statistics; with fewer the job fails.
        timeout: seconds after which a task ends without the sites that have not answered; 0 waits for all.
        site_silence: seconds without a sign of life after which a site is not waited for; 0 waits on.
        run_id: of the run; None for the id of the job.
        task_check_period: seconds between looks at FLARE's tasks.
    """

    min_sites: int = setting(1, whole)
    timeout: int = setting(0, whole, least=0, allowed="a whole number of at least 0")
    site_silence: int = setting(120, whole, least=0, allowed="a whole number of at least 0")
    run_id: str | None = None
    task_check_period: float = setting(0.02, number, above=0, below=60, allowed="seconds above 0 and below 60")

    def __post_init__(self) -> None:
        check_fields(self, "workflow")
        if self.run_id is not None:
            check_run_id(self.run_id)


class FederatedStatistics(FlareWorkflow):
    """Ask every site what its cases are like, and merge the answers; see ``StatisticsRun``.

    Pooled numbers are those of all cases in one place: moments by Chan's rule, histograms by adding bins. No image and
    no name leaves a site; its policy says how many patients must be behind each number (``min_patients``), and the job
    whether noise is added (``StatisticsExecutor``).
    """

    result = STATISTICS

    @takes_arguments_of(StatisticsSettings)
    def __init__(self, **arguments: Any) -> None:
        """Check the arguments.

        Args:
            arguments: see ``StatisticsSettings``.
        """
        settings = StatisticsSettings(**arguments)
        super().__init__(settings)
        self.settings = settings

    def check_job(self, job: JobParts) -> None:
        """Refuse a job whose sites do something else than to count, or whose results would go through filters.

        Raises:
            ConfigurationError: names the part.
        """
        if list(job.executors) != [EXECUTOR]:
            raise ConfigurationError("executors", list(job.executors), f"[{EXECUTOR!r}] in a job of statistics")
        if not {PREPARE, COUNT} <= set(job.tasks):
            raise ConfigurationError("executors: tasks", list(job.tasks), f"a list with {PREPARE!r} and {COUNT!r}")
        if filtered := {**job.result_filters, **job.data_filters}:
            why = "Statistics are no updates; noise is set in the executor's argument noise."
            raise ConfigurationError("filters: tasks", sorted(filtered), "left out in a job of statistics", why)

    def load(self, sites: Sites, record: RunRecord, fl_ctx: FLContext) -> StatisticsRun:
        """See ``FlareWorkflow``."""
        state, _, config = self.begin(sites, record, fl_ctx)
        settings, plan = self.settings, read_plan(config / PLAN_FILE)
        sites.run_id = settings.run_id or sites.run_id or uuid.uuid4().hex
        record.keep_in(RunLog(state / sites.run_id / RECORD_FILE, SERVER_SIDE, "server", sites.run_id))
        fine = _noise(sites_part(fl_ctx)) is None
        return StatisticsRun(plan, sites, record, fine, settings.min_sites, settings.timeout)


def _noise(client: Mapping[str, Any]) -> NoiseSetting | None:
    """What noise the sites' part of a job asks for.

    >>> _noise({"executors": [{"executor": {"path": EXECUTOR, "args": {"noise": {"epsilon": 2.0}}}}]}).epsilon
    2.0
    >>> _noise({"executors": [{"executor": {"path": EXECUTOR}}]}) is None
    True
    """
    found = [entry["executor"] for entry in client.get("executors", [])]
    args = [each.get("args", {}) for each in found if each.get("path") == EXECUTOR]
    if len(args) != 1:
        raise ConfigurationError("executors", [each.get("path") for each in found], f"[{EXECUTOR!r}]")
    return parse_noise(args[0].get("noise"))

"""The site's guard: the last look at everything that is about to leave through FLARE's tasks and events."""

from __future__ import annotations

import logging
from typing import Any

from nvflare.apis.analytix import ANALYTIC_EVENT_TYPE
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import EventScope, FedEventHeader, FLContextKey, ProcessType
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, Shareable
from nvflare.app_common.widgets.convert_to_fed_event import FED_EVENT_PREFIX

from fedseg.contract.plan import Plan
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.filters.chain import is_guaranteed, update_chain
from fedseg.filters.guard.rules import check_curve, check_result
from fedseg.messages.job import job_plan, site_profile
from fedseg.messages.replies import refuse
from fedseg.site.policy import OPEN
from fedseg.site.profile import SiteProfile

logger = logging.getLogger(__name__)
CURVES = FED_EVENT_PREFIX + ANALYTIC_EVENT_TYPE
STOPPED = "stopped"


class Guard(FLComponent):
    """Looks at each result after all filters, and at each event before it is sent; what it does not know stays.

    The site declares it in its own ``local/privacy.json``. It takes no arguments, so that its limits stand in one
    place only: the site's policy. FLARE sends the very object that the guard sees, so a result that may not leave is
    emptied in place and gets an error code. FLARE swallows what an event handler raises; therefore whatever goes wrong
    in here empties the result too.

    It protects against mistakes of jobs and of fedseg, not against code that a job brings along: such code could send
    by other ways. At the server it does nothing: a simulation builds it there too.
    """

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """See the class."""
        if fl_ctx.get_process_type() == ProcessType.SERVER_JOB:
            return
        if event_type == EventType.AFTER_TASK_RESULT_FILTER:
            self._watch_result(fl_ctx.get_prop(FLContextKey.TASK_RESULT), fl_ctx)
        elif fl_ctx.get_prop(FLContextKey.EVENT_SCOPE) == EventScope.FEDERATION:
            self._watch_event(event_type, fl_ctx.get_prop(FLContextKey.EVENT_DATA), fl_ctx)

    def _watch_result(self, result: Any, fl_ctx: FLContext) -> None:
        if not isinstance(result, dict):
            return  # FLARE itself turns such a result into a bare error
        try:
            check_result(result, *self._site(fl_ctx), fl_ctx)
        except RefusalError as error:
            logger.error("The guard let nothing out (%s): %s", error.reason, error)
            refuse(result, error.reason, str(error))
        except ConfigurationError as error:
            logger.error("%s", error)
            text = "The site's profile or policy is not valid, so nothing leaves; its own log says what to mend."
            refuse(result, "configuration", text)
        except BaseException as error:
            logger.exception("The guard failed, so nothing left the site")
            refuse(result, "guard", f"An unexpected {type(error).__name__} in the site's guard; see its own log.")

    def _watch_event(self, event_type: str, data: Any, fl_ctx: FLContext) -> None:
        """Stop an event on its way out. FLARE's sender comes after the guard and sends what has the direction out."""
        if (
            not isinstance(data, Shareable)
            or data.get(ReservedHeaderKey.HEADERS, {}).get(FedEventHeader.DIRECTION) == "in"
        ):
            return
        try:
            profile, plan = self._site(fl_ctx)
            policy = profile.policy or OPEN
            if event_type == CURVES and policy.events and not is_guaranteed(update_chain(fl_ctx)):
                check_curve(data, plan, policy.report_fields(guaranteed=False))
                return
            logger.warning("The guard stopped the event %s", event_type)
        except BaseException:
            logger.exception("The guard failed, so the event %s did not leave", event_type)
        # Its content stays: handlers at the site, which share the object, still read it.
        data.set_header(FedEventHeader.DIRECTION, STOPPED)

    def _site(self, fl_ctx: FLContext) -> tuple[SiteProfile, Plan]:
        """Profile and plan, read anew: a policy may be tightened while a job runs."""
        return site_profile(fl_ctx), job_plan(fl_ctx)

"""What a result of a task looks like that may leave: everything that is not described here may not."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from nvflare.apis.analytix import TrackConst
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.fl_constant import FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, Shareable
from nvflare.app_common.app_constant import AppConstants

from fedseg.allowed import is_count, is_number
from fedseg.contract.plan import Plan
from fedseg.contract.protocol import (
    BYTES_DOWN,
    BYTES_UP,
    COUNT,
    EVALUATES,
    MERGE,
    OUTSIDE,
    OWN_MODEL,
    PHANTOMS,
    PREPARE,
    REASON,
    SHARE,
    STATISTICS,
    TEXT,
    UPLOAD,
)
from fedseg.contract.report import MOST_STATISTICS
from fedseg.contract.scores import PERSONAL, few, is_withheld, models_of, rare_outputs, scores_fault
from fedseg.contract.shapes import has_private_arrays
from fedseg.data.datalist import read_datalist
from fedseg.errors import DataError, RefusalError
from fedseg.filters.base import result_filters
from fedseg.filters.chain import UPDATE_TASKS, is_guaranteed, update_chain
from fedseg.filters.guard.text import check_text
from fedseg.filters.guard.update import check_update
from fedseg.messages.sizes import message_size
from fedseg.networks.weights import SHARED_PREFIX
from fedseg.site.policy import OPEN, SitePolicy
from fedseg.site.profile import SiteProfile
from fedseg.site.protection_rules import broken, check_budget
from fedseg.statistics.site_statistics import parse_statistics
from fedseg.tasks.objective import MEAN

_HEADERS = {ReservedHeaderKey.RC, ReservedHeaderKey.CONTENT_TYPE, REASON, TEXT, BYTES_UP, BYTES_DOWN}
_HEADERS |= {AppConstants.START_ROUND, AppConstants.CURRENT_ROUND, AppConstants.NUM_ROUNDS}
_OF_MERGED = {"leader", "digest", "block", "updates", "weights", "scales", "notes", "takers", "missing", "bytes"}
# Of a round of the largest federation: a few hundred bytes for each site, and the notes of a rule.
_LONGEST_ACCOUNT = 2**20
_SPLITS = ("training", "validation", "test")


@dataclass(frozen=True)
class Leaving:
    """A result on its way out, and what it is judged by."""

    result: Shareable
    profile: SiteProfile
    policy: SitePolicy
    plan: Plan
    fl_ctx: FLContext
    task: str
    guaranteed: bool


def check_result(result: Shareable, profile: SiteProfile, plan: Plan, fl_ctx: FLContext) -> None:
    """Let a result of a task pass, or say why it may not.

    Raises:
        RefusalError: it breaks a rule of the policy (reason ``policy``), or is not what such a result looks like
            (reason ``guard``, or that of the check that failed).
    """
    if fl_ctx.get_prop(FLContextKey.RUNNER) is None:
        raise unknown("the job's filters cannot be seen")
    policy, task = profile.policy or OPEN, str(fl_ctx.get_prop(FLContextKey.TASK_NAME))
    _check_frame(result)
    if policy.max_bytes is not None and (size := message_size(result)) > policy.max_bytes:
        raise broken("max_bytes", f"sends a result of {size} bytes", f"lets out {policy.max_bytes} at most")
    if result.get_return_code() != ReturnCode.OK:
        _check_failure(result, profile, plan)
        return
    if task not in _TASKS:
        raise unknown("it answers a task that fedseg does not have")
    if policy.evaluate_only and task not in (PREPARE, AppConstants.TASK_VALIDATION):
        raise broken("evaluate_only", "asks for more than scores", "scores models and never trains")
    guaranteed = is_guaranteed(update_chain(fl_ctx))
    _TASKS[task](Leaving(result, profile, policy, plan, fl_ctx, task, guaranteed))


def check_curve(event: Shareable, plan: Plan, fields: Collection[str]) -> None:
    """Let one point of a curve pass, which the executor sends as an event.

    Args:
        event: as it would leave.
        plan: of the job.
        fields: of the report that may leave; a curve tells one of them.

    Raises:
        RefusalError: it is something else (reason ``guard``), or rule ``scalars`` (reason ``policy``).
    """
    dxo = _read(event)
    tag, value = dxo.data.get(TrackConst.TRACK_KEY), dxo.data.get(TrackConst.TRACK_VALUE)
    step = {TrackConst.GLOBAL_STEP_KEY: dxo.data.get(TrackConst.GLOBAL_STEP_KEY)}
    expected = {TrackConst.TRACK_KEY: tag, TrackConst.TRACK_VALUE: value, **step, TrackConst.KWARGS_KEY: step}
    kind = plan.objective
    tags = {"train_loss": "train_loss", "val_loss": "val_loss"}
    tags |= {f"val_{kind.primary.name}/{output}": "val_scores" for output in (*kind.outputs, MEAN)}
    numbers = is_number(value) and type(step[TrackConst.GLOBAL_STEP_KEY]) is int
    if dxo.data_kind != DataKind.ANALYTIC or tag not in tags or not numbers or dxo.data != expected:
        raise unknown("the event is no point of a curve")
    if tags[tag] not in fields:
        raise broken("scalars", f"draws a curve of {tags[tag]}", "does not tell it")


def unknown(what: str) -> RefusalError:
    """The refusal of something that the guard does not know."""
    return RefusalError("guard", f"The site's guard kept the result back: {what}.")


def _check_frame(result: Shareable) -> None:
    """Nothing but a DXO and known headers of scalars."""
    headers = result.get(ReservedHeaderKey.HEADERS)
    if not isinstance(headers, dict) or not set(headers) <= _HEADERS:
        raise unknown("it has headers that fedseg does not set")
    if not all(isinstance(value, str | int) for value in headers.values()):
        raise unknown("its headers hold more than texts and numbers")
    if not set(result) <= {ReservedHeaderKey.HEADERS, "DXO"}:
        raise unknown("it holds more than one DXO")
    if "DXO" in result and not (isinstance(result["DXO"], dict) and set(result["DXO"]) <= {"kind", "data", "meta"}):
        raise unknown("its DXO is none of FLARE's")


def _check_failure(result: Shareable, profile: SiteProfile, plan: Plan) -> None:
    if "DXO" in result:
        raise unknown("an error came with content")
    for header in (ReservedHeaderKey.RC, REASON, TEXT):
        check_text(result.get_header(header, ""), profile, plan)


def _check_acceptance(leaving: Leaving) -> None:
    """Counts of cases per split, the statistics of a method, and whether the images are phantoms."""
    content = _metrics(leaving)
    if EVALUATES in content or leaving.policy.evaluate_only:
        if dict(content) not in ({EVALUATES: True}, {EVALUATES: True, PHANTOMS: True}):
            raise unknown("it tells more than that the site scores models only")
        return
    statistics = content.get(STATISTICS, {})
    known = set(content) <= {*_SPLITS, STATISTICS, PHANTOMS} and content.get(PHANTOMS, True) is True
    if not known or not isinstance(statistics, Mapping):
        raise unknown("the answer to prepare holds more than counts of cases and statistics")
    if not all(is_count(content.get(split, 0)) for split in _SPLITS):
        raise unknown("a count of cases is no whole number")
    if not all(isinstance(name, str) and is_number(value) for name, value in statistics.items()):
        raise unknown("its statistics are something else than finite numbers by name")
    if len(statistics) > MOST_STATISTICS:
        raise unknown(f"there are more than {MOST_STATISTICS} statistics")
    if statistics:
        _check_statistics(leaving, covered=False)


def _check_counts(leaving: Leaving) -> None:
    """Statistics in their closed form, with enough patients behind each number, or with noise."""
    content, policy = _metrics(leaving), leaving.policy
    if set(content) != {STATISTICS}:
        raise unknown("it holds more than statistics")
    if not policy.statistics:
        raise broken("statistics", "asks for statistics of the data", "does not give them")
    try:
        found = parse_statistics(content[STATISTICS], leaving.plan.task)
    except DataError:
        raise unknown("its statistics have another form than fedseg's") from None
    if found.patients < policy.min_patients or (found.noise is None and found.minimum < policy.min_patients):
        fewest = f"tells those of {policy.min_patients} at least"
        raise broken("min_patients", "asks for statistics of fewer patients", fewest)
    check_budget(policy, found.noise is not None, leaving.plan.dataset, "its statistics")


def _check_shared(leaving: Leaving) -> None:
    """Arrays of a method, which are statistics of the data, in the form of an update that holds nothing else."""
    _check_statistics(leaving, covered=is_guaranteed(update_chain(leaving.fl_ctx, [SHARE])))
    if not all(str(name).startswith(SHARED_PREFIX) for name in _read(leaving.result).data):
        raise unknown("it holds more than a method's shared arrays before the first round")
    _check_update(leaving)


def _check_statistics(leaving: Leaving, covered: bool) -> None:
    if leaving.guaranteed and not covered:
        raise RefusalError(
            "privacy", "The method tells statistics of the data that the job's guarantee does not cover."
        )
    if not leaving.policy.statistics:
        raise broken("statistics", "asks for statistics of the data", "does not give them")


def _check_scores(leaving: Leaving) -> None:
    """Summaries over the site's cases; never one case by itself, unless the site has only one."""
    leave = leaving.policy.scores_leave(leaving.guaranteed)
    for asked, part in _metrics(leaving).items():
        if asked not in ("final", *_SPLITS) or not isinstance(part, Mapping) or part.get("split") not in _SPLITS:
            raise unknown("its scores are of no split")
        if is_withheld(part):
            if 0 < part.get("cases", 0) < (leaving.policy.min_scored_cases or 0):
                raise _few_scored(leaving)
            continue
        if not is_count(part.get("cases")):
            raise unknown("its scores do not count their cases")
        if not leave:
            raise broken("scores", "asks for scores", "does not give them")
        if fault := scores_fault(leaving.plan.objective, part):
            raise unknown(fault)
        _check_enough(leaving, part)


def _check_enough(leaving: Leaving, part: Mapping[str, Any]) -> None:
    """No mean over fewer cases or patients than the policy asks for."""
    least = leaving.policy.min_scored_cases
    if least is None:
        return
    datalist = read_datalist(leaving.profile.datalist(leaving.plan.dataset)).scorable
    too_few = few(part["split"], least, part["cases"], datalist.patients(part["split"]))
    if too_few or any(rare_outputs(each, least) for each in models_of(part)):
        raise _few_scored(leaving)


def _few_scored(leaving: Leaving) -> RefusalError:
    fewest = f"tells those of {leaving.policy.min_scored_cases} at least"
    return broken("min_scored_cases", "asks for scores of few cases", fewest)


def _check_submission(leaving: Leaving) -> None:
    filtered = any(result_filters(leaving.fl_ctx, task) for task in UPDATE_TASKS) or has_private_arrays(leaving.plan)
    dxo = _read(leaving.result)
    which = dict(dxo.meta)
    if which == {OWN_MODEL: OUTSIDE}:
        if not leaving.policy.give_personal_model or filtered:
            asks = "asks for this site's personal model, to be kept and handed on"
            raise broken("give_personal_model", asks, "does not give it")
    elif not leaving.policy.submit_model or filtered:
        raise broken("submit_model", "asks for this site's own model", "does not give it")
    if dxo.data_kind != DataKind.WEIGHTS or which not in ({}, {OWN_MODEL: PERSONAL}, {OWN_MODEL: OUTSIDE}):
        raise unknown("it is no model")
    if which == {OWN_MODEL: PERSONAL} and not leaving.policy.submit_personal_model:
        raise broken("submit_personal_model", "asks for this site's personal model", "does not give it")


def _check_merged(leaving: Leaving) -> None:
    """What a site tells of a round that it has merged: digests, numbers by site, and why a site is missing."""
    content = _metrics(leaving)
    if not set(content) <= _OF_MERGED:
        raise unknown("it tells more of the merged round than fedseg does")
    try:
        length = len(json.dumps(content, allow_nan=False))
    except (TypeError, ValueError):
        raise unknown("its account of the merged round holds more than text and numbers") from None
    if length > _LONGEST_ACCOUNT:
        raise unknown("its account of the merged round is longer than one of digests and numbers")
    for text in dict(content.get("missing", {})).values():
        check_text(text, leaving.profile, leaving.plan)


def _metrics(leaving: Leaving) -> Mapping[str, Any]:
    dxo = _read(leaving.result)
    if dxo.data_kind != DataKind.METRICS or dxo.meta:
        raise unknown("it is no answer with numbers only")
    return dxo.data


def _read(shareable: Shareable) -> DXO:
    try:
        return from_shareable(shareable)
    except ValueError:
        raise unknown("it is no DXO") from None


def _check_update(leaving: Leaving) -> None:
    check_update(leaving.result, leaving.profile, leaving.plan, leaving.fl_ctx, leaving.task, leaving.guaranteed)


_TASKS: dict[str, Callable[[Leaving], None]] = {
    PREPARE: _check_acceptance,
    COUNT: _check_counts,
    SHARE: _check_shared,
    AppConstants.TASK_TRAIN: _check_update,
    UPLOAD: _check_update,
    MERGE: _check_merged,
    AppConstants.TASK_VALIDATION: _check_scores,
    AppConstants.TASK_SUBMIT_MODEL: _check_submission,
}

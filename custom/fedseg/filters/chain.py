"""The filters of a job over its updates, seen as one chain."""

from __future__ import annotations

from collections.abc import Iterable

from nvflare.apis.fl_context import FLContext
from nvflare.app_common.app_constant import AppConstants

from fedseg.contract.protocol import UPLOAD
from fedseg.filters.base import UpdateFilter, result_filters
from fedseg.filters.encrypt import encrypts

UPDATE_TASKS = (AppConstants.TASK_TRAIN, UPLOAD)
"""Tasks whose results are updates: in encrypted jobs a second one carries the arrays."""


def update_chain(fl_ctx: FLContext, tasks: Iterable[str] = UPDATE_TASKS) -> tuple[UpdateFilter, ...]:
    """The filters through which this job's updates leave, in order and each once.

    A filter of another kind gives no protection that fedseg knows of, so it is not in the chain.
    """
    found = [f for task in tasks for f in result_filters(fl_ctx, task) if isinstance(f, UpdateFilter)]
    return tuple({id(f): f for f in found}.values())


def sending_chain(fl_ctx: FLContext) -> tuple[UpdateFilter, ...]:
    """The filters of the one task whose result carries arrays: ``upload`` in jobs that encrypt, ``train`` in others."""
    return update_chain(fl_ctx, [UPLOAD if encrypts(fl_ctx) else AppConstants.TASK_TRAIN])


def is_guaranteed(chain: Iterable[UpdateFilter]) -> bool:
    """Whether a formal guarantee is computed for what leaves through a chain."""
    return any(f.guarantees for f in chain)

"""What leaves a site without a formal guarantee: it is entered in the site's ledger before it leaves."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
from nvflare.apis.dxo import MetaKey, from_shareable
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.app_constant import AppConstants

from fedseg.contract.protocol import COUNT, MERGE, OUTSIDE, OWN_MODEL, PREPARE, SHARE, STATISTICS
from fedseg.contract.scores import PERSONAL
from fedseg.filters.chain import is_guaranteed, update_chain
from fedseg.filters.encrypt import ALGORITHM
from fedseg.networks.weights import SHARED_PREFIX
from fedseg.training.hooks import TrainingHook

UPDATE, CURVES, FEATURES = "update", "curves", "features"
"""An update; and what leaves beside results or with them: as events; in the direct calls of split training, or as a
method's shared arrays."""
MODELLED = ("training", "validation")
"""The splits from which updates and reports are made."""


def without_guarantee(
    task: str, result: Shareable, fl_ctx: FLContext, hooks: Iterable[TrainingHook] = ()
) -> tuple[str, ...]:
    """What a result tells of patients that no guarantee covers, each in a word or two.

    Counts of cases by themselves, which every acceptance tells, are not taken for a release.

    Args:
        task: that the result answers.
        result: as it is about to leave, after filters and guard.
        fl_ctx: of the task.
        hooks: of the site's training, which may send features with an update.
    """
    what = _without_guarantee(task, result, fl_ctx)
    if what is None:
        return ()
    telling = tuple(SHARED_PREFIX + hook.prefix for hook in hooks if hook.sends_features)
    content = from_shareable(result).data if what == UPDATE and telling else {}
    sent = (np.any(value) for name, value in content.items() if str(name).startswith(telling))
    return (what, FEATURES) if any(sent) else (what,)


def _without_guarantee(task: str, result: Shareable, fl_ctx: FLContext) -> str | None:
    dxo = from_shareable(result)
    content: Mapping[str, Any] = dxo.data
    if task == PREPARE:
        return "statistics" if content.get(STATISTICS) else None
    if task == COUNT:
        return None if content[STATISTICS]["noise"] else "statistics"
    if task == AppConstants.TASK_VALIDATION:
        return "scores" if any(not part.get("withheld") for part in content.values()) else None
    if task == AppConstants.TASK_SUBMIT_MODEL:
        return "personal model" if dxo.meta.get(OWN_MODEL) in (PERSONAL, OUTSIDE) else "model"
    if task == MERGE:
        return None  # each update that was merged has been entered where it was made
    if task == SHARE:
        return None if is_guaranteed(update_chain(fl_ctx, [SHARE])) else "shared arrays"
    if not content:
        return None if is_guaranteed(update_chain(fl_ctx)) else "report"
    if is_guaranteed(update_chain(fl_ctx, [task])):
        return None
    return "encrypted update" if dxo.get_meta_prop(MetaKey.PROCESSED_ALGORITHM) == ALGORITHM else UPDATE


def splits_of(task: str, result: Shareable) -> Collection[str]:
    """The splits from whose patients a result was made."""
    if task != AppConstants.TASK_VALIDATION:
        return MODELLED
    return {str(part["split"]) for part in from_shareable(result).data.values()}

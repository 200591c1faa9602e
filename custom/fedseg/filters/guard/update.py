"""What an update looks like that may leave: the arrays as they really are, beside what the record says of them."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from nvflare.apis.dxo import MetaKey, from_shareable
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

from fedseg.contract.plan import Plan
from fedseg.contract.protocol import STEPS
from fedseg.contract.report import META_KEY, task_fields, tells_scores
from fedseg.contract.shapes import update_shapes, withheld_names
from fedseg.contract.update import DENSE, ENCRYPTED, QUANTISED, SPARSE, Update, check_dense
from fedseg.errors import RefusalError
from fedseg.filters.base import UpdateFilter
from fedseg.filters.chain import is_guaranteed, update_chain
from fedseg.filters.context import attached_context, reported_fields
from fedseg.messages.updates import read_update
from fedseg.networks.weights import SHARED_PREFIX
from fedseg.privacy.mechanisms.quantise import SCALES
from fedseg.privacy.mechanisms.sparse import LAYOUT, POSITIONS, VALUES, Shapes, check_layout, read_layout
from fedseg.site.policy import OPEN
from fedseg.site.profile import SiteProfile
from fedseg.site.protection_rules import broken, check_epsilon, check_protection, planned_fraction

_META = {META_KEY, STEPS, MetaKey.NUM_STEPS_CURRENT_ROUND, MetaKey.PROCESSED_ALGORITHM}
_KINDS = {
    SPARSE: {LAYOUT: ("u1",), POSITIONS: ("u1", "u4"), VALUES: ("f4", "f8")},
    QUANTISED: {LAYOUT: ("u1",), POSITIONS: ("u1", "u4"), VALUES: ("i1", "f2"), SCALES: ("f8",)},
}


def check_update(
    result: Shareable, profile: SiteProfile, plan: Plan, fl_ctx: FLContext, task: str, guaranteed: bool
) -> None:
    """Let an update pass, or say why it may not.

    Args:
        result: as it would leave.
        profile: of the site.
        plan: of the job.
        fl_ctx: of the task.
        task: its name.
        guaranteed: whether the job has a guarantee, so that its reports are held to that.

    Raises:
        RefusalError: a rule of the policy is broken (reason ``policy``), or the message is not what such an update
            looks like (reasons ``guard``, ``privacy``, ``report``).
    """
    policy = profile.policy or OPEN
    declared = {**task_fields(plan.objective), **reported_fields(fl_ctx)}
    update = read_update(result, declared)
    meta = from_shareable(result).meta
    steps = meta.get(MetaKey.NUM_STEPS_CURRENT_ROUND, update.report.num_steps)
    if not set(meta) <= _META or steps != update.report.num_steps:
        raise _unknown("has meta that fedseg does not set")
    if extra := sorted(update.report.told() - policy.report_fields(guaranteed, declared)):
        raise broken("scalars", f"reports {', '.join(extra)}", "does not tell them")
    if update.report.val_cases < (policy.min_scored_cases or 0) and any(map(tells_scores, update.report.told())):
        few = f"tells those of {policy.min_scored_cases} at least"
        raise broken("min_scored_cases", "reports scores of few cases", few)
    check_epsilon(policy, update.report.epsilon, plan.dataset)
    if guaranteed and update.arrays and update.report.epsilon is None:
        raise _unknown("states no epsilon")
    if update.arrays:
        _check_arrays(update, profile, plan, fl_ctx, update_chain(fl_ctx, [task]))


def _check_arrays(
    update: Update, profile: SiteProfile, plan: Plan, fl_ctx: FLContext, chain: Sequence[UpdateFilter]
) -> None:
    """What holds for an update that carries arrays, which went through a chain of filters."""
    context = attached_context(fl_ctx)  # refuses what fedseg's executor did not make
    if [step["filter"] for step in update.steps] != [type(f).__name__ for f in chain]:
        raise _unknown("did not go through the job's filters in their order")
    for step, item in zip(update.steps, chain, strict=True):
        if not all(item.tells(text, plan) for text in step.values() if isinstance(text, str)):
            raise _unknown("tells free text of the job in its privacy record")
    if not profile.simulated and any(step.get("secure_noise") is False for step in update.steps):
        raise RefusalError("privacy", "The update's noise follows from a seed, so it protects nobody at this site.")
    policy, hooks = profile.policy or OPEN, () if context.trainer is None else context.trainer.hooks
    if not policy.features and any(hook.sends_features for hook in hooks):
        raise broken("features", "sends activations of this site's images", "does not give them")
    fraction = sent_fraction(update, update_shapes(plan))
    names = read_layout(update.arrays).names if update.form in _KINDS else update.arrays
    if withheld_names(plan, context.site, context.round_number) & set(names):
        raise _unknown("holds arrays that this site does not share")
    check_protection(policy, update.steps, fraction, is_guaranteed(chain), plan.dataset)


def sent_fraction(update: Update, shapes: Shapes) -> float:
    """How much of the model an update holds, counted in its arrays.

    Each array may round its part up to one parameter more, which is not counted. Of ciphertext only the record can
    tell; whoever holds no key learns nothing from it.

    Args:
        update: as it would leave.
        shapes: of the arrays of the plan's network, see ``update_shapes``; what the server sent does not count.

    Returns:
        Parameters sent over parameters of the model; above 1 where a method sends shared arrays.

    Raises:
        RefusalError: arrays have names, types or a layout that the form does not have.
    """
    if update.form == ENCRYPTED:
        if not all(_is_array(value, "u1") for value in update.arrays.values()):
            raise _unknown("is encrypted, but holds more than ciphertext")
        return planned_fraction(update.steps)
    if update.form == DENSE:
        check_dense(update.arrays)
        if any(value.shape != shapes.get(n) for n, value in update.arrays.items() if not n.startswith(SHARED_PREFIX)):
            raise _unknown("holds arrays that the model does not have")
        count = sum(value.size for value in update.arrays.values())
    else:
        kinds = _KINDS[update.form]
        if not all(name in kinds and _is_array(value, *kinds[name]) for name, value in update.arrays.items()):
            raise _unknown(f"is {update.form}, but holds other arrays than this form has")
        check_layout(read_layout(update.arrays), shapes)
        count = update.arrays[VALUES].size
    total = sum(prod(shape) for shape in shapes.values())
    return max(0, count - len(shapes)) / total if count < total else count / total


def _is_array(value: Any, *kinds: str) -> bool:
    return type(value) is np.ndarray and value.dtype in [np.dtype(kind) for kind in kinds]


def _unknown(what: str) -> RefusalError:
    return RefusalError("guard", f"The site's guard kept the update back: it {what}.")

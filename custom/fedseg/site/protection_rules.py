"""What a site's policy says of an update's protection, asked twice: of what the job plans, and of what was done."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from fedseg import allowed
from fedseg.contract.update import Stage, Step
from fedseg.errors import RefusalError
from fedseg.site.policy import LARGEST_EPSILON, SitePolicy

_CHOOSES = (Stage.NOISE, Stage.SPARSIFY)
_L1 = "L1"


def broken(rule: str, asks: str, allows: str) -> RefusalError:
    """The refusal of a job that breaks a rule of the policy.

    Args:
        rule: name of the rule.
        asks: what the job does, as the end of a sentence that begins with "the job".
        allows: what the site allows, as the end of a sentence that begins with "this site".
    """
    return RefusalError("policy", f"The site's policy, rule {rule}: the job {asks}; this site {allows}.")


def planned_fraction(steps: Sequence[Step]) -> float:
    """Largest fraction of the arrays that they are given which a chain of steps lets out."""
    return prod(_number(step, "fraction", 1.0) for step in steps if step.get("stage") in _CHOOSES)


def check_protection(
    policy: SitePolicy, steps: Sequence[Step], fraction: float, guaranteed: bool, dataset: str
) -> None:
    """Compare a chain of filters with the policy.

    Args:
        policy: of the site.
        steps: what each filter is set to do, or did, in order.
        fraction: fraction of the model's parameters that leaves.
        guaranteed: whether a guarantee is computed for what leaves.
        dataset: name of the data set.

    Raises:
        RefusalError: the first rule that is broken (reason ``policy``).
    """
    if policy.max_fraction is not None and fraction > policy.max_fraction:
        raise broken(
            "max_fraction",
            f"sends {fraction:.4g} of the model's parameters in one update",
            f"lets out {policy.max_fraction:.4g} at most",
        )
    _check_clip(policy, steps)
    _check_noise(policy, steps)
    check_budget(policy, guaranteed, dataset)
    if policy.require_encryption and not any(step.get("stage") == Stage.ENCRYPT for step in steps):
        raise broken("require_encryption", "does not encrypt its updates", "requires it")


def check_epsilon(policy: SitePolicy, epsilon: float | None, dataset: str) -> None:
    """Compare what was spent with what may be spent.

    Args:
        policy: of the site.
        epsilon: spent on the site's patients so far; None where no guarantee is computed.
        dataset: name of the data set.

    Raises:
        RefusalError: it is more (reason ``policy``).
    """
    budget = policy.budget(dataset)
    if epsilon is None:
        return
    if budget is not None and epsilon > budget.epsilon:
        raise broken("epsilon_budget", "spends more than is left", f"has a budget of {budget.epsilon:.4g}")
    if epsilon > LARGEST_EPSILON and not policy.allow_large_epsilon:
        raise broken(
            "allow_large_epsilon", f"spends an epsilon of {epsilon:.4g}", f"allows {LARGEST_EPSILON:.4g} at most"
        )


def check_budget(policy: SitePolicy, guaranteed: bool, dataset: str, what: str = "its updates") -> None:
    """Where a site has a budget, nothing leaves that does not spend from it.

    Args:
        policy: of the site.
        guaranteed: whether a guarantee is computed for what leaves.
        dataset: name of the data set.
        what: leaves, for messages.

    Raises:
        RefusalError: rule ``epsilon_budget`` (reason ``policy``).
    """
    if not policy.epsilon_budget:
        return
    if policy.budget(dataset) is None:
        raise broken("epsilon_budget", f"names the data set {dataset!r}", "has no budget for that name, but for others")
    if not guaranteed:
        raise broken("epsilon_budget", f"computes no epsilon for {what}", "has a budget for this data set")


def _check_clip(policy: SitePolicy, steps: Sequence[Step]) -> None:
    if not policy.clips:
        return
    rule = "max_clip_norm" if policy.max_clip_norm is not None else "require_clip"
    # What was left unsent comes on top of an update that was clipped before it, without any bound.
    added = [position for position, step in enumerate(steps) if step.get("error_feedback")]
    last = steps[added[-1] + 1 :] if added else steps
    norms = [norm for step in last if (norm := clipping_norm(step)) is not None]
    if not norms:
        does = (
            "adds what was not sent earlier (error_feedback) after clipping" if added else "does not clip its updates"
        )
        raise broken(rule, does, "requires it to be clipped" if added else "requires it")
    if policy.max_clip_norm is not None and min(norms) > policy.max_clip_norm:
        raise broken(rule, f"clips to the norm {min(norms):.4g}", f"allows {policy.max_clip_norm:.4g} at most")


def _check_noise(policy: SitePolicy, steps: Sequence[Step]) -> None:
    least = policy.min_noise_multiplier
    if least is None:
        return
    noise = max((_number(step, "noise_multiplier", 0.0) for step in steps), default=0.0)
    if noise < least:
        raise broken(
            "min_noise_multiplier", f"adds noise with the multiplier {noise:.4g}", f"requires {least:.4g} at least"
        )


def clipping_norm(step: Step) -> float | None:
    """The norm to which a step clips the whole update; None if it does not.

    It bounds the L2 norm in any case, since the L1 norm is never smaller. Bounds for single coordinates, as
    ``ShareFraction`` and ``SparseVector`` have them, do not count, nor do those for single gradients of ``DPSGD``.
    """
    if step.get("stage") == Stage.CLIP:
        return _number(step, "norm", 0.0) or None
    if step.get("stage") == Stage.NOISE and "noise_multiplier" in step and step.get("norm", _L1) == _L1:
        return _number(step, "clip", 0.0) or None
    return None


def _number(step: Step, key: str, otherwise: float) -> float:
    value = step.get(key)
    return float(value) if allowed.is_number(value, infinite=True) else otherwise

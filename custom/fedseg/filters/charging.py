"""Charging a site's ledger for a release, before anything of it leaves."""

from __future__ import annotations

from fedseg.errors import RefusalError
from fedseg.filters.context import SiteContext
from fedseg.privacy.accounting.ledger import Ledger, Spent
from fedseg.privacy.accounting.releases import Release
from fedseg.site.policy import LARGEST_EPSILON


def charge_ledger(release: Release, context: SiteContext, delta: float, what: str, clip: float | None = None) -> Spent:
    """Enter a release in the site's ledger; what is refused here stays.

    Args:
        release: what is about to leave.
        context: of the task.
        delta: of the mechanism.
        what: the mechanism, for messages.
        clip: its clipping norm, for the reader of the ledger.

    Raises:
        RefusalError: delta protects nobody, the budget is used up, or the ledger cannot be used (``privacy``).
    """
    policy, delta = context.profile.policy, delta_at(delta, context)
    if delta * len(context.patients) >= 1:
        # Publishing one patient drawn by lot has an epsilon of 0 at this delta.
        raise RefusalError(
            "privacy",
            f"{what}: delta {delta:g} is not below one over the number of this site's patients, so its epsilon would "
            "protect nobody. Set the filter's delta lower; 1e-5 is usual.",
        )
    budget = policy.budget(context.plan.dataset) if policy is not None else None
    return Ledger(context.profile.ledger, simulated=context.profile.simulated).charge(
        context.plan.dataset,
        context.patients,
        release,
        job=context.job,
        run_id=context.run_id,
        round_number=context.round_number,
        delta=delta,
        budget=budget.epsilon if budget is not None else None,
        limit=None if policy is not None and policy.allow_large_epsilon else LARGEST_EPSILON,
        clip=clip,
    )


def delta_at(delta: float, context: SiteContext) -> float:
    """The delta at which a site counts: the mechanism's, or that of its policy where this is smaller."""
    policy = context.profile.policy
    budget = policy.budget(context.plan.dataset) if policy is not None else None
    return delta if budget is None else min(delta, budget.delta)

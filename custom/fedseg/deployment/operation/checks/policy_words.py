"""A site's policy in plain sentences, for the person who answers for it."""

from __future__ import annotations

from fedseg.contract.report import REPORT_FIELDS
from fedseg.site.policy import SitePolicy


def policy_sentences(policy: SitePolicy) -> list[str]:
    """What may be asked of the site, and what may leave it, for people who do not read JSON."""
    named = {"that segment": policy.tasks, "called": policy.jobs}
    which = " and ".join(f"{how} {' or '.join(names)}" for how, names in named.items() if names is not None)
    gives = policy.give_personal_model
    leaves = {
        "summaries of scores": policy.scores is not False,
        "curves during training": policy.events,
        "statistics of the data": policy.statistics,
        "activations of images": policy.features,
        "the site's own model": policy.submit_model,
        **({"its personal model": policy.submit_personal_model} if policy.submit_model else {}),
        **({"its personal model for good, also to sites that were never there": True} if gives else {}),
    }
    if policy.evaluate_only:
        return _of_evaluator(policy, which)
    may = [what for what, allowed in leaves.items() if allowed]
    never = "".join(f", {what}" for what, allowed in leaves.items() if not allowed)
    return [
        f"Takes jobs {which}." if which else "Takes every job.",
        *_limits(policy),
        _bound(policy),
        f"A report of each round tells: {', '.join(_told(policy))}. In a job with a guarantee: counts of patients and "
        "epsilon, and whether a state was lost (fresh_state).",
        f"Beside updates and reports may leave: {', '.join(may) or 'nothing'}.",
        f"Never leave: images, labels, names of patients{never}.",
    ]


def _of_evaluator(policy: SitePolicy, which: str) -> list[str]:
    """The same for a site that scores models and never trains."""
    least = policy.min_scored_cases
    return [
        f"Takes jobs {which}." if which else "Takes every job.",
        "Scores models and never trains.",
        "May leave: means of scores over its cases with the numbers of these"
        + (f", if they are {least} at least, of as many patients." if least else "."),
        "Never leave: images, labels, names of patients, scores of single cases, updates, models of this site.",
    ]


def _limits(policy: SitePolicy) -> list[str]:
    megabytes = None if policy.max_bytes is None else policy.max_bytes / 1e6
    sentences = (
        ("Takes part with {} training cases at least.", policy.min_cases),
        ("Statistics of {} patients at least leave.", policy.min_patients if policy.statistics else None),
        ("Statistics without noise leave {} times at most of the same patients.", policy.max_statistics),
        ("Scores of fewer than {} cases or patients are withheld.", policy.min_scored_cases),
        ("An update holds {:.1%} of the model's parameters at most.", policy.max_fraction),
        ("Updates are clipped to the norm {:g} at most.", policy.max_clip_norm),
        ("Updates are clipped.", (policy.require_clip and policy.max_clip_norm is None) or None),
        ("Updates bear noise of {:g} clipping norms at least.", policy.min_noise_multiplier),
        ("Updates are encrypted.", policy.require_encryption or None),
        ("No result is larger than {:g} MB.", megabytes),
    )
    return [text.format(value) for text, value in sentences if value is not None]


def _bound(policy: SitePolicy) -> str:
    """What bounds what updates tell of a patient; no limit on their form does."""
    if policy.epsilon_budget:
        return "Updates leave with noise alone, within the privacy budget."
    if policy.require_encryption:
        return "What the sum of the sites' updates tells of a patient has no bound."
    formed = policy.max_fraction or policy.clips or policy.min_noise_multiplier
    return f"{'Else updates' if formed else 'Updates'} leave as they are: no bound on what they tell of a patient."


def _told(policy: SitePolicy) -> list[str]:
    """Fields of a report that may leave in a job without a guarantee, in the order in which reports have them."""
    fields = policy.report_fields(guaranteed=False)
    declared = ["what a method declares"] if policy.scalars is None else sorted(fields - set(REPORT_FIELDS))
    return [*(name for name in REPORT_FIELDS if name in fields), *declared]

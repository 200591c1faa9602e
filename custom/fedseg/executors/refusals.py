"""What a site refuses of a job, and why: asked before every task; the answer names the rule of the site's policy.

Whether version, plan and data fit is asked once, in ``admission``. What a policy asks of a job's filters stands in
``site.protection_rules``, and what may leave after them in ``filters.guard``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod

from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext

from fedseg.contract.plan import Plan
from fedseg.contract.shapes import LAST_ROUND, has_private_arrays, update_shapes, withheld_names
from fedseg.contract.update import Stage, Step
from fedseg.errors import RefusalError
from fedseg.filters.base import hooks_of, own_names, result_filters
from fedseg.filters.chain import UPDATE_TASKS, is_guaranteed, sending_chain, update_chain
from fedseg.filters.guard.guard import Guard
from fedseg.messages.job import job_name
from fedseg.site.policy import OPEN, SitePolicy
from fedseg.site.profile import SiteProfile
from fedseg.site.protection_rules import broken, check_budget, check_protection, planned_fraction
from fedseg.training.hooks import TrainingHook, replaces

FLOAT_BYTES = 4
"""Of a value in the arrays of an update: float32."""


@dataclass(frozen=True)
class JobTerms:
    """What a job asks of a site.

    Attributes:
        job, task, dataset: their names.
        steps: what each filter over the result that carries arrays is set to do, in order.
        guaranteed: whether any filter over the updates computes a formal guarantee.
        filtered: whether any filter stands over the updates, or a part of the network keeps arrays at the site.
        fraction: largest fraction of the model's parameters that leaves in one update.
        guarded: whether the site's guard is in place.
        foreign: classes of the job's components at the site that the policy cannot judge.
        misplaced: whether the guarantee is computed for a task whose result carries no arrays.
        statistics: whether the method, or the job itself, tells statistics of the data.
        features: whether the method sends features of images with its updates.
        updates: whether the job asks for updates; all rules of updates are about such a job alone.
        array_bytes: that the arrays of an update take at least; 0 where filters or split training change their size.
    """

    job: str
    task: str
    dataset: str
    steps: tuple[Step, ...] = ()
    guaranteed: bool = False
    filtered: bool = False
    fraction: float = 1.0
    guarded: bool = False
    foreign: tuple[str, ...] = ()
    misplaced: bool = False
    statistics: bool = False
    features: bool = False
    updates: bool = True
    array_bytes: int = 0


def job_terms(plan: Plan, fl_ctx: FLContext) -> JobTerms:
    """Read what a job asks from its components, as FLARE has built them at this site."""
    chain, every = sending_chain(fl_ctx), update_chain(fl_ctx)
    components = list(_components(fl_ctx))
    counters = _only_counters(components)
    protected = any(getattr(executor, "protects_statistics", False) for executor in counters)
    guaranteed = is_guaranteed(every) or protected
    steps, withheld = tuple(f.step() for f in chain), withheld_names(plan, fl_ctx.get_identity_name(), LAST_ROUND)
    kept = _kept(plan, withheld.union(*own_names(chain, plan)))
    return JobTerms(
        job=job_name(fl_ctx),
        task=plan.task.name,
        dataset=plan.dataset,
        steps=steps,
        guaranteed=guaranteed,
        filtered=any(result_filters(fl_ctx, task) for task in UPDATE_TASKS) or has_private_arrays(plan),
        fraction=planned_fraction(steps) * (1 - kept),
        guarded=any(isinstance(c, Guard) for c in components),
        foreign=tuple(sorted({name for c in components if (name := _foreign(c))})),
        misplaced=is_guaranteed(every) and not is_guaranteed(chain),
        statistics=any(_tells_statistics(hook) for hook in (*components, *hooks_of(every))),
        features=any(getattr(component, "sends_features", False) for component in components),
        updates=not counters,
        array_bytes=_array_bytes(plan, steps, kept),
    )


def check_job(policy: SitePolicy | None, terms: JobTerms) -> None:
    """Compare what a job asks with what the site allows.

    Args:
        policy: of the site; None for a site without one, which has no rule to break.
        terms: of the job.

    Raises:
        RefusalError: the first rule that is broken (reason ``policy``).
    """
    if policy is None:
        return
    if not terms.guarded:
        raise broken("guard", "would run unwatched", "takes no job until its local/privacy.json declares the guard")
    if terms.foreign:
        raise broken("components", f"brings {', '.join(terms.foreign)}", "takes fedseg's own components only")
    if policy.jobs is not None and not any(fnmatchcase(terms.job, pattern) for pattern in policy.jobs):
        raise broken("jobs", f"is called {terms.job!r}", f"takes {list(policy.jobs)}")
    if policy.tasks is not None and terms.task not in policy.tasks:
        raise broken("tasks", f"trains the task {terms.task!r}", f"takes {list(policy.tasks)}")
    if terms.misplaced:
        raise broken("filters", "protects a task whose result carries no arrays", "asks it of the one that does")
    if terms.statistics and not policy.statistics:
        raise broken("statistics", "asks for statistics of the data", "does not give them")
    if terms.features and not policy.evaluate_only:
        check_features(policy)
    if not terms.updates:
        check_budget(policy, terms.guaranteed, terms.dataset, "its statistics")
        return
    if not terms.guaranteed:
        _check_scale(policy, terms.steps)
    if policy.max_bytes is not None and terms.array_bytes > policy.max_bytes:
        sends = f"sends updates of {terms.array_bytes} bytes at least"
        raise broken("max_bytes", sends, f"lets out {policy.max_bytes} at most")
    check_protection(policy, terms.steps, terms.fraction, terms.guaranteed, terms.dataset)


def _check_scale(policy: SitePolicy, steps: Iterable[Step]) -> None:
    """Sites find the scale of encrypted updates in ``largest`` of their reports; with a guarantee the job fixes it."""
    encrypted = any(step.get("stage") == Stage.ENCRYPT for step in steps)
    if encrypted and policy.scalars is not None and "largest" not in policy.scalars:
        raise broken("scalars", "encrypts, for which it needs largest of the report", "does not tell it")


def check_cases(policy: SitePolicy | None, training_cases: int) -> None:
    """Refuse to take part with too few cases: the fewer there are, the more an update tells of each.

    Raises:
        RefusalError: rule ``min_cases`` (reason ``policy``); the text does not tell the number of cases.
    """
    if policy is not None and policy.min_cases is not None and training_cases < policy.min_cases:
        raise broken(
            "min_cases", "would train on the cases that this site has", f"takes part with {policy.min_cases} at least"
        )


def check_patients(policy: SitePolicy | None, patients: int) -> None:
    """Refuse to tell statistics of too few patients.

    Raises:
        RefusalError: rule ``min_patients`` (reason ``policy``); the text does not tell how many there are.
    """
    least = (policy or OPEN).min_patients
    if patients < least:
        raise broken("min_patients", "asks for statistics of fewer patients", f"tells those of {least} at least")


def check_trains(policy: SitePolicy | None, asked_to_evaluate: bool) -> None:
    """Refuse to train, or to send anything but scores, at a site that scores models only.

    Args:
        policy: of the site.
        asked_to_evaluate: whether the job itself leaves the site out of the training.

    Raises:
        RefusalError: rule ``evaluate_only`` (reason ``policy``), or what the job asked for before (``state``).
    """
    if (policy or OPEN).evaluate_only:
        raise broken("evaluate_only", "asks it to train, or for more than scores", "scores models and never trains")
    if asked_to_evaluate:
        raise RefusalError("state", "The job asked this site to score models only, so it does not train in this run.")


def check_submission(policy: SitePolicy | None, terms: JobTerms | None, personal: bool = False) -> None:
    """Refuse to send the site's own model, which no filter of updates sees.

    Args:
        policy: of the site.
        terms: of the job.
        personal: whether it is the model that a method keeps beside the global one.

    Raises:
        RefusalError: the job's updates are filtered (reason ``privacy``), or rule ``submit_model`` or
            ``submit_personal_model`` (``policy``).
    """
    if terms is None or terms.filtered:
        raise RefusalError("privacy", "The job filters updates or keeps arrays at its sites: no whole model leaves.")
    if not (policy or OPEN).submit_model:
        raise broken("submit_model", "asks for this site's own model", "does not give it")
    if personal and not (policy or OPEN).submit_personal_model:
        raise broken("submit_personal_model", "asks for this site's personal model", "does not give it")


def check_gift(policy: SitePolicy | None, terms: JobTerms | None) -> None:
    """Refuse to give the site's personal model to sites that were never there, by way of the run that keeps it.

    Args:
        policy: of the site; one without a policy has not allowed it.
        terms: of the job.

    Raises:
        RefusalError: the job's updates are filtered (reason ``privacy``), or rule ``give_personal_model`` (``policy``).
    """
    if terms is None or terms.filtered:
        raise RefusalError("privacy", "The job filters updates or keeps arrays at its sites: no whole model leaves.")
    if not (policy or OPEN).give_personal_model:
        raise broken(
            "give_personal_model", "asks for this site's personal model, to be kept and handed on", "does not give it"
        )


def check_statistics(guaranteed: bool, statistics: Collection[str]) -> None:
    """Refuse a method that tells more of the data than its guarantee covers.

    Raises:
        RefusalError: there are statistics in a job with a guarantee (reason ``privacy``).
    """
    if guaranteed and statistics:
        raise RefusalError(
            "privacy", "The method tells statistics of the data, which the job's guarantee does not cover."
        )


def check_features(policy: SitePolicy | None) -> None:
    """Refuse a job that sends activations of the site's images, as split training and alignment of features do.

    Raises:
        RefusalError: rule ``features`` (reason ``policy``).
    """
    if not (policy or OPEN).features:
        raise broken("features", "sends activations of this site's images", "does not give them")


def check_peers(profile: SiteProfile) -> None:
    """Refuse a job in which this site's updates, and models that they are in, go to other sites.

    Args:
        profile: of the site; one without a policy has not allowed it, unless the site is simulated.

    Raises:
        RefusalError: rule ``peers`` (reason ``policy``).
    """
    allowed = profile.simulated if profile.policy is None else profile.policy.peers
    if not allowed:
        raise broken("peers", "sends updates of this site to other sites", "gives them to no other site")


def curves_leave(policy: SitePolicy | None, guaranteed: bool) -> bool:
    """Whether curves of losses and scores may leave during training."""
    return (policy or OPEN).events and not guaranteed


def _array_bytes(plan: Plan, steps: Iterable[Step], kept: float) -> int:
    """Bytes of an update's arrays, which stand in it as they are unless a filter makes another form of them."""
    dense = all(step.get("stage") in (Stage.LAYERS, Stage.CLIP) for step in steps)
    if plan.split is not None or not dense:
        return 0
    return FLOAT_BYTES * round((1 - kept) * sum(prod(shape) for shape in update_shapes(plan).values()))


def _kept(plan: Plan, names: frozenset[str]) -> float:
    """Fraction of the network's parameters that have one of ``names``."""
    if not names:
        return 0.0
    sizes = {name: prod(shape) for name, shape in update_shapes(plan).items()}
    return sum(sizes.get(name, 0) for name in names) / sum(sizes.values())


def _components(fl_ctx: FLContext) -> Iterable[object]:
    """Everything that a job and the site's ``privacy.json`` built in this process."""
    yield from fl_ctx.get_engine().get_all_components().values()
    runner = fl_ctx.get_prop(FLContextKey.RUNNER)
    if runner is not None:
        yield from runner.task_router.task_table.values()
        for filters in (*runner.task_result_filters.values(), *runner.task_data_filters.values()):
            yield from filters


def _only_counters(components: Iterable[object]) -> list[Executor]:
    """The executors of a job of statistics; none where one of the job's executors does something else.

    What stands beside an executor that trains must not lift a rule of updates.
    """
    executors = [component for component in components if isinstance(component, Executor)]
    return executors if all(getattr(executor, "only_counts", False) for executor in executors) else []


def _tells_statistics(component: object) -> bool:
    telling = ("statistics", "arrays_before_rounds")
    if getattr(component, "only_counts", False):
        return True
    return isinstance(component, TrainingHook) and any(replaces(component, name) for name in telling)


def _foreign(component: object) -> str | None:
    return None if type(component).__module__.startswith("fedseg.") else type(component).__name__

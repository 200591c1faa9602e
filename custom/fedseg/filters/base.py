"""The base of all filters over updates: strict about what comes in, clear about what was done."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from nvflare.apis.filter import Filter
from nvflare.apis.fl_constant import FilterKey, FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.utils.task_utils import get_filters

from fedseg.contract.arguments import arguments_of
from fedseg.contract.plan import Plan
from fedseg.contract.report import unprotected
from fedseg.contract.update import DENSE, Stage, Step, Update, check_dense
from fedseg.errors import FedsegError, RefusalError
from fedseg.filters.context import SiteContext, attached_context, reported_fields
from fedseg.messages.replies import bare_reply, refuse, why
from fedseg.messages.updates import read_update, write_update
from fedseg.networks.weights import SHARED_PREFIX, Arrays
from fedseg.training.hooks import TrainingHook

logger = logging.getLogger(__name__)


class UpdateFilter(Filter, ABC):
    """A filter over a site's update (WEIGHT_DIFF), at the site.

    >>> class Halved(UpdateFilter):
    ...     stage = Stage.CLIP
    ...     def apply(self, update, context):
    ...         return update.after(self.step(), {name: value / 2 for name, value in update.arrays.items()})
    >>> sent = Halved().apply(Update({"w": np.ones(2)}, report=None), context=None)
    >>> sent.arrays["w"].tolist(), sent.steps
    ([0.5, 0.5], ({'filter': 'Halved', 'stage': 20},))

    A filter overrides ``apply``. FLARE's ``process`` is the same for all: a failed result passes as nothing but its
    code and reason; everything that is not an update in a form that the filter knows, in its right place in the
    chain, stays at the site, and the server is told why.

    Attributes:
        stage: place in the chain.
        accepts: forms of updates that the filter understands.
        accepts_shared_arrays: whether shared arrays of a method (``shared:``) may pass through it.
        gives: form of what the filter hands on; None leaves it as it was.
        meaning: what the filter is to somebody who reads a report, as half a sentence.
        needs, provides, withholds: see ``contract.combinations``.
        words: texts that may stand in an entry of the privacy record beside the filter's own name; see ``tells``.
        guarantees: whether the filter gives a formal guarantee, so that the job may tell nothing besides that the
            guarantee does not cover: no losses, no scores, no curves.
    """

    stage: ClassVar[Stage]
    meaning: ClassVar[str] = ""
    accepts: ClassVar[tuple[str, ...]] = (DENSE,)
    accepts_shared_arrays: ClassVar[bool] = False
    gives: ClassVar[str | None] = None
    words: ClassVar[frozenset[str]] = frozenset()
    guarantees: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()
    provides: ClassVar[frozenset[str]] = frozenset()
    withholds: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def apply(self, update: Update, context: SiteContext) -> Update:
        """What may leave instead of ``update``, with one step more in its record (see ``step``).

        Raises:
            RefusalError: nothing may leave; the text says why without naming a file or a patient.
        """

    def describe(self) -> dict[str, Any]:
        """Name and arguments, for checks and the run's summary."""
        return {"filter": type(self).__name__, **arguments_of(self)}

    def private_names(self, plan: Plan) -> frozenset[str]:
        """Names of the network's arrays that never leave and that the site keeps as its own from round to round."""
        return frozenset()

    def frozen_names(self, plan: Plan) -> frozenset[str]:
        """Names of the network's arrays that never leave because training does not change them."""
        return frozenset()

    def before_task(self, context: SiteContext) -> None:
        """The site is about to work on a task whose result will go through this filter."""

    def training_hook(self) -> TrainingHook | None:
        """What the filter needs to do during training; the executor adds it to the job's hooks."""
        return None

    def tells(self, text: str, plan: Plan) -> bool:
        """Whether the filter may write a text into the privacy record, which leaves the site.

        A job chooses among listed words, and names arrays of its network: free text of a job could carry out whatever
        somebody got into it at the site.
        """
        return text == type(self).__name__ or text in self.words

    def step(self, **facts: Any) -> Step:
        """One entry for the privacy record."""
        return {**self.describe(), "stage": int(self.stage), **facts}

    def run(self, update: Update, context: SiteContext) -> Update:
        """Check the update and its place in the chain, then ``apply``."""
        name = type(self).__name__
        if update.form not in self.accepts:
            raise RefusalError("privacy", f"{name} does not understand an update that is {update.form}.")
        done = [int(step.get("stage", 0)) for step in update.steps]
        if done and max(done) >= self.stage:
            raise RefusalError(
                "privacy", f"{name} comes after {update.steps[-1]['filter']}; the job's filters are in a wrong order."
            )
        if self.guarantees and update.form == DENSE:
            update = replace(update, arrays=_finite(update.arrays))
        if update.form == DENSE:
            check_dense(update.arrays)
        if not self.accepts_shared_arrays and any(key.startswith(SHARED_PREFIX) for key in update.arrays):
            raise RefusalError("privacy", f"{name} cannot protect the shared arrays of this job's method.")
        if self.guarantees:
            # The guarantee is that of the noisy arrays; a loss or a score beside them would be outside of it.
            update = replace(update, report=update.report.only(unprotected(context.report_fields)))
        start = time.perf_counter()
        result = self.apply(update, context)
        if result.form == DENSE:
            check_dense(result.arrays)
        policy = context.profile.policy
        guaranteed = context.guaranteed or self.guarantees
        told = not guaranteed and (policy is None or "seconds" in policy.report_fields(guaranteed))
        seconds = {"seconds": time.perf_counter() - start} if told else {}
        return replace(result, steps=(*result.steps[:-1], {**result.steps[-1], **seconds}))

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """FLARE's side; see the class."""
        try:
            if shareable.get_return_code(ReturnCode.OK) != ReturnCode.OK:
                return bare_reply(shareable)
            update = read_update(shareable, reported_fields(fl_ctx))
            return write_update(self.run(update, attached_context(fl_ctx)), shareable)
        except FedsegError as error:
            reason = error.reason if isinstance(error, RefusalError) else "privacy"
            text = (
                str(error) if isinstance(error, RefusalError) else f"{type(self).__name__} failed; see the site's log."
            )
            logger.error("Nothing left the site (%s): %s", reason, error)
            return refuse(Shareable(), reason, text)
        except Exception as error:
            logger.exception("%s failed; nothing left the site", type(self).__name__)
            text = f"An unexpected {type(error).__name__} in {type(self).__name__}; the site's own log has the details."
            return refuse(Shareable(), "privacy", why(error, text))


def _finite(arrays: Arrays) -> Arrays:
    """Zeros in the place of an update that is not finite: to refuse it would tell something, and cost nothing."""
    floats = {n: v for n, v in arrays.items() if isinstance(v, np.ndarray) and v.dtype.kind == "f"}
    if all(np.isfinite(value).all() for value in floats.values()):
        return arrays
    return {**arrays, **{name: np.zeros_like(value) for name, value in floats.items()}}


def own_names(filters: Iterable[Filter], plan: Plan) -> tuple[frozenset[str], frozenset[str]]:
    """Names of the network's arrays that these filters keep at the site: private ones, and frozen ones."""
    known = [f for f in filters if isinstance(f, UpdateFilter)]
    private = frozenset[str]().union(*(f.private_names(plan) for f in known))
    return private, frozenset[str]().union(*(f.frozen_names(plan) for f in known))


def hooks_of(filters: Iterable[Filter]) -> list[TrainingHook]:
    """The training hooks that these filters bring."""
    hooks = [f.training_hook() for f in filters if isinstance(f, UpdateFilter)]
    return [hook for hook in hooks if hook is not None]


def result_filters(fl_ctx: FLContext, task: str) -> list[Filter]:
    """All filters through which the result of ``task`` will go, the site's own first."""
    runner = fl_ctx.get_prop(FLContextKey.RUNNER)
    if runner is None:
        return []
    return list(get_filters("task_result_filters", fl_ctx, runner.task_result_filters, task, FilterKey.OUT))

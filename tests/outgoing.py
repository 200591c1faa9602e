"""Updates, messages and contexts for tests of filters, without a site."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

from fedseg.contract.plan import Plan, parse_plan
from fedseg.contract.report import SiteReport
from fedseg.contract.update import Update
from fedseg.filters.context import SiteContext
from fedseg.filters.noise import GuaranteedFilter
from fedseg.networks.weights import Arrays, get_weights
from fedseg.privacy.accounting.epsilon import ADAPTIVE, epsilon
from fedseg.site.profile import SiteProfile
from tiny import PLAN

REPORT = SiteReport(num_samples=3, num_steps=2, train_loss=0.5, val_loss=0.6, val_scores={"mean": 0.1}, val_cases=2)


def make_context(folder: Path, round_number: int = 0, plan: Plan | None = None, **others: Any) -> SiteContext:
    """A task of the site ``a`` whose state lies in ``folder``."""
    profile = SiteProfile({}, folder, folder / "cache", ledger=folder / "ledger", simulated=True)
    plan = parse_plan(PLAN) if plan is None else plan
    return SiteContext("a", "job", plan, "run", round_number, profile, ("p1", "p2"), **others)


def make_update(seed: int = 0, plan: Plan | None = None, scale: float = 0.01) -> Update:
    """An update of the plan's network with values from a normal distribution."""
    plan = parse_plan(PLAN) if plan is None else plan
    random = np.random.default_rng(seed)
    weights = get_weights(plan.network.build(len(plan.task.channels), plan.task.output_channels, 0))
    return Update({n: random.normal(0, scale, v.shape).astype(np.float32) for n, v in weights.items()}, REPORT)


def make_message(data: Any, kind: str = DataKind.WEIGHT_DIFF, meta: dict[str, Any] | None = None) -> Shareable:
    """A result as the executor makes it."""
    return DXO(kind, data=data, meta=copy.deepcopy(REPORT.to_meta()) if meta is None else meta).to_shareable()


def make_fl_context(context: SiteContext | None) -> FLContext:
    """FLARE's context of a task, with what the executor attaches."""
    fl_ctx = FLContext()
    if context is not None:
        context.attach(fl_ctx)
    return fl_ctx


def flat(arrays: Arrays) -> np.ndarray:
    """All arrays as one vector, in the order of their names."""
    return np.concatenate([arrays[name].ravel() for name in sorted(arrays)])


def epsilon_after(filter_: GuaranteedFilter, rounds: int) -> float:
    """Epsilon of so many releases at most, if the ledger holds nothing else."""
    return epsilon([replace(filter_.planned(), count=rounds)], filter_.delta, ADAPTIVE)

"""What a site says of itself, checked as far as it can be known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from fedseg.aggregators.base import AggregationError
from fedseg.allowed import is_count
from fedseg.contract.plan import Plan
from fedseg.contract.protocol import EVALUATES, PHANTOMS, STATISTICS, STEPS
from fedseg.contract.report import MOST_STATISTICS, ReportField, SiteReport, parse_report
from fedseg.contract.update import Update, parse_steps
from fedseg.errors import RefusalError
from fedseg.workflows.run.selection_base import SiteFacts

_LARGEST_STATISTIC = 1e15
_SPLITS = ("training", "validation", "test")


@dataclass(frozen=True)
class Acceptance:
    """What a site that takes part says of itself.

    Attributes:
        cases: number of cases by split.
        statistics: numbers that are added up over all sites, see ``TrainingHook.statistics``.
        phantoms: whether its images were drawn by a program.
        evaluates: whether the site scores models only; then it tells no numbers of cases.
    """

    cases: Mapping[str, int]
    statistics: Mapping[str, float] = field(default_factory=dict)
    phantoms: bool = False
    evaluates: bool = False


def read_update(site: str, answer: FLModel, declared: Mapping[str, ReportField]) -> Update:
    """A site's update as an object: here its report is read, and nowhere after it.

    Args:
        site: who sent it.
        answer: as it came.
        declared: what components of the job report beside the fixed fields.

    Raises:
        RefusalError: the report is missing or wrong (reason ``report``), or the record of its filters is (``privacy``).
        AggregationError: its arrays are no weight difference.
    """
    report, arrays = parse_report(answer.meta, declared), dict(answer.params or {})
    if arrays and answer.params_type != ParamsType.DIFF:
        raise AggregationError(f"The update of {site} is not a weight difference (WEIGHT_DIFF) with arrays.")
    return Update(arrays, report, steps=parse_steps(answer.meta.get(STEPS)))


def check_report(report: SiteReport, facts: SiteFacts, steps: int | None, plan: Plan) -> None:
    """Compare what a site reports of a round with what it said before, and with what the plan makes of it.

    Rules weigh by these numbers, so none is believed that can be known.

    Args:
        report: of the round.
        facts: what the site said when it accepted the job.
        steps: optimizer steps that the round has at this site; None where that cannot be known.
        plan: of the job, whose kind of task says which losses there are.

    Raises:
        RefusalError: a number differs, or a loss is no loss (reason ``report``).
    """
    expected = {"num_samples": facts.num_samples, "val_cases": facts.val_cases}
    for name, count in (expected if steps is None else {**expected, "num_steps": steps}).items():
        found = getattr(report, name)
        if found != count:
            raise RefusalError("report", f"The site reports {name} {found}, but by its own account it is {count}.")
    lowest, highest = plan.objective.losses(plan.training.to_dict())
    for name in ("train_loss", "val_loss", "val_loss_after"):
        loss = getattr(report, name)
        if loss is not None and not lowest <= loss <= highest:
            raise RefusalError("report", f"The reported {name} {loss} is not from {lowest:g} to {highest:g}.")


def read_acceptance(answer: Any) -> Acceptance:
    """Check an answer.

    Raises:
        RefusalError: a count or a statistic is missing, negative or not finite (reason ``report``).
    """
    content = answer if isinstance(answer, Mapping) else {}
    if content.get(EVALUATES) is True:
        return Acceptance({}, phantoms=content.get(PHANTOMS) is True, evaluates=True)
    cases: dict[str, Any] = {split: content.get(split) for split in _SPLITS}
    if not all(map(is_count, cases.values())) or not cases["training"]:
        raise RefusalError("report", "The site's numbers of cases are missing, or it has no training cases.")
    statistics = content.get(STATISTICS, {})
    if (
        not isinstance(statistics, Mapping)
        or len(statistics) > MOST_STATISTICS
        or not all(
            isinstance(name, str) and type(value) in (int, float) and 0 <= value <= _LARGEST_STATISTIC
            for name, value in statistics.items()
        )
    ):
        raise RefusalError("report", f"The site's statistics are no numbers from 0 to 1e15, or over {MOST_STATISTICS}.")
    numbers = {name: float(value) for name, value in statistics.items()}
    return Acceptance(cases, numbers, content.get(PHANTOMS) is True)

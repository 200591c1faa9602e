"""What a site reports beside its update: the one place where the scalars that travel in the meta are declared."""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Any

from fedseg.errors import ConfigurationError, RefusalError
from fedseg.tasks.objective import MEAN, Objective

META_KEY = "fedseg_report"
# What a job with a formal guarantee may still tell. Its counts are of patients: data sets that differ in what one
# patient is have equal ones. Durations are not among them, for they follow the size of a single patient's images.
UNPROTECTED = ("num_samples", "num_steps", "val_cases", "epsilon", "fresh_state")
LARGEST = 1e12
TAUGHT_CASES = "taught_cases"
"""What a site calls the number of training cases from which a round learned, where not all of them teach."""
MOST_STATISTICS = 1000
"""Numbers by name that a site may tell of its data for a method."""
# Two words or more, so that a name in a site's policy that is a slip of the pen is mostly seen as one.
_SCORE = "_score"
_METHOD_FIELD = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)+")


@dataclass(frozen=True)
class ReportField:
    """A number in the report of every site and round, declared by the class of the method that makes it.

        class Personal(TrainingHook):
            reports = {"lag_rounds": ReportField("rounds that the model is behind", 0, whole=True)}

    Nothing else names it: site, guard and server check it by this declaration, and the run's summary copies it. Of a
    field whose name ends with ``_score`` the kind of task has the range, see ``task_fields``.

    >>> share = ReportField("share of the cases that were left out", lowest=0, highest=1)
    >>> share.check("left_out", 0.7)
    >>> share.check("left_out", 1.7)
    Traceback (most recent call last):
    ...
    fedseg.errors.RefusalError: The reported left_out is above 1.

    Attributes:
        meaning: what the number is, for people.
        lowest, highest: its range, both included.
        whole: whether it is a count.
        under_guarantee: whether it may leave in a job with a formal guarantee, since the guarantee covers it or since
            it does not depend on the patients' data.
        names: of numbers by name those that there are; None for any.
    """

    meaning: str
    lowest: float = -LARGEST
    highest: float = LARGEST
    whole: bool = False
    under_guarantee: bool = False
    names: frozenset[str] | None = None

    def check(self, name: str, value: object) -> None:
        """Refuse what is no such number.

        Raises:
            RefusalError: reason ``report``; the text does not tell the value.
        """
        if self.whole and (type(value) is not int or value < self.lowest):
            raise RefusalError("report", f"The reported {name} is not a count.")
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
            raise RefusalError("report", f"The reported {name} is not a finite number, or beyond reason.")
        if value < self.lowest:
            raise RefusalError(
                "report", f"The reported {name} is {'negative' if self.lowest == 0 else f'below {self.lowest:g}'}."
            )
        if value > self.highest:
            raise RefusalError("report", f"The reported {name} is above {self.highest:g}.")


def _number(lowest: float = -LARGEST, default: Any = MISSING, **rest: Any) -> Any:
    """A field that every report has, with its range."""
    return field(default=default, metadata={"field": ReportField("", lowest, **rest)})


@dataclass(frozen=True)
class SiteReport:
    """Scalars of one site in one round.

    Attributes:
        num_samples: training cases; in a job with a formal guarantee patients.
        num_steps: optimizer steps of the round; with a guarantee those that one case of each patient would make.
        train_loss: mean loss over the round's steps; None where the site withholds it.
        val_loss: mean loss of the received global model over the validation cases; None without such cases.
        val_scores: the received model's primary score per output, and ``mean`` over these: in segmentation the mean
            Dice per region; values may be None.
        val_cases: validation cases; with a guarantee patients.
        seconds: the site's own work, from task to result.
        seconds_training: the part of it spent in training steps.
        val_loss_after: mean loss of the site's own model after its local training over the validation cases; only
            with the setting ``validate_after``.
        val_score_after: mean score of the same model; only with the setting ``validate_after``.
        epsilon: privacy spent on the site's patients up to and including this round, where a mechanism runs.
        largest: largest absolute value of the update, in jobs that encrypt it: all sites take one scale from it.
        extras: the fields that components of the job declare, see ``ReportField``; what a site withholds is absent.
        fresh_state: 1 where the site had lost what it kept of former rounds, and trained without it.
        incomplete_samples: training cases that lack an optional channel of the task.
    """

    num_samples: int = _number(0, whole=True)
    num_steps: int = _number(0, whole=True)
    train_loss: float | None = _number()
    val_loss: float | None = _number()
    val_scores: Mapping[str, float | None] = field(default_factory=dict)
    val_cases: int = _number(0, 0, whole=True)
    seconds: float = _number(default=0.0)
    seconds_training: float = _number(default=0.0)
    val_loss_after: float | None = _number(default=None)
    val_score_after: float | None = _number(default=None)
    epsilon: float | None = _number(default=None)
    largest: float | None = _number(0, None)
    extras: Mapping[str, float] = field(default_factory=dict)
    fresh_state: int = _number(0, 0, highest=1, whole=True)
    incomplete_samples: int = _number(0, 0, whole=True)

    def to_meta(self) -> dict[str, Any]:
        """The form in which it travels, under ``META_KEY`` of the DXO's meta."""
        return {META_KEY: asdict(self)}

    def only(self, names: Collection[str]) -> SiteReport:
        """The report with these fields only; counts stay, since the server knows them from the start."""
        blank = SiteReport(self.num_samples, self.num_steps, None, None, val_cases=self.val_cases)
        extras = {name: value for name, value in self.extras.items() if name in names}
        return replace(blank, **{n: getattr(self, n) for n in REPORT_FIELDS if n in names}, extras=extras)

    def told(self) -> set[str]:
        """Names of the fields that tell something."""
        blank = SiteReport(0, 0, None, None)
        return {n for n in REPORT_FIELDS if getattr(self, n) != getattr(blank, n)} | set(self.extras)


REPORT_FIELDS = tuple(f.name for f in fields(SiteReport) if f.name != "extras")
"""Names of the fields that every report has."""
SHARE = ReportField("a share", 0, 1)
_OF_SCORING = ("val_loss", "val_scores", "val_loss_after", "val_score_after")
_OPTIONAL = {f.name for f in fields(SiteReport) if f.default is None or f.name in ("train_loss", "val_loss")}


def tells_scores(name: str) -> bool:
    """Whether a field of the report is a mean over scored cases.

    >>> tells_scores("val_loss"), tells_scores("personal_score"), tells_scores("train_loss")
    (True, True, False)
    """
    return name in _OF_SCORING or name.endswith(_SCORE)


def parse_report(
    meta: Mapping[str, Any],
    declared: Mapping[str, ReportField] | None = None,
    score: ReportField | None = None,
) -> SiteReport:
    """Read a report from a DXO's meta, trusting nothing.

    Args:
        meta: as it came.
        declared: what the job's components may report, see ``task_fields``. None takes any number under a sound name,
            for readers between the site's guard and the server's first look, who both know the job's declarations.
        score: range of the scores, where ``declared`` does not give it.

    Raises:
        RefusalError: the report is missing, has other fields, or a number is outside its range (reason ``report``).
    """
    content = meta.get(META_KEY)
    if not isinstance(content, Mapping) or set(content) != {f.name for f in fields(SiteReport)}:
        raise RefusalError("report", "The result carries no report, or one of another version.")
    report = SiteReport(**content)
    if not isinstance(report.val_scores, Mapping) or not isinstance(report.extras, Mapping):
        raise RefusalError("report", "The reported scores are not numbers by name.")
    for each in fields(SiteReport):
        value = getattr(report, each.name)
        if "field" in each.metadata and not (value is None and each.name in _OPTIONAL):
            each.metadata["field"].check(each.name, value)
    score = score or (ReportField("") if declared is None else declared.get("val_scores", SHARE))
    if score.names is not None and not set(report.val_scores) <= score.names:
        raise RefusalError("report", "The reported val_scores hold a name that the task does not have.")
    for value in (*report.val_scores.values(), report.val_score_after):
        if value is not None:
            score.check("val_scores", value)
    for name, value in report.extras.items():
        _declaration(name, declared).check(name, value)
    if report.incomplete_samples > report.num_samples:
        raise RefusalError("report", "More training cases are said to lack a channel than there are.")
    if report.num_samples == 0:
        raise RefusalError("report", "The site reports no training cases.")
    return report


def task_fields(kind: Objective, declared: Mapping[str, ReportField] | None = None) -> dict[str, ReportField]:
    """What may be reported of a kind of task: ``val_scores``, and the declared fields.

    The primary score gives its range to ``val_scores``, which without it are shares from 0 to 1, and to every declared
    field that is a score by its name.

    Args:
        kind: of task.
        declared: by the job's components.
    """
    score = kind.primary
    low, high = score.lowest, min(score.highest, LARGEST)
    own = {
        name: replace(each, lowest=low, highest=high) if name.endswith(_SCORE) else each
        for name, each in (declared or {}).items()
    }
    return {**own, "val_scores": ReportField(score.title, low, high, names=frozenset((*kind.outputs, MEAN)))}


def told_name(name: str, score: str) -> str:
    """What a run's summary calls a declared field: a score goes by the name of the task's primary one.

    >>> told_name("personal_score", "dice"), told_name("lag_rounds", "dice")
    ('personal_dice', 'lag_rounds')
    """
    return f"{name.removesuffix(_SCORE)}_{score}" if name.endswith(_SCORE) else name


def unprotected(declared: Mapping[str, ReportField]) -> frozenset[str]:
    """What a job with a formal guarantee may still report, given what its components declare."""
    return frozenset(UNPROTECTED) | {name for name, each in declared.items() if each.under_guarantee}


def is_method_field(name: object) -> bool:
    """Whether a component may call a field of the report so."""
    return isinstance(name, str) and bool(_METHOD_FIELD.fullmatch(name)) and name not in REPORT_FIELDS


def _declaration(name: object, declared: Mapping[str, ReportField] | None) -> ReportField:
    if not is_method_field(name) or (declared is not None and name not in declared):
        raise RefusalError("report", f"The report holds {str(name)[:40]!r}, which no component of the job declares.")
    return ReportField("") if declared is None else declared[str(name)]


def declared_fields(components: Iterable[object]) -> dict[str, ReportField]:
    """Everything that these components, or their classes, declare in ``reports``.

    Raises:
        ConfigurationError: a name is not allowed, or two components mean different things by it.
    """
    found: dict[str, ReportField] = {}
    for component in components:
        for name, declared in getattr(component, "reports", {}).items():
            if not is_method_field(name):
                raise ConfigurationError("reports", name, "two or more small words joined by _, and no fixed field")
            if found.setdefault(name, declared) != declared:
                raise ConfigurationError("reports", name, "declared alike by all components of the job")
    return found


def job_fields(client: Mapping[str, Any]) -> dict[str, ReportField]:
    """What the sites of a job may report beside the fixed fields.

    Args:
        client: content of the job's ``config_fed_client.json``; only classes of fedseg are looked at.
    """
    return declared_fields(named_classes(client))


def named_classes(config: Any) -> list[type]:
    """The classes of fedseg that a piece of configuration names, nested ones included; nothing is built of them."""
    names = [path.rpartition(".") for path in _paths(config) if path.startswith("fedseg.")]
    found = [getattr(importlib.import_module(module), name, None) for module, _, name in names]
    return [each for each in found if isinstance(each, type)]


def _paths(value: Any) -> Iterator[str]:
    """Class paths in a piece of configuration."""
    if isinstance(value, Mapping):
        if isinstance(value.get("path"), str):
            yield value["path"]
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _paths(item)

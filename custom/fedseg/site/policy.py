"""A site's own limits: what a job may ask of it, and what may leave it, whatever the job says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

from fedseg import allowed
from fedseg.contract.report import REPORT_FIELDS, ReportField, is_method_field, unprotected
from fedseg.errors import ConfigurationError

LARGEST_EPSILON = 50.0
FEWEST_PATIENTS = 5
ALWAYS = frozenset({"num_samples", "num_steps", "val_cases", "epsilon", "fresh_state"})
"""Fields of the report without which no update is used, or that say how well it is protected."""


# Policies name the scores of a report as in segmentation, too; what they allow is the score of any kind of task.
_FORMER_NAMES = {"val_dice": "val_scores", "val_dice_after": "val_score_after", "personal_dice": "personal_score"}


@dataclass(frozen=True)
class Budget:
    """The most that all jobs together may spend on the patients of one data set."""

    epsilon: float
    delta: float


@dataclass(frozen=True)
class SitePolicy:
    """The limits of one site; None stands for no limit of this kind.

    A job *with a guarantee* is one with a filter for which a differential privacy guarantee is computed.

    Attributes:
        tasks: names of what may be segmented.
        jobs: patterns of job names, with ``*`` and ``?``.
        evaluate_only: whether the site scores models and never trains.
        min_cases: fewest training cases with which the site takes part.
        min_patients: fewest patients behind any number of a job of statistics, and of the site for such a job.
        min_scored_cases: fewest cases, and patients, of which means of scores may leave.
        max_fraction: largest fraction of the model's parameters that may leave in one update.
        require_clip: whether an update must be clipped.
        max_clip_norm: largest clipping norm (L2) of an update; implies ``require_clip``.
        min_noise_multiplier: smallest noise, as a multiple of the clipping norm. It is no multiple of the sensitivity,
            which is twice that norm where neighbours replace one another.
        epsilon_budget: data set -> budget; ``*`` stands for every data set without one of its own. Where there is any
            budget, a name that has none is refused: jobs choose the name.
        allow_large_epsilon: whether a job may spend an epsilon above ``LARGEST_EPSILON``, which protects no patient.
        require_encryption: whether updates must be encrypted.
        min_sites: fewest sites of which an encrypted sum may be; it is never fewer than two.
        scalars: fields of the report that may leave beside ``ALWAYS``, those that a method declares included; None:
            all, but in jobs with a guarantee only ``unprotected`` ones, whose filters cut off all others in any case.
        scores: whether summaries of ``validate`` may leave; None: yes, but not in jobs with a guarantee.
        events: whether curves may leave as events during training; never in jobs with a guarantee.
        statistics: whether statistics of the data may leave: those of a method with the answer to ``prepare``, and
            those of a job of statistics.
        max_statistics: most answers with statistics without noise that may leave of the same patients, over all jobs.
        features: whether activations may leave in split training.
        peers: whether updates, and models that they are in, may go to other sites, where no server merges them. A site
            without a policy does not allow it either, unless it is simulated.
        submit_model: whether the site's own model may leave for a cross-site evaluation.
        submit_personal_model: whether its personal model may, too, where a method keeps one.
        give_personal_model: whether its personal model may leave for good: the run keeps it, and whoever has the run
            can hand it to sites that were never there. A site without a policy does not give it either.
        max_bytes: largest size of one result.
    """

    tasks: tuple[str, ...] | None = None
    jobs: tuple[str, ...] | None = None
    evaluate_only: bool = False
    min_cases: int | None = None
    min_patients: int = FEWEST_PATIENTS
    min_scored_cases: int | None = None
    max_fraction: float | None = None
    require_clip: bool = False
    max_clip_norm: float | None = None
    min_noise_multiplier: float | None = None
    epsilon_budget: Mapping[str, Budget] = field(default_factory=dict)
    allow_large_epsilon: bool = False
    require_encryption: bool = False
    min_sites: int | None = None
    scalars: frozenset[str] | None = None
    scores: bool | None = None
    events: bool = False
    statistics: bool = False
    max_statistics: int | None = None
    features: bool = False
    peers: bool = False
    submit_model: bool = False
    submit_personal_model: bool = False
    give_personal_model: bool = False
    max_bytes: int | None = None

    @property
    def clips(self) -> bool:
        """Whether an update must be clipped."""
        return self.require_clip or self.max_clip_norm is not None

    def budget(self, dataset: str) -> Budget | None:
        """What all jobs together may spend on the patients of ``dataset``; None without a limit."""
        return self.epsilon_budget.get(dataset) or self.epsilon_budget.get("*")

    def report_fields(
        self, guaranteed: bool, declared: Mapping[str, ReportField] = MappingProxyType({})
    ) -> frozenset[str]:
        """Fields of the report that may leave, in a job with or without a guarantee.

        Args:
            guaranteed: whether the job has one.
            declared: what the job's components report beside the fixed fields.
        """
        if self.scalars is not None:
            return self.scalars | ALWAYS
        return unprotected(declared) if guaranteed else frozenset((*REPORT_FIELDS, *declared))

    def scores_leave(self, guaranteed: bool) -> bool:
        """Whether summaries of ``validate`` may leave, in a job with or without a guarantee."""
        return self.scores if self.scores is not None else not guaranteed


OPEN = SitePolicy(events=True, statistics=True, features=True, submit_model=True, submit_personal_model=True)
"""What holds at a site without a policy: no limit but those that come with a guarantee, and no model is given away."""


def parse_policy(content: Any, where: str = "policy") -> SitePolicy:
    """Check a policy as it stands in a file of the site; keys that begin with ``_`` are comments.

    Args:
        content: the object.
        where: what messages call it.

    Raises:
        ConfigurationError: a rule is unknown, or its value is not what the rule takes.
    """
    if not isinstance(content, Mapping):
        raise ConfigurationError(where, content, f"an object with some of {sorted(_RULES)}")
    rules = {name: value for name, value in content.items() if not str(name).startswith("_")}
    allowed.known_names(where, rules, _RULES, "the rules are")
    return SitePolicy(**{name: _RULES[name](f"{where}.{name}", value) for name, value in rules.items()})


def _real(**bounds: Any) -> Callable[[str, Any], float]:
    return lambda name, value: float(allowed.number(name, value, **bounds))


def _scalars(name: str, value: Any) -> frozenset[str]:
    if not isinstance(value, list) or not all(v in REPORT_FIELDS or is_method_field(v) for v in value):
        raise ConfigurationError(name, value, f"a list of {list(REPORT_FIELDS)} and of what methods report")
    return frozenset(_FORMER_NAMES.get(v) or v for v in value)


def _budgets(name: str, value: Any) -> dict[str, Budget]:
    if not isinstance(value, Mapping) or not value:
        raise ConfigurationError(name, value, 'an object of data sets (or "*") with epsilon and delta')
    budgets = {}
    for dataset, entry in value.items():
        key = f"{name}.{dataset}"
        if not isinstance(entry, Mapping) or set(entry) != {"epsilon", "delta"}:
            raise ConfigurationError(key, entry, "an object with epsilon and delta")
        delta = _real(above=0, below=1)(f"{key}.delta", entry["delta"])
        budgets[str(dataset)] = Budget(_real(above=0)(f"{key}.epsilon", entry["epsilon"]), delta)
    return budgets


_count = partial(allowed.whole, allowed="a whole number, at least 1")
_RULES: dict[str, Callable[[str, Any], Any]] = {
    "tasks": allowed.texts,
    "jobs": allowed.texts,
    "evaluate_only": allowed.switch,
    "min_cases": _count,
    "min_patients": _count,
    "min_scored_cases": _count,
    "max_fraction": _real(above=0, most=1),
    "require_clip": allowed.switch,
    "max_clip_norm": _real(above=0),
    "min_noise_multiplier": _real(above=0),
    "epsilon_budget": _budgets,
    "allow_large_epsilon": allowed.switch,
    "require_encryption": allowed.switch,
    "min_sites": _count,
    "scalars": _scalars,
    "scores": allowed.switch,
    "events": allowed.switch,
    "statistics": allowed.switch,
    "max_statistics": _count,
    "features": allowed.switch,
    "peers": allowed.switch,
    "submit_model": allowed.switch,
    "submit_personal_model": allowed.switch,
    "give_personal_model": allowed.switch,
    "max_bytes": _count,
}

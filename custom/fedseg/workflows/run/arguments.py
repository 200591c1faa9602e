"""What the arguments of the training workflow may be, checked when FLARE builds it."""

from __future__ import annotations

from typing import Any

from fedseg import allowed
from fedseg.aggregators.base import Aggregator
from fedseg.aggregators.server_optimizers import ServerOptimizer
from fedseg.aggregators.shared_state import SharedState
from fedseg.errors import ConfigurationError
from fedseg.site.state import check_run_id
from fedseg.workflows.run.site_selection import SiteSelection
from fedseg.workflows.selection import AllSites

_PARTS: dict[str, Any] = {
    "aggregator": Aggregator,
    "server_optimizer": ServerOptimizer | None,
    "shared_arrays": SharedState | None,
    "selection": SiteSelection | None,
}


def check_counts(least: int, **counts: Any) -> None:
    """Refuse what is not a whole number of at least ``least``.

    Raises:
        ConfigurationError: names the first that is wrong.
    """
    for name, value in counts.items():
        allowed.whole(f"workflow.{name}", value, least=least, allowed=f"a whole number of at least {least}")


def check_switches(task_check_period: Any, **switches: Any) -> None:
    """Refuse an interval of FLARE's loop that is none, and switches that are neither true nor false.

    Raises:
        ConfigurationError: the interval is not a number of seconds above 0 and below 60, or names a wrong switch.
    """
    if not isinstance(task_check_period, int | float) or not 0 < task_check_period < 60:
        raise ConfigurationError("workflow.task_check_period", task_check_period, "seconds above 0 and below 60")
    for name, switch in switches.items():
        allowed.switch(f"workflow.{name}", switch)


def check_resumption(run_id: str | None, resume: bool, resume_round: int | None) -> None:
    """Refuse to go on with a run that is not named, and a round without a run.

    Raises:
        ConfigurationError: names what is missing.
    """
    if run_id is not None:
        check_run_id(run_id)
    elif resume:
        raise ConfigurationError("workflow.resume", resume, "false without run_id, which says what to continue")
    if resume_round is not None:
        check_counts(0, resume_round=resume_round)
    if resume_round is not None and not resume:
        raise ConfigurationError("workflow.resume_round", resume_round, "null unless workflow.resume is true")


def check_parts(**parts: Any) -> None:
    """Refuse parts of a method that are none.

    Args:
        parts: ``aggregator``, ``server_optimizer``, ``shared_arrays`` and ``selection``.

    Raises:
        ConfigurationError: names the first that is wrong.
    """
    for name, part in parts.items():
        if not isinstance(part, _PARTS[name]):
            shown = part if isinstance(part, str | int | float) else type(part).__name__
            allowed = f'the {name} of a method: {{"path": ..., "args": {{...}}}}'
            raise ConfigurationError(f"workflow.{name}", shown, allowed, "docs/reference/method-table.md lists them.")


def check_rules_of_scores(selection: SiteSelection | None, **rules: Any) -> None:
    """Refuse rules that compare the scores of rounds where rounds ask other sites.

    Args:
        selection: which sites take part; None asks all.
        rules: stopping rules by scores; None where they are not asked for.

    Raises:
        ConfigurationError: names the first rule.
    """
    if isinstance(selection, AllSites | None):
        return
    for name, rule in rules.items():
        if rule is not None:
            why = "Rounds that ask other sites score on other cases, so their Dice cannot be compared."
            raise ConfigurationError(f"workflow.{name}", rule, "null with a selection of sites", why)

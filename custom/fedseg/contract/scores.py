"""What a site says of the models that it scored on a split of its cases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedseg.allowed import is_count, is_number
from fedseg.tasks.objective import Objective

PERSONAL = "personal"
"""Key of the scores of a site's personal model, see ``TrainingHook.personal_model``, beside those of the global one."""


def models_of(part: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The scores of each model in what a site says of a split.

    >>> len(models_of({"split": "test", "cases": 2, "personal": {"cases": 2}}))
    2
    """
    return [part, part[PERSONAL]] if PERSONAL in part else [part]


def scores_fault(kind: Objective, part: Mapping[str, Any]) -> str:
    """What is wrong with a site's scores of a split; empty where it could have computed them.

    Args:
        kind: of the task.
        part: ``split``, ``loss`` and what ``Objective.summarise`` gives, of the global model; under ``personal`` the
            same without ``split`` of the site's personal one.
    """
    if not all(isinstance(each, Mapping) for each in models_of(part)):
        return "the scores of its personal model are no numbers by name"
    for each in models_of(part):
        if not is_count(each.get("cases")) or each["cases"] != part["cases"]:
            return "its scores do not count their cases"
        if each.get("loss") is not None and not is_number(each["loss"]):
            return "its loss is something else than a finite number"
        further = ("loss", "split", PERSONAL) if each is part else ("loss",)
        if fault := kind.fault(each, further):
            return fault
    return ""

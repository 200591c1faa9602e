"""Whether a federated model differs from its alternatives by more than chance: paired tests over the same patients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from fedseg.evaluation.paired_tests import compare_arms, holm, told_test
from fedseg.tasks.objective import Objective
from fedseg.tasks.scores import ScoredCase

TEST, UNTESTED = "test", "untested"
"""What an alternative has in the summary: the test, or why there is none."""
NO_FEDERATED = "The run left no scores of single cases of its last model."
NO_ALTERNATIVE = "There are no scores of single cases of this way."
_COLUMNS = ["evaluated_at", "patient", "output", "value"]
CaseRows = Sequence[Mapping[str, Any]]


def case_rows(kind: Objective, site: str, scored: Iterable[ScoredCase], outputs: Sequence[str]) -> CaseRows:
    """The primary score of single cases: ``evaluated_at`` (the site), ``patient``, ``output`` and ``value``.

    Args:
        kind: of task.
        site: whose cases they are.
        scored: the cases.
        outputs: of which scores count.
    """
    name = kind.primary.name
    rows = ((case.patient, output, getattr(case.score, name)[output]) for case in scored for output in outputs)
    return [dict(zip(_COLUMNS, (site, *row), strict=True)) for row in rows]


def add_tests(entries: Sequence[dict[str, Any]], alternatives: Mapping[str, CaseRows], federated: CaseRows) -> None:
    """Put the paired test of the federated model less each alternative into the alternative's entry of the summary.

    The score of a patient is the mean over its cases, the models that were scored on them, and the outputs that the
    alternative has at all.

    Args:
        entries: of ``comparison``, with ``name``; each gets ``test``, as ``paired_tests.compare_with`` tells it and
            corrected for how many there are, or ``untested``, a sentence.
        alternatives: rows of each by name, see ``case_rows``.
        federated: rows of the federated model on its final cases.
    """
    base, tested = pd.DataFrame.from_records(list(federated), columns=_COLUMNS), []
    for entry in entries:
        rows = pd.DataFrame.from_records(list(alternatives.get(entry["name"], ())), columns=_COLUMNS)
        if base.empty or rows.empty:
            entry[UNTESTED] = NO_FEDERATED if base.empty else NO_ALTERNATIVE
            continue
        entry[TEST] = told_test(compare_arms(_means(base[base["output"].isin(rows["output"])]), _means(rows)))
        tested.append(entry[TEST])
    for test, p in zip(tested, holm([test["p"] for test in tested]), strict=True):
        test["p_holm"] = p


def _means(rows: pd.DataFrame) -> pd.DataFrame:
    """Of each output the mean over a patient's scores, then of each patient that over the outputs."""
    known = rows.assign(value=rows["value"].astype(float))
    outputs = known.groupby(["evaluated_at", "patient", "output"])["value"].mean()
    return outputs.groupby(["evaluated_at", "patient"]).mean().reset_index()

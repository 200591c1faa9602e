"""An update as FLARE's messages carry it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.shareable import Shareable
from nvflare.app_common.app_constant import AppConstants

from fedseg.contract.protocol import STEPS
from fedseg.contract.report import ReportField, parse_report
from fedseg.contract.update import DENSE, FORMS, Update, parse_steps
from fedseg.errors import RefusalError

PREFIX = "fedseg."


def read_update(shareable: Shareable, declared: Mapping[str, ReportField] | None = None) -> Update:
    """The update in a message; ``declared`` as of ``parse_report``.

    Raises:
        RefusalError: it is something else (reason ``privacy``), or its report is wrong (reason ``report``).
    """
    try:
        dxo = from_shareable(shareable)
    except ValueError:
        raise RefusalError("privacy", "The result is no DXO; only updates may leave.") from None
    if dxo.data_kind != DataKind.WEIGHT_DIFF:
        raise RefusalError(
            "privacy",
            f"The result is of the kind {getattr(dxo.data_kind, 'value', dxo.data_kind)}; only WEIGHT_DIFF may leave.",
        )
    algorithm = dxo.get_meta_prop(MetaKey.PROCESSED_ALGORITHM)
    form = DENSE if algorithm is None else str(algorithm).removeprefix(PREFIX)
    if form not in FORMS or (algorithm is not None and not str(algorithm).startswith(PREFIX)):
        raise RefusalError("privacy", "The update was processed by something that fedseg does not know.")
    return Update(dict(dxo.data), parse_report(dxo.meta, declared), form, parse_steps(dxo.get_meta_prop(STEPS)))


def write_update(update: Update, shareable: Shareable) -> Shareable:
    """A message with this update and nothing else of ``shareable`` but the round."""
    meta: dict[str, Any] = {
        **update.report.to_meta(),
        MetaKey.NUM_STEPS_CURRENT_ROUND: update.report.num_steps,
        STEPS: [dict(step) for step in update.steps],
    }
    if update.form != DENSE:
        meta[MetaKey.PROCESSED_ALGORITHM] = PREFIX + update.form
    result = DXO(DataKind.WEIGHT_DIFF, data=dict(update.arrays), meta=meta).to_shareable()
    for header in (AppConstants.CURRENT_ROUND,):
        if shareable.get_header(header) is not None:
            result.set_header(header, shareable.get_header(header))
    return result

"""What a site reads from a training task, and the message in which an update leaves; for whole and for cut networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from nvflare.apis.dxo import MetaKey
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from fedseg.contract.protocol import FRESH, KEEP, LAST, LINEAGE, START
from fedseg.contract.report import SiteReport
from fedseg.errors import RefusalError
from fedseg.networks.weights import Arrays
from fedseg.site.round_files import DEFAULT_KEEP
from fedseg.site.state import SiteState


def received_arrays(params: Any) -> Arrays:
    """The arrays of a task.

    Raises:
        RefusalError: there are none (reason ``weights``).
    """
    if not isinstance(params, Mapping) or not params:
        raise RefusalError("weights", "The task carries no weights.")
    return {str(name): np.asarray(value) for name, value in params.items()}


def follow_server(state: SiteState | None, meta: Mapping[str, Any], site: str) -> None:
    """Keep states as long as the server needs them; the next one says to which start of the server it belongs."""
    if state is not None:
        state.follow(**branch(meta, site))


def expect_state(state: SiteState | None, meta: Mapping[str, Any], site: str) -> None:
    """Know of former rounds what the server knows, where nothing new will be kept."""
    if state is not None:
        state.follow(**_former(meta, site))


def branch(meta: Mapping[str, Any], site: str) -> dict[str, Any]:
    """What ``RoundFiles`` need to know: where the run is, and what this site must have of it."""
    kept = int(meta.get(KEEP, DEFAULT_KEEP))
    # One more than the server, which may go back to a round while this site is already in the next.
    place = {"keep": kept + 1 if kept else 0, "start": meta.get(START), "lineage": meta.get(LINEAGE)}
    return {**place, **_former(meta, site)}


def _former(meta: Mapping[str, Any], site: str) -> dict[str, Any]:
    return {"last": dict(meta.get(LAST) or ()).get(site), "fresh": bool(meta.get(FRESH))}


def update_message(update: Arrays, report: SiteReport, round_number: int | None = None) -> Shareable:
    """An update and its report, as they go through the filters of the result; without a round before the first one."""
    meta = {**report.to_meta(), MetaKey.NUM_STEPS_CURRENT_ROUND: report.num_steps}
    model = FLModel(params_type=ParamsType.DIFF, params=update, meta=meta, current_round=round_number)
    return FLModelUtils.to_shareable(model)

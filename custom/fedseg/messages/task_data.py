"""What a site reads from a training task, and the message in which an update leaves; for whole and for cut networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from nvflare.apis.dxo import MetaKey
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from fedseg.contract.protocol import KEEP, LINEAGE, START
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


def follow_server(state: SiteState | None, meta: Mapping[str, Any]) -> None:
    """Keep states as long as the server needs them; the next one says to which start of the server it belongs."""
    if state is not None:
        state.keep, state.start, state.lineage = branch(meta)


def branch(meta: Mapping[str, Any]) -> tuple[int, str | None, Sequence[str] | None]:
    """How many rounds a site keeps (0: all), the server's start that asks, and for each finished round its start."""
    kept = int(meta.get(KEEP, DEFAULT_KEEP))
    # One more than the server, which may go back to a round while this site is already in the next.
    return kept + 1 if kept else 0, meta.get(START), meta.get(LINEAGE)


def update_message(update: Arrays, report: SiteReport, round_number: int | None = None) -> Shareable:
    """An update and its report, as they go through the filters of the result; without a round before the first one."""
    meta = {**report.to_meta(), MetaKey.NUM_STEPS_CURRENT_ROUND: report.num_steps}
    model = FLModel(params_type=ParamsType.DIFF, params=update, meta=meta, current_round=round_number)
    return FLModelUtils.to_shareable(model)

"""The server's counterpart of the filters that change an update's form: sparse and quantised become dense again."""

from __future__ import annotations

import logging

from nvflare.apis.dxo import MetaKey, from_shareable
from nvflare.apis.filter import Filter
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

from fedseg.contract.shapes import update_shapes
from fedseg.contract.update import DENSE, QUANTISED, SPARSE, Update
from fedseg.errors import FedsegError, RefusalError
from fedseg.messages.job import job_plan
from fedseg.messages.replies import refuse
from fedseg.messages.updates import read_update
from fedseg.privacy.mechanisms.quantise import from_quantised
from fedseg.privacy.mechanisms.sparse import Shapes, from_sparse

logger = logging.getLogger(__name__)


class RestoreUpdate(Filter):
    """Makes every update that arrives a dense WEIGHT_DIFF before it is aggregated; coordinates not sent are zero.

    A filter for the server's ``task_result_filters`` of the task ``train``, direction ``in``. Sites are not trusted:
    names and shapes must be those of the plan's network, which bounds what is allocated; positions must be distinct
    and in range; values finite. What does not fit, and what is encrypted or of an unknown form, becomes a failed
    result whose reason the coordinator reads; dense updates and failed results pass as they are.
    """

    def __init__(self) -> None:
        super().__init__()
        self._shapes: Shapes | None = None

    def process(self, shareable: Shareable, fl_ctx: FLContext) -> Shareable:
        """FLARE's side; see the class."""
        if shareable.get_return_code(ReturnCode.OK) != ReturnCode.OK:
            return shareable
        try:
            update = read_update(shareable)
            if update.form == DENSE:
                return shareable
            if self._shapes is None:
                self._shapes = update_shapes(job_plan(fl_ctx))
            dense = restore(update, self._shapes)
        except RefusalError as error:
            return _failed(shareable, error.reason, str(error))
        except FedsegError as error:
            logger.error("%s", error)
            return _failed(shareable, "configuration", f"The server cannot restore updates: {error}")
        except Exception as error:
            logger.exception("An update could not be restored")
            return _failed(shareable, "weights", f"The update cannot be restored: {type(error).__name__}.")
        dxo = from_shareable(shareable)
        dxo.data = dense.arrays
        dxo.meta.pop(MetaKey.PROCESSED_ALGORITHM)
        return dxo.update_shareable(shareable)


def restore(update: Update, shapes: Shapes) -> Update:
    """The update in the form ``dense``.

    Args:
        update: as it arrived.
        shapes: of the arrays that an update may hold, see ``update_shapes``.

    Raises:
        RefusalError: its arrays are not what its form says (``weights``), or only the sites can read it (``privacy``).
    """
    if update.form == DENSE:
        return update
    if update.form == SPARSE:
        arrays = from_sparse(update.arrays, shapes)
    elif update.form == QUANTISED:
        arrays = from_quantised(update.arrays, shapes)
    else:
        raise RefusalError("privacy", f"The update is {update.form}, and this job's server cannot restore it.")
    return Update(arrays, update.report, DENSE, update.steps)


def _failed(shareable: Shareable, reason: str, text: str) -> Shareable:
    """The result without its content, but with its headers: they count the bytes that it took to get here."""
    logger.error("An update was left out (%s): %s", reason, text)
    return refuse(shareable, reason, text, headers=True)

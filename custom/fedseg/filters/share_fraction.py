"""Partial sharing: only the coordinates that moved most leave the site (Shokri and Shmatikov, CCS 2015).

The "selective parameter sharing" of Li et al. (MLMI 2019), there with 10 % and 40 % of a brain tumour network.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from fedseg import allowed
from fedseg.contract.combinations import EVERY_COORDINATE
from fedseg.contract.update import SPARSE, Stage, Update
from fedseg.errors import RefusalError
from fedseg.filters.base import UpdateFilter
from fedseg.filters.context import SiteContext
from fedseg.messages.task_data import branch
from fedseg.networks.weights import Arrays
from fedseg.privacy.mechanisms.clipping import clip_coordinates
from fedseg.privacy.mechanisms.sparse import to_sparse
from fedseg.privacy.mechanisms.top_k import largest
from fedseg.site.residuals import ResidualStore

logger = logging.getLogger(__name__)
FOLDER = "unsent"


class ShareFraction(UpdateFilter):
    """Sends the coordinates of largest magnitude, sparse on the wire; ``RestoreUpdate`` puts zeros for the others.

    It protects nobody in a formal sense: what is sent is exact, and which coordinates are sent depends on the data.
    It makes messages smaller, and leaves less to invert.

    With error feedback the site keeps what it did not send, and adds it to its next update. What is sent counts as
    arrived: if a message is lost on its way, its coordinates are lost as those of any lost update are.
    """

    meaning = "sends the largest values only: less to look into, but no formal guarantee"
    stage = Stage.SPARSIFY
    gives = SPARSE
    withholds = frozenset({EVERY_COORDINATE})

    def __init__(
        self,
        fraction: float,
        per_layer: bool = False,
        clip: float | None = None,
        error_feedback: bool = False,
    ) -> None:
        """Choose how much leaves.

        Args:
            fraction: above 0, at most 1; of n coordinates exactly ceil(fraction * n) are sent.
            per_layer: the fraction of each array instead of that of all together.
            clip: largest magnitude of a sent coordinate; None for no bound. The choice is made before clipping.
            error_feedback: add to each update what earlier ones left unsent, what ``clip`` cut off included.
        """
        super().__init__()
        allowed.number("ShareFraction.fraction", fraction, above=0, most=1)
        allowed.optional(allowed.number, "ShareFraction.clip", clip, above=0)
        allowed.switch("ShareFraction.per_layer", per_layer)
        allowed.switch("ShareFraction.error_feedback", error_feedback)
        self.fraction, self.per_layer, self.clip, self.error_feedback = fraction, per_layer, clip, error_feedback

    def apply(self, update: Update, context: SiteContext) -> Update:
        wanted, report = update.arrays, update.report
        if self.error_feedback:
            store = _store(context)
            wanted = _sum(wanted, store.load_or_lose(context.round_number) or {})
            report = replace(report, fresh_state=int(store.lost or report.fresh_state))
        masks = largest(wanted, self.fraction, self.per_layer)
        sent = wanted if self.clip is None else clip_coordinates(wanted, self.clip)
        if self.error_feedback:
            store.save(context.round_number, {n: wanted[n] - np.where(masks[n], sent[n], 0) for n in wanted})
        counts = {
            "coordinates": sum(value.size for value in wanted.values()),
            "sent": sum(int(mask.sum()) for mask in masks.values()),
        }
        logger.info("Sharing %(sent)d of %(coordinates)d coordinates", counts)
        return update.after(self.step(**counts), to_sparse(sent, masks), SPARSE, report)


def _store(context: SiteContext) -> ResidualStore:
    """Residuals live as long as the site's states."""
    return ResidualStore(context.folder / FOLDER, **branch(context.task_meta, context.site))


def _sum(update: Arrays, residual: Mapping[str, np.ndarray]) -> Arrays:
    if not residual:
        return update
    if {n: v.shape for n, v in residual.items()} != {n: v.shape for n, v in update.items()}:
        raise RefusalError("state", "What this site had not sent belongs to other arrays than this update.")
    return {name: np.asarray(value + residual[name], value.dtype) for name, value in update.items()}

"""A bound on the length of an update, as a filter."""

from __future__ import annotations

import logging
import math

from fedseg import allowed
from fedseg.contract.combinations import COUNTED_STEPS
from fedseg.contract.update import Stage, Update
from fedseg.errors import ConfigurationError
from fedseg.filters.base import UpdateFilter
from fedseg.filters.context import SiteContext
from fedseg.privacy.mechanisms.clipping import clip_l2

logger = logging.getLogger(__name__)


class NormClip(UpdateFilter):
    """Shortens an update to a joint Euclidean norm of at most ``norm``.

    Without noise that is no protection of patients: it bounds what one site can do to the model. By how much it
    shortened stays at the site, in its log: the factor would tell the length that was cut.
    """

    meaning = "limits how far one site can move the model; hides nothing"
    stage = Stage.CLIP
    # A clipped update is as long after ten steps as after one.
    withholds = frozenset({COUNTED_STEPS})

    def __init__(self, norm: float) -> None:
        """Choose the bound.

        Args:
            norm: above 0, over all arrays taken as one vector.
        """
        super().__init__()
        allowed.number("NormClip.norm", norm, above=0, infinite=True)
        if math.isinf(norm):
            raise ConfigurationError("NormClip.norm", norm, "a finite number above 0")
        self.norm = norm

    def apply(self, update: Update, context: SiteContext) -> Update:
        arrays, factor = clip_l2(update.arrays, self.norm)
        logger.info("Update clipped to the norm %g: factor %g", self.norm, factor)
        return update.after(self.step(), arrays)

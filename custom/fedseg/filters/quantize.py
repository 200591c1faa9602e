"""Fewer bits on the wire, as a filter."""

from __future__ import annotations

from fedseg import allowed
from fedseg.contract.update import DENSE, QUANTISED, SPARSE, Stage, Update
from fedseg.filters.base import UpdateFilter
from fedseg.filters.context import SiteContext
from fedseg.privacy.mechanisms.quantise import BITS, quantise
from fedseg.privacy.mechanisms.sparse import to_sparse


class QuantizeUpdate(UpdateFilter):
    """Rounds every value to float16 or int8, at random between its two neighbours, so that its expectation stays.

    It protects nobody; it makes messages smaller. After ``ShareFraction`` it rounds only what is sent. The rounding
    follows from the job's seed, the site and the round. ``RestoreUpdate`` undoes it at the server.
    """

    meaning = "sends fewer bits a value; hides nothing"
    stage = Stage.QUANTISE
    accepts = (DENSE, SPARSE)
    gives = QUANTISED

    def __init__(self, bits: int = 16) -> None:
        """Choose how coarse.

        Args:
            bits: 16 (float16, a relative error below 2^-10 for all but the smallest values) or 8 (int8, an error
                below 1/127 of the array's largest magnitude).
        """
        super().__init__()
        allowed.one_of("QuantizeUpdate.bits", bits, BITS)
        self.bits = bits

    def apply(self, update: Update, context: SiteContext) -> Update:
        wire = to_sparse(update.arrays) if update.form == DENSE else update.arrays
        return update.after(self.step(), quantise(wire, self.bits, context.generator("quantise")), QUANTISED)

"""A component with which a test spoils what sites send, after everything that a job does to it."""

import numpy as np
from nvflare.apis.dxo import from_shareable
from nvflare.apis.filter import Filter
from nvflare.apis.fl_constant import ReturnCode


class NotANumber(Filter):
    """Puts NaN into the update of each of these ``sites`` (name -> round) in that round."""

    def __init__(self, sites):
        super().__init__()
        self.sites = sites

    def process(self, shareable, fl_ctx):
        asked = self.sites.get(fl_ctx.get_identity_name()) == shareable.get_header("current_round")
        if not asked or shareable.get_return_code(ReturnCode.OK) != ReturnCode.OK:
            return shareable
        dxo = from_shareable(shareable)
        first = sorted(dxo.data)[0]
        dxo.data[first] = dxo.data[first] * np.nan
        return dxo.update_shareable(shareable)

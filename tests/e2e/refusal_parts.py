"""Components with which a test spoils what sites send, after everything that a job does to it."""

import json

import numpy as np
from nvflare.apis.dxo import from_shareable
from nvflare.apis.filter import Filter
from nvflare.apis.fl_constant import ReturnCode
from nvflare.fuel.utils.fobs.decomposers.via_downloader import ViaDownloaderDecomposer


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


class Unreadable(Filter):
    """Lets a site offer arrays under references that do not exist, in some rounds.

    ``sites``: name -> round -> how many times it does so, before it offers them as they should be.
    """

    def __init__(self, sites):
        super().__init__()
        self.sites, self.left = sites, 0
        offer = ViaDownloaderDecomposer._create_datum

        def offer_nothing(decomposer, context):
            datum = offer(decomposer, context)
            if self.left:
                self.left -= 1
                datum.value = json.dumps({**json.loads(datum.value), "ref_id": "nothing"})
            return datum

        ViaDownloaderDecomposer._create_datum = offer_nothing

    def process(self, shareable, fl_ctx):
        rounds = self.sites.get(fl_ctx.get_identity_name(), {})
        self.left = rounds.get(str(shareable.get_header("current_round")), 0)
        return shareable

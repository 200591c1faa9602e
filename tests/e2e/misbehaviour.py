"""Components with which tests make sites fail inside a real federation; never part of the product."""

import time
from pathlib import Path

import numpy as np
from nvflare.apis.dxo import DataKind
from nvflare.apis.dxo_filter import DXOFilter

from fedseg.training.hooks import TrainingHook


class Misbehaviour(TrainingHook):
    """Hangs, raises or is late at one site.

    ``late``: the server's file of events; the site answers ``prepare`` when a round has begun. ``hang`` and ``error``:
    the round in which a task never returns, or raises.
    """

    def __init__(self, sites):
        self.sites = sites

    def statistics(self, trainer):
        events = self.sites.get(trainer.site, {}).get("late")
        while events and '"event": "round"' not in Path(events).read_text("utf-8"):
            time.sleep(0.1)
        return {}

    def before_round(self, trainer, global_weights, round_number):
        faults = self.sites.get(trainer.site, {})
        if faults.get("hang") == round_number:
            time.sleep(3600)
        if faults.get("error") == round_number:
            raise RuntimeError(f"/secret/path/patient-7.nii.gz is broken in round {round_number}")


class BrokenUpdate(DXOFilter):
    """Sends NaN or another shape from one site in one round."""

    def __init__(self, sites):
        super().__init__(supported_data_kinds=[DataKind.WEIGHT_DIFF], data_kinds_to_filter=None)
        self.sites = sites
        self.round = -1

    def process_dxo(self, dxo, shareable, fl_ctx):
        self.round += 1
        kind = self.sites.get(fl_ctx.get_identity_name(), {}).get(str(self.round))
        first = sorted(dxo.data)[0]
        if kind == "nan":
            dxo.data[first] = dxo.data[first] * np.nan
        elif kind == "shape":
            dxo.data[first] = dxo.data[first][None]
        return dxo

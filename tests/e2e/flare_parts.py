"""A persistor with which FLARE's own workflows start from the plan's seeded network; for tests only."""

from pathlib import Path

import numpy as np
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.abstract.model import ModelLearnable, ModelLearnableKey, make_model_learnable
from nvflare.app_common.abstract.model_persistor import ModelPersistor

from fedseg.contract.plan import read_plan
from fedseg.networks.weights import get_weights


class SeededPersistor(ModelPersistor):
    """Loads the plan's network, writes ``weights.npz`` into the folder given."""

    def __init__(self, plan, out):
        super().__init__()
        self.plan, self.out = plan, out

    def load_model(self, fl_ctx: FLContext) -> ModelLearnable:
        plan = read_plan(self.plan)
        network = plan.build_network()
        return make_model_learnable(get_weights(network), {})

    def save_model(self, ml: ModelLearnable, fl_ctx: FLContext) -> None:
        weights = {name: np.asarray(value) for name, value in ml[ModelLearnableKey.WEIGHTS].items()}
        np.savez(Path(self.out) / "weights.npz", **weights)

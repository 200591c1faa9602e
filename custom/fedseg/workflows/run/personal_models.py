"""Personal models that sites give away: the run keeps them as files, for sites that were never there."""

from __future__ import annotations

from typing import Any

import numpy as np
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.app_constant import AppConstants

from fedseg.contract.protocol import OUTSIDE, OWN_MODEL
from fedseg.contract.scores import PERSONAL
from fedseg.evaluation.summary import PERSONAL_MODELS
from fedseg.files.digest import model_digest
from fedseg.networks.weights import get_weights, set_weights
from fedseg.workflows.run.run_state import RunState


def collect_personal_models(run: RunState) -> dict[str, Any]:
    """Ask every site of the training for its personal model, and write those that come beside the run's own models.

    A site gives its own only where its policy says ``give_personal_model``. Why another one did not stands in the
    events of the run, which goes on.

    Returns:
        What the results say: the file of each site that gave one.
    """
    plan, files, last = run.personal or run.plan, dict[str, str](), len(run.rounds) - 1
    network = plan.build_network()

    def keep(site: str, answer: FLModel) -> None:
        """Write a model once it fits the network; else it is refused (reason ``weights``)."""
        set_weights(network, {str(name): np.asarray(value) for name, value in (answer.params or {}).items()})
        name, weights = f"{site}-{PERSONAL}.safetensors", get_weights(network)
        run.record.append("given", site=site, round=last, model=model_digest(weights))
        run.record.model(name, plan, weights, last)
        files[site] = name

    sites, meta = sorted(run.facts), {OWN_MODEL: OUTSIDE, **run.kept_meta()}
    run.record.event("personal_models", at=sites)
    message = FLModel(metrics={"submit": 1.0}, meta=meta)
    timeout, refused = run.settings.round_timeout, "its personal model was left out"
    run.sites.ask(AppConstants.TASK_SUBMIT_MODEL, message, sites, timeout, keep, refused)
    return {PERSONAL_MODELS: {site: files[site] for site in sorted(files)}}

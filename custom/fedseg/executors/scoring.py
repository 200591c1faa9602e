"""A site's answer to the task ``validate``: scores of a model over the site's cases."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

from fedseg.contract.protocol import AS_IT_IS, FINE_TUNE, MODEL_NAME, SPLITS, TOTALS
from fedseg.contract.round_settings import MOST_EPOCHS
from fedseg.contract.scores import (
    FEWEST,
    FINE_TUNED,
    PERSONAL,
    WITHHELD,
    is_withheld,
    patients_with,
    without_rare,
)
from fedseg.errors import RefusalError
from fedseg.evaluation.case_intervals import summarise_cases
from fedseg.executors.site_session import SiteSession
from fedseg.filters.encrypt import encrypts
from fedseg.models.model_file import write_model
from fedseg.networks.weights import Arrays
from fedseg.site.case_scores import write_case_scores
from fedseg.tasks.objective import Objective, ScoredCase
from fedseg.training.site_round import mean_loss
from fedseg.training.trainer import SiteTrainer

LAST = "last"
"""How the server calls the model after the last round."""
OWN_MODEL = "own.safetensors"
"""The last model with the arrays that the site keeps for itself, in its folder of the run."""

FINE_TUNED_MODEL = "fine-tuned.safetensors"
"""The last model after the site has trained it for itself, there too."""
logger = logging.getLogger(__name__)


def score_model(
    session: SiteSession, trainer: SiteTrainer, received: Arrays, meta: Mapping[str, Any], fl_ctx: FLContext
) -> Shareable:
    """Summaries over the cases of each split asked for; the scores of single cases stay at the site.

    A model that the job brings as a file is scored as it is; every other one with the layers that the site keeps for
    itself in it. What the site has for itself is scored beside the last global model on the final split: its personal
    model, where the method keeps one, and the last model as it has trained it further, where the job asks for that.

    Args:
        session: of the run.
        trainer: of the run.
        received: the model.
        meta: of the task: the splits, and how the server calls the model.
        fl_ctx: of the task.

    Raises:
        RefusalError: the site lacks layers of the model that stay where they are trained (reason ``state``), or the
            task asks for what no job may (``plan``).
    """
    epochs, as_it_is = _epochs_asked(meta), meta.get(AS_IT_IS) is True
    if session.evaluates and trainer.private and not as_it_is:
        # In the server's model these are as the run began, so its scores here would be those of no model.
        text = "The model has layers that stay at the sites that train; this site does not train, and has none."
        raise RefusalError("state", text)
    weights = received if as_it_is else trainer.own_model(received)
    name = str(meta.get(MODEL_NAME, "model"))
    if name == LAST and trainer.private:
        # The file of the server has in these arrays what the run began with.
        write_model(session.folder / OWN_MODEL, trainer.plan, weights, trainer.round_number, own_arrays=())
    splits = {s: trainer.datalist.final_split if s == "final" else s for s in meta.get(SPLITS, ["validation"])}
    names = dict.fromkeys(splits.values())
    scored = {split: trainer.validate(weights, split, distances=True) for split in names}
    cases = {split: len(scores) for split, scores in scored.items()}
    session.record.scored(name, received, meta, cases, encrypts(fl_ctx))
    write_case_scores(session.folder, name, trainer.datalist, scored)
    own = (
        _score_beside(session, trainer, weights, epochs, meta.get(TOTALS)) if name == LAST and "final" in splits else {}
    )
    if session.policy.scores_leave(session.guaranteed):
        told = {split: _told(session, trainer.objective, split, scored[split]) for split in scored}
        data = {asked: dict(told[split]) for asked, split in splits.items()}
        if own and not is_withheld(data["final"]):
            data["final"] |= {kind: _summary(session, trainer.objective, cases) for kind, cases in own.items()}
    else:
        split = trainer.datalist.final_split
        kept = {"split": split, "cases": trainer.count(split), WITHHELD: True}
        data = {"final": session.withheld(split) or kept}
    return DXO(DataKind.METRICS, data=data).to_shareable()


def _epochs_asked(meta: Mapping[str, Any]) -> int:
    epochs = meta.get(FINE_TUNE, 0)
    if type(epochs) is not int or not 0 <= epochs <= MOST_EPOCHS:
        raise RefusalError("plan", f"The epochs of fine-tuning are not a whole number from 0 to {MOST_EPOCHS}.")
    return epochs


def _score_beside(
    session: SiteSession, trainer: SiteTrainer, weights: Arrays, epochs: int, totals: Mapping[str, float] | None
) -> dict[str, list[ScoredCase]]:
    """Scores on its final split of what the site has for itself, by case also on its disk.

    Args:
        session, trainer: of the run.
        weights: the last model, as the site uses it.
        epochs: for which the site trains it further; 0 for no such model.
        totals: what the server has added up before the first round.
    """
    models = {PERSONAL: trainer.personal_model(), FINE_TUNED: _fine_tuned(session, trainer, weights, epochs, totals)}
    found, split = {}, trainer.datalist.final_split
    for kind, model in models.items():
        if model is not None:
            found[kind] = trainer.validate(model, split, distances=True)
            write_case_scores(session.folder, kind, trainer.datalist, {split: found[kind]})
    return found


def _fine_tuned(
    session: SiteSession, trainer: SiteTrainer, weights: Arrays, epochs: int, totals: Mapping[str, float] | None
) -> Arrays | None:
    """The last model as the site has trained it for itself, also as a file; None where it does not or cannot."""
    if not epochs or session.evaluates or not trainer.count("training"):
        return None
    try:
        tuned = trainer.fine_tuned(weights, epochs, totals)
    except RefusalError as error:
        # The scores of the last model count without it.
        logger.error("The last model could not be fine-tuned (%s).", error)
        return None
    write_model(session.folder / FINE_TUNED_MODEL, trainer.plan, tuned, trainer.round_number, own_arrays=())
    return tuned


def _told(session: SiteSession, kind: Objective, split: str, scored: list[ScoredCase]) -> dict[str, Any]:
    """What leaves of a split: a summary, or that its cases are too few for one."""
    return session.withheld(split) or {"split": split, **_summary(session, kind, scored)}


def _summary(session: SiteSession, kind: Objective, scored: list[ScoredCase]) -> dict[str, Any]:
    loss = mean_loss(scored)
    # A loss that is no number any more is not sent: the score beside it still counts.
    finite = loss if loss is not None and math.isfinite(loss) else None
    summary = summarise_cases(kind, scored, FEWEST)
    least = session.policy.min_scored_cases
    return {"loss": finite, **without_rare(kind, summary, least, patients_with(kind, scored))}

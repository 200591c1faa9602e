"""A site's answer to the task ``validate``: scores of a model over the site's cases."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

from fedseg.contract.protocol import AS_IT_IS, MODEL_NAME, SPLITS
from fedseg.contract.scores import FEWEST, PERSONAL, WITHHELD, is_withheld, patients_with, without_rare
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


def score_model(
    session: SiteSession, trainer: SiteTrainer, received: Arrays, meta: Mapping[str, Any], fl_ctx: FLContext
) -> Shareable:
    """Summaries over the cases of each split asked for; the scores of single cases stay at the site.

    A model that the job brings as a file is scored as it is; every other one with the layers that the site keeps for
    itself in it. The site's personal model, where the method keeps one, is scored beside the last global one on the
    final split.

    Args:
        session: of the run.
        trainer: of the run.
        received: the model.
        meta: of the task: the splits, and how the server calls the model.
        fl_ctx: of the task.

    Raises:
        RefusalError: the site lacks layers of the model that stay where they are trained (reason ``state``).
    """
    as_it_is = meta.get(AS_IT_IS) is True
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
    own = _score_personal_model(session, trainer) if name == LAST and "final" in splits else []
    if session.policy.scores_leave(session.guaranteed):
        told = {split: _told(session, trainer.objective, split, scored[split]) for split in scored}
        data = {asked: dict(told[split]) for asked, split in splits.items()}
        if own and not is_withheld(data["final"]):
            data["final"][PERSONAL] = _summary(session, trainer.objective, own)
    else:
        split = trainer.datalist.final_split
        kept = {"split": split, "cases": trainer.count(split), WITHHELD: True}
        data = {"final": session.withheld(split) or kept}
    return DXO(DataKind.METRICS, data=data).to_shareable()


def _score_personal_model(session: SiteSession, trainer: SiteTrainer) -> list[ScoredCase]:
    """Scores of the site's personal model on its final split, by case also on its disk; empty without such a model."""
    weights, split = trainer.personal_model(), trainer.datalist.final_split
    if weights is None:
        return []
    scored = trainer.validate(weights, split, distances=True)
    write_case_scores(session.folder, PERSONAL, trainer.datalist, {split: scored})
    return scored


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

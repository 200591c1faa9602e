"""A site's answer to the task ``validate``: scores of a model over the site's cases."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

from fedseg.contract.protocol import MODEL_NAME, SPLITS
from fedseg.executors.site_session import SiteSession
from fedseg.filters.encrypt import encrypts
from fedseg.networks.weights import Arrays
from fedseg.site.case_scores import write_case_scores
from fedseg.tasks.objective import Objective, ScoredCase
from fedseg.training.site_round import mean_loss
from fedseg.training.trainer import SiteTrainer


def score_model(
    session: SiteSession, trainer: SiteTrainer, received: Arrays, meta: Mapping[str, Any], fl_ctx: FLContext
) -> Shareable:
    """Summaries over the cases of each split asked for; the scores of single cases stay at the site.

    Args:
        session: of the run.
        trainer: of the run.
        received: the model.
        meta: of the task: the splits, and how the server calls the model.
        fl_ctx: of the task.
    """
    weights = trainer.own_model(received)
    splits = {s: trainer.datalist.final_split if s == "final" else s for s in meta.get(SPLITS, ["validation"])}
    names = dict.fromkeys(splits.values())
    scored = {split: trainer.validate(weights, split, distances=True) for split in names}
    name = str(meta.get(MODEL_NAME, "model"))
    cases = {split: len(scores) for split, scores in scored.items()}
    session.record.scored(name, received, meta, cases, encrypts(fl_ctx))
    write_case_scores(session.folder, name, trainer.datalist, scored)
    if session.policy.scores_leave(session.guaranteed):
        data = {asked: _summary(trainer.objective, split, scored[split]) for asked, split in splits.items()}
    else:
        split = trainer.datalist.final_split
        data = {"final": {"split": split, "cases": len(trainer.datalist.split(split)), "withheld": True}}
    return DXO(DataKind.METRICS, data=data).to_shareable()


def _summary(kind: Objective, split: str, scored: list[ScoredCase]) -> dict[str, Any]:
    loss = mean_loss(scored)
    # A loss that is no number any more is not sent: the score beside it still counts.
    finite = loss if loss is not None and math.isfinite(loss) else None
    return {"split": split, "loss": finite, **kind.summarise([case.score for case in scored])}

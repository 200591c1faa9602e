"""A curriculum of what was forgotten: cases that the global model lost are drawn more often."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from fedseg.allowed import number, whole
from fedseg.contract.combinations import EVERY_CASE
from fedseg.contract.report import ReportField
from fedseg.networks.weights import Arrays
from fedseg.randomness import generator
from fedseg.tasks.objective import MEAN, ScoredCase
from fedseg.training.hooks import LocalTraining, TrainingHook
from fedseg.training.inference import infer_logits
from fedseg.training.prepare import PreparedCase
from fedseg.training.site_round import scores_by_output


class MemoryAwareCurriculum(TrainingHook):
    """Draws forgotten cases more often (Jimenez-Sanchez et al., Comput Methods Programs Biomed 2023).

    1. Each global model that arrives is scored on the site's training cases, on the grid on which they are trained.
    2. A case is forgotten if its score is worse by more than ``drop`` than under the global model that the site had
       before. In the paper, which classifies, it is one that was right and is wrong.
    3. An epoch draws as many cases as there are, with replacement: forgotten ones with ``weight`` times the
       probability of the others (twice in the authors' code, too, after a first phase without). In rounds in which
       nothing is forgotten, training is what it is without this hook.

    Scores stay at the site; the share of forgotten cases is reported. The inference takes about as long as that on as
    many validation cases.
    """

    needs = TrainingHook.needs | {EVERY_CASE}
    reports: ClassVar = {"forgotten_share": ReportField("share of the training cases that were forgotten", 0, 1)}

    def __init__(self, drop: float = 0.02, weight: float = 2.0, from_round: int = 0) -> None:
        """Choose what counts as forgotten, and what follows.

        Args:
            drop: of the primary score, in its own unit, from 0 up.
            weight: of a forgotten case beside 1 of any other, from 1 up.
            from_round: first round whose order it changes.
        """
        self.drop, self.weight = number("drop", drop, least=0), number("weight", weight, least=1)
        self.from_round = whole("from_round", from_round, least=0)
        self.scores: list[float | None] = []
        self.forgotten: list[bool] = []

    def before_round(self, training: LocalTraining, global_weights: Arrays, round_number: int) -> None:
        found = [_score(training, training.training_cases[i]) for i in range(len(training.training_cases))]
        better = 1 if training.objective.primary.higher_is_better else -1
        known = len(self.scores) == len(found)
        self.forgotten = [
            known and was is not None and now is not None and better * (was - now) > self.drop
            for was, now in zip(self.scores if known else found, found, strict=True)
        ]
        self.scores = found

    def order(self, training: LocalTraining, round_number: int, epoch: int) -> Sequence[int] | None:
        if round_number < self.from_round or not any(self.forgotten):
            return None
        weights = np.where(self.forgotten, self.weight, 1.0)
        where = (training.plan.seed, training.site, round_number, epoch, "curriculum")
        drawn = generator(*where).choice(len(weights), len(weights), p=weights / weights.sum())
        return [int(index) for index in drawn]

    def report(self, training: LocalTraining) -> dict[str, float]:
        return {"forgotten_share": float(np.mean(self.forgotten))} if self.forgotten else {}

    def state(self) -> dict[str, Any]:
        return {"scores": self.scores}

    def load_state(self, state: dict[str, Any] | None) -> None:
        self.scores = [] if state is None else list(state["scores"])


def _score(training: LocalTraining, case: PreparedCase) -> float | None:
    """The mean primary score of the network on a prepared training case; None where it is not defined."""
    kind, settings = training.objective, training.settings
    training.network.eval()
    with training.autocast():
        logits = infer_logits(
            training.network, training.task, case.image, settings.overlap, training.device, training.check_abort
        )
    with torch.inference_mode():
        values = kind.activate(logits)[0].numpy()
    reference = None if case.classes is None else case.classes[0].numpy()
    predicted = kind.refine(kind.decide(values), case.grid.spacing)
    score = kind.score_drawn(case.drawn, predicted, reference, case.grid.spacing, settings.to_dict(), full=False)
    return scores_by_output(kind, [ScoredCase(case.id, 0.0, score, "")])[MEAN]

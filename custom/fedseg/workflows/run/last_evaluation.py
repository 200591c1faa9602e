"""The last evaluation: every site scores the last model, and the best one where it is another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from fedseg.contract.protocol import MODEL_NAME, SPLITS
from fedseg.errors import FedsegError
from fedseg.workflows.run.record import BEST_MODEL, LAST_MODEL
from fedseg.workflows.run.run_state import RunState
from fedseg.workflows.run.scores import Scored, is_better, readable, summarise_final, validation_scores


class LastEvaluation(RunState):
    """A run whose rounds are over, and which of its models is the best.

    Attributes:
        round_timeout: seconds after which it goes on without the sites that have not answered; 0 waits for all.
    """

    round_timeout: int = 0

    def _beats_best(self, scored: Scored) -> bool:
        """Whether a model with these validation scores is the best so far."""
        if self.best_round is None:
            return any(dice is not None for dice, _ in scored.values())
        return is_better(scored, validation_scores(self.rounds[self.best_round + 1])) is True

    def _finish(self) -> None:
        """Score the last model, then the best one where it is another."""
        last_round = len(self.rounds) - 1
        file = self._store_final(LAST_MODEL, last_round)
        self.record.event("evaluate", model="last")
        last, on_validation = self._evaluate("last", last_round)
        last["model"] = file
        self._write_results(final=last, best={"model": None})
        if self._beats_best(on_validation):
            file = self._store_final(BEST_MODEL, last_round)
            best_scores = dict(last, round=last_round, model=file)
        elif self.best_round is not None:
            self.record.event("evaluate", model="best")
            file = self._store_final(BEST_MODEL, self.best_round)
            best_scores = dict(self._evaluate("best", self.best_round)[0], round=self.best_round, model=file)
        else:
            best_scores = {"model": None}
        self._write_results(final=last, best=best_scores)
        self.record.finished(mean_dice=last["mean_dice"], pooled_dice=last["pooled_dice"])

    def _bring(self, round_number: int, sites: Sequence[str]) -> FLModel:
        """The message that brings the model after a round to sites, to be scored."""
        return FLModel(params_type=ParamsType.FULL, params=self._weights_after(round_number), meta={})

    def _evaluate(self, name: str, round_number: int) -> tuple[dict[str, Any], Scored]:
        """Scores on the final split of every site, and each site's Dice on its validation cases."""
        splits = ["final", "validation"] if name == "last" else ["final"]
        model = self._bring(round_number, sorted(self.sites))
        model.meta |= {SPLITS: splits, MODEL_NAME: name}
        answers = self.ask("validate", model, sorted(self.sites), self.round_timeout, self._take_scores)
        if not answers:
            raise FedsegError(f"No site scored the {name} model; it is kept unscored.")
        content = summarise_final({site: answers[site].metrics["final"] for site in sorted(answers)}, round_number)
        validation = {site: a.metrics["validation"] for site, a in answers.items() if "validation" in a.metrics}
        return content, {site: (part["dice"]["mean"], part["cases"]) for site, part in validation.items()}

    def _take_scores(self, answer: FLModel) -> bool:
        """Accept a site's scores if they can be pooled."""
        if not readable(answer.metrics):
            self.note(answer.meta["client_name"], "sent scores that cannot be read; they were left out")
            return False
        return True

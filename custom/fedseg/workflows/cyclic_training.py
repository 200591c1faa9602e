"""Cyclic weight transfer: one model visits site after site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from nvflare.app_common.abstract.fl_model import FLModel

from fedseg.contract.arguments import takes_arguments_of
from fedseg.contract.protocol import MODEL_NAME, SPLITS
from fedseg.contract.scores import is_withheld
from fedseg.contract.update import Update
from fedseg.errors import RefusalError
from fedseg.workflows.run.method_parts import MethodParts, take_parts
from fedseg.workflows.run.plain_model import PlainModel
from fedseg.workflows.run.round_protocol import RoundProtocol
from fedseg.workflows.run.run_state import RunState
from fedseg.workflows.run.scores import UNREADABLE, readable
from fedseg.workflows.run.settings import RunSettings, refuse_given
from fedseg.workflows.run.workflow import Workflow

_SCORED = "validation"


class CarriedModel(PlainModel):
    """The model between two visits: each update is added as it comes, after the checks that any update goes through."""

    def accept_update(self, site: str, update: Update) -> None:
        arrays, _ = self.check(site, update)
        self.keep_arrays(site, arrays)
        self.apply(arrays)
        self.reports[site], self.steps[site] = update.report, update.steps

    def describe(self) -> dict[str, Any]:
        return {"name": "CyclicWeightTransfer"}

    def describe_round(self) -> dict[str, Any]:
        """Also that the model is carried, which is what a report says in the place of weights."""
        return {**super().describe_round(), "carried": True}


class InTurn(RoundProtocol):
    """The sites of a round are visited one after the other, in the order of their names.

    Before its first visit a round has its model scored at all of its sites; these are the scores that the round has in
    the results, since those of a visit are of another model at each site.
    """

    def collect(self, run: RunState, asked: Sequence[str]) -> None:
        scores = self._score_round(run, asked)
        for site in sorted(asked):
            # Each visit moves the model, which goes by the number of the round before until this one is finished.
            received = run.model.digest_after(run.number - 1)
            run.record.append("visit", round=run.number, site=site, start=run.start_id, received=received)
            self.train(run, [site])
        for site, report in run.model.reports.items():
            part = scores.get(site, {})
            values = {"val_loss": part.get("loss"), "val_scores": part.get(run.plan.objective.primary.name, {})}
            run.model.reports[site] = replace(report, val_cases=part.get("cases", 0), **values)

    def _score_round(self, run: RunState, asked: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Scores of the round's model on the validation cases of each site that tells them."""
        scoring = [site for site in asked if run.facts[site].val_cases]
        meta = {SPLITS: [_SCORED], MODEL_NAME: "round"}
        answers = self.score(run, run.number - 1, scoring, meta, partial(_accept_scores, run))
        return {site: answer.metrics[_SCORED] for site, answer in answers.items() if _SCORED in answer.metrics}


def _accept_scores(run: RunState, site: str, answer: FLModel) -> None:
    """Accept a site's scores of a round if they can be compared, or that it withholds them."""
    metrics = answer.metrics or {}
    if is_withheld(metrics.get(_SCORED, metrics.get("final"))):
        return
    scores = {"final": metrics.get(_SCORED)}
    if not readable(scores, run.plan.objective) or metrics[_SCORED]["cases"] != run.facts[site].val_cases:
        raise RefusalError("report", UNREADABLE)


class CyclicTraining(Workflow):
    """Carry one model from site to site (Chang et al., J Am Med Inform Assoc 2018).

    In each round the sites are visited one after the other, in the order of their names, by the ordinary task
    ``train``: a site trains what it receives, and what it receives is what the site before it has left. A site that
    fails, or whose update does not fit, is named and passed over.

    A site scores what it receives, as in every job. That is another model at each site, so those scores cannot tell
    which round's model is the best. Before its first visit a round therefore has its model scored at all of its sites,
    and these are the scores that the round has in the results, and by which the best model is chosen and training stops
    early. It costs one more model to each site, and one more scoring, in every round.
    """

    @takes_arguments_of(MethodParts, RunSettings)
    def __init__(self, num_rounds: int, **arguments: Any) -> None:
        """Check the arguments.

        Args:
            num_rounds: training rounds; in each every site is visited once.
            arguments: see ``MethodParts``, of which all but ``selection`` have no meaning here and must be left out;
                and ``RunSettings``, of which ``round_timeout`` is that of a single visit.

        Raises:
            ConfigurationError: a value is not allowed, or an argument has no meaning here.
        """
        refuse_given("cyclic weight transfer", arguments, "aggregator", "server_optimizer", "shared_arrays")
        parts, settings = take_parts(arguments), RunSettings(num_rounds, **arguments)
        super().__init__(settings, CarriedModel(), InTurn(), parts.asked)

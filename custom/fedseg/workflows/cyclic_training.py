"""Cyclic weight transfer: one model visits site after site."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.app_constant import AppConstants

from fedseg.aggregators.fedavg import FedAvg
from fedseg.contract.protocol import MODEL_NAME, SPLITS
from fedseg.contract.report import SiteReport
from fedseg.errors import ConfigurationError
from fedseg.files.digest import model_digest
from fedseg.networks.weights import Arrays
from fedseg.workflows.federated_training import FederatedTraining
from fedseg.workflows.run.global_model import GlobalModel
from fedseg.workflows.run.scores import readable
from fedseg.workflows.run.site_dialogue import Take

_SCORED = "validation"


class CarriedModel(GlobalModel):
    """The model between two visits: each update is added as it comes, after the checks that any update goes through."""

    def __init__(self) -> None:
        super().__init__(FedAvg())

    def take(self, model: FLModel, keep: Callable[[str, Arrays], None] | None = None) -> SiteReport:
        """Check a site's update and add it to the model; see ``GlobalModel.take``.

        Raises:
            RefusalError, AggregationError: see there; the model is as it was.
        """
        self.aggregator.reset_stats()
        report = super().take(model, keep)
        try:
            super().finish_round()
        except Exception:
            del self.reports[model.meta["client_name"]]
            raise
        return report

    def finish_round(self) -> None:
        """Every visit has moved the model already."""

    def describe(self) -> dict[str, Any]:
        """Name of the method."""
        return {"name": "CyclicWeightTransfer"}

    def describe_round(self) -> dict[str, Any]:
        """See ``GlobalModel.describe_round``; no site has a weight."""
        costs = {site: self.reports[site].train_loss for site in sorted(self.reports)}
        return {"rule": self.describe(), "weights": {}, "scales": {}, "notes": {}, "costs": costs}


class CyclicTraining(FederatedTraining):
    """Carry one model from site to site (Chang et al., J Am Med Inform Assoc 2018).

    In each round the sites are visited one after the other, in the order of their names, by the ordinary task
    ``train``: a site trains what it receives, and what it receives is what the site before it has left. A site that
    fails, or whose update does not fit, is named and passed over.

    A site scores what it receives, as in every job. That is another model at each site, so those scores cannot tell
    which round's model is the best. Before its first visit a round therefore has its model scored at all of its sites,
    and these are the scores that the round has in the results, and by which the best model is chosen and training stops
    early. It costs one more model to each site, and one more scoring, in every round.
    """

    model: CarriedModel

    def __init__(self, num_rounds: int, min_sites: int = 1, **others: Any) -> None:
        """Check the arguments.

        Args:
            num_rounds, min_sites: see ``FederatedTraining``.
            others: further arguments of ``FederatedTraining``; ``round_timeout`` is that of a single visit.

        Raises:
            ConfigurationError: a value is not allowed, or an argument has no meaning here.
        """
        for name in ("aggregator", "server_optimizer", "shared_arrays"):
            if others.pop(name, None):
                raise ConfigurationError(f"workflow.{name}", "given", "left out in cyclic weight transfer")
        super().__init__(num_rounds, FedAvg(), min_sites=min_sites, **others)
        self.model = CarriedModel()
        self._traffic: dict[str, tuple[int, int]] = {}

    def _collect(self, sites: Sequence[str]) -> None:
        """Have the model scored, and carry it from site to site."""
        self._traffic = {}
        scores = self._score(sites)
        for site in sorted(sites):
            message = FLModel(params_type=ParamsType.FULL, params=self.model.outgoing(), meta=self._round_meta())
            message.current_round, message.total_rounds = self._round, self.num_rounds
            received = model_digest(self.model.weights)
            self.record.enter("visit", round=self._round, site=site, start=self.start_id, received=received)
            self._send(AppConstants.TASK_TRAIN, message, [site], self._take_update)
        for site, report in self.model.reports.items():
            part = scores.get(site, {})
            values = {"val_loss": part.get("loss"), "val_dice": part.get("dice", {})}
            self.model.reports[site] = replace(report, val_cases=part.get("cases", 0), **values)
        self._bytes.update(self._traffic)

    def _score(self, sites: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Scores of the round's model on the validation cases of each site that tells them."""
        scoring = [site for site in sites if self.sites[site].val_cases]
        message = self._bring(self._round - 1, scoring)
        message.meta |= {SPLITS: [_SCORED], MODEL_NAME: "round"}
        answers = self._send(AppConstants.TASK_VALIDATION, message, scoring, self._take_round_scores)
        return {site: answer.metrics[_SCORED] for site, answer in answers.items() if _SCORED in answer.metrics}

    def _take_round_scores(self, answer: FLModel) -> bool:
        """Accept a site's scores of a round if they can be compared, or that it keeps them to itself."""
        site, metrics = answer.meta["client_name"], answer.metrics or {}
        if _SCORED not in metrics and readable(metrics):
            return True
        known = readable({"final": metrics.get(_SCORED)})
        if not known or metrics[_SCORED]["cases"] != self.sites[site].val_cases:
            self.note(site, "sent scores that cannot be read; they were left out")
            return False
        return True

    def _send(self, task: str, message: FLModel, sites: Sequence[str], take: Take) -> dict[str, FLModel]:
        """Ask, and count the bytes of all tasks of the round."""
        answers = self.ask(task, message, sites, self.round_timeout, take)
        for site in self._heard:
            before, now = self._traffic.get(site, (0, 0)), self._bytes[site]
            self._traffic[site] = before[0] + now[0], before[1] + now[1]
        return answers

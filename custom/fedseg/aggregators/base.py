"""The base of all aggregation rules: updates are taken in, wait on disk, and become one update."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from nvflare.apis.fl_constant import ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.aggregators.model_aggregator import ModelAggregator
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from fedseg.aggregators.spool.updates import UpdateSpool
from fedseg.contract.arguments import arguments_of
from fedseg.contract.combinations import COMPARED_UPDATES
from fedseg.contract.plan import Plan
from fedseg.contract.report import SHARE, SiteReport, parse_report
from fedseg.errors import FedsegError
from fedseg.networks.weights import Arrays

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Draw:
    """How the sites of a round were drawn from all that could be asked.

    Attributes:
        counts: how often each site of the round was drawn; who was drawn twice trains once, and counts twice.
        expected: how often each site that could be asked is drawn in a round on average; empty where nobody knows.
        samples: training cases of each site that could be asked.
    """

    counts: Mapping[str, int] = field(default_factory=dict)
    expected: Mapping[str, float] = field(default_factory=dict)
    samples: Mapping[str, int] = field(default_factory=dict)


class AggregationError(FedsegError):
    """A rule gave weights that cannot be used, or there is nothing to aggregate."""


class Aggregator(ModelAggregator):
    """Takes the updates of a round (WEIGHT_DIFF) and gives one.

    Works under ``workflows.FederatedTraining`` and under FLARE's own FedAvg and ScatterAndGather. A rule overrides
    ``combine``, or ``site_weights`` of ``WeightedAggregator``. What lives longer than one round is kept in attributes
    that ``reset_stats`` leaves alone (FLARE's FedAvg calls it at the start of every round) and travels in checkpoints
    through ``history`` and ``restore``.

    Attributes:
        needs: see ``contract.combinations``; a rule that combines updates by itself compares them.
        draw: how the sites of the round at hand were drawn; the run sets it.
        received: the global model from which the updates of the round start; the run sets it.
        last_weights: the weight of each site in the last aggregation, sorted by name; empty for rules without such.
        last_scales: factors by which single updates were scaled besides; empty where none was.
        last_notes: what else the rule wants to have reported of the round; plain JSON.
    """

    needs: frozenset[str] = COMPARED_UPDATES

    def __init__(self) -> None:
        super().__init__()
        self._spool = UpdateSpool()
        self._reports: dict[str, SiteReport] = {}
        self.draw = Draw()
        self.received: Mapping[str, np.ndarray] = {}
        self.last_weights: dict[str, float] = {}
        self.last_scales: dict[str, float] = {}
        self.last_notes: dict[str, Any] = {}

    @abstractmethod
    def combine(self, reports: Mapping[str, SiteReport]) -> Arrays:
        """The aggregated difference; updates are read from ``self._spool``.

        Args:
            reports: what the sites of this round reported, in the order of their names; never empty.
        """

    def describe(self) -> dict[str, Any]:
        """Name and arguments of the rule, for the run's summary."""
        return {"name": type(self).__name__, **arguments_of(self)}

    def costs(self, reports: Mapping[str, SiteReport]) -> dict[str, float | None]:
        """The cost of each site as the rule uses it; the training loss for rules that use none."""
        return {site: report.train_loss for site, report in reports.items()}

    def train_losses(self, reports: Mapping[str, SiteReport]) -> dict[str, float]:
        """The training loss of each site, for rules that cannot do without.

        Raises:
            AggregationError: a site withholds it.
        """
        losses = {site: report.train_loss for site, report in reports.items() if report.train_loss is not None}
        if missing := sorted(set(reports) - set(losses)):
            raise AggregationError(
                f"{', '.join(missing)} withholds the training loss, without which {type(self).__name__} has no "
                "weights; take a rule that does not look at losses, such as FedAvg."
            )
        return losses

    def check_plan(self, plan: Plan) -> None:
        """Refuse a plan in which sites would not report what the rule needs.

        Raises:
            ConfigurationError: a setting of the plan must be another.
        """

    def check_pull(self, mu: float) -> None:
        """Refuse a proximal term that the rule does not reckon with.

        Args:
            mu: of the term mu / 2 ||w - w_global||^2 that hooks add to the loss at the sites; 0 without one.

        Raises:
            ConfigurationError: it must be another.
        """

    def history(self) -> dict[str, Any]:
        """What the rule remembers of former rounds, as plain JSON; ``restore`` takes it back to the last bit."""
        return {}

    def restore(self, history: Mapping[str, Any]) -> None:
        """Take back what ``history`` gave, when a stopped run goes on."""

    # ------------------------------------------------------- what FLARE calls

    def accept(self, shareable: Shareable, fl_ctx: FLContext) -> bool:
        """Called by ScatterAndGather, which leaves out the site's name: it stands in the peer's properties."""
        self.fl_ctx = fl_ctx
        model = FLModelUtils.from_shareable(shareable, fl_ctx)
        if not (model.meta or {}).get("client_name"):
            model.meta = {**(model.meta or {}), "client_name": shareable.get_peer_prop(ReservedKey.IDENTITY_NAME, None)}
        try:
            self.accept_model(model)
        except FedsegError as error:
            self.warning(f"update left out: {error}")
            return False
        return True

    def accept_model(self, model: FLModel) -> None:
        """Take one site's update.

        Raises:
            AggregationError: it is no difference, or holds no arrays.
            RefusalError: its report is missing or wrong, or its arrays do not fit those of the other sites.
            SpoolError: it could not be kept on disk.
        """
        site = model.meta.get("client_name")
        if not isinstance(site, str) or not site:
            raise AggregationError("An update came without the name of its site.")
        if model.params_type != ParamsType.DIFF or not model.params:
            raise AggregationError(f"The update of {site} is not a weight difference (WEIGHT_DIFF) with arrays.")
        self.accept_update(site, model.params, parse_report(model.meta, score=SHARE))

    def accept_update(self, site: str, arrays: Mapping[str, np.ndarray], report: SiteReport) -> None:
        """Take one site's update whose report is read already.

        Raises:
            RefusalError: its arrays do not fit those of the other sites.
            SpoolError: it could not be kept on disk.
        """
        self._spool.put(site, arrays)
        self._reports[site] = report

    def aggregate_model(self) -> FLModel:
        """All accepted updates as one difference.

        Raises:
            AggregationError: there are no updates, or the rule's weights are unusable.
        """
        reports = {site: self._reports[site] for site in self._spool.sites}
        if not reports:
            raise AggregationError("No site sent an update; there is nothing to aggregate.")
        self.last_weights, self.last_scales, self.last_notes = {}, {}, {}
        update = self.combine(reports)
        logger.info("Weights of the round: %s", {site: round(w, 6) for site, w in self.last_weights.items()})
        return FLModel(params_type=ParamsType.DIFF, params=update)

    def reset_stats(self) -> None:
        """Forget the updates of the round."""
        self._spool.clear()
        self._reports.clear()

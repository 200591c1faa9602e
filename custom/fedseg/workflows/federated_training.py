"""Federated training: all sites of a round train at once, and a rule makes one update of theirs."""

from __future__ import annotations

from typing import Any

from fedseg.aggregators.base import Aggregator
from fedseg.aggregators.server_optimizers import ServerOptimizer
from fedseg.aggregators.shared_state import SharedState
from fedseg.workflows.run.round_protocol import Broadcast
from fedseg.workflows.run.settings import RunSettings, check_part, takes_run_settings
from fedseg.workflows.run.site_selection import SiteSelection
from fedseg.workflows.run.weighted_model import WeightedModel
from fedseg.workflows.run.workflow import Workflow
from fedseg.workflows.selection import AllSites


class FederatedTraining(Workflow):
    """Train one model over all sites that accept the job; see ``TrainingRun``.

    Each round sends the global weights to the selected sites and their updates to the aggregator. A site whose update
    has unknown names, other shapes or non-finite values is named and left out of the round.
    """

    @takes_run_settings
    def __init__(
        self,
        num_rounds: int,
        aggregator: Aggregator,
        server_optimizer: ServerOptimizer | None = None,
        shared_arrays: SharedState | None = None,
        selection: SiteSelection | None = None,
        **settings: Any,
    ) -> None:
        """Check the arguments.

        Args:
            num_rounds: training rounds.
            aggregator: how updates become one.
            server_optimizer: what is made of the aggregated update; None adds it as it is.
            shared_arrays: further arrays that travel with weights and updates, such as SCAFFOLD's control variates.
            selection: which sites take part in a round; None asks all.
            settings: see ``RunSettings``.
        """
        checked = RunSettings(num_rounds, **settings)
        check_part("aggregator", aggregator, Aggregator)
        check_part("server_optimizer", server_optimizer, ServerOptimizer | None)
        check_part("shared_arrays", shared_arrays, SharedState | None)
        model = WeightedModel(aggregator, server_optimizer, shared_arrays)
        super().__init__(checked, model, Broadcast(), AllSites() if selection is None else selection)

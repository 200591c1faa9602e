"""Federated training: all sites of a round train at once, and a rule makes one update of theirs."""

from __future__ import annotations

from typing import Any

from fedseg.aggregators.base import Aggregator
from fedseg.contract.arguments import takes_arguments_of
from fedseg.workflows.run.method_parts import MethodParts, take_parts
from fedseg.workflows.run.round_protocol import Broadcast
from fedseg.workflows.run.settings import RunSettings, check_part
from fedseg.workflows.run.weighted_model import WeightedModel
from fedseg.workflows.run.workflow import Workflow


class FederatedTraining(Workflow):
    """Train one model over all sites that accept the job; see ``TrainingRun``.

    Each round sends the global weights to the selected sites and their updates to the aggregator. A site whose update
    has unknown names, other shapes or non-finite values is named and left out of the round.
    """

    @takes_arguments_of(MethodParts, RunSettings)
    def __init__(self, num_rounds: int, aggregator: Aggregator, **arguments: Any) -> None:
        """Check the arguments.

        Args:
            num_rounds: training rounds.
            aggregator: how updates become one.
            arguments: see ``MethodParts`` and ``RunSettings``.
        """
        parts, settings = take_parts(arguments), RunSettings(num_rounds, **arguments)
        check_part("aggregator", aggregator, Aggregator)
        model = WeightedModel(aggregator, parts.server_optimizer, parts.shared_arrays)
        super().__init__(settings, model, Broadcast(), parts.asked)

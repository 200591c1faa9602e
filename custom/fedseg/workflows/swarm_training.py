"""Swarm learning: the sites merge their updates themselves, and the server sees no model."""

from __future__ import annotations

from typing import Any

from fedseg.aggregators.base import Aggregator
from fedseg.allowed import optional, whole
from fedseg.contract.arguments import takes_arguments_of
from fedseg.contract.combinations import COUNTED_DRAWS, KNOWN_DRAWS, OWN_MODELS
from fedseg.errors import ConfigurationError
from fedseg.workflows.peers.model import SwarmModel
from fedseg.workflows.peers.rounds import SwarmRounds
from fedseg.workflows.run.method_parts import MethodParts, take_parts
from fedseg.workflows.run.settings import RunSettings, check_part, refuse_given
from fedseg.workflows.run.workflow import Workflow


class SwarmTraining(Workflow):
    """Swarm learning (Warnat-Herresthal et al., Nature 2021) over FLARE's own connections; see ``SwarmRounds``.

    In each round another site merges: the first in an order that follows from the last model, which every site computes
    for itself. Models and updates go from site to site, encrypted for the receiver's certificate; the server relays
    them, starts rounds, knows who is there, and keeps reports, scores and digests.
    """

    withholds = frozenset({OWN_MODELS, KNOWN_DRAWS, COUNTED_DRAWS})

    @takes_arguments_of(MethodParts, RunSettings)
    def __init__(
        self,
        num_rounds: int,
        aggregator: Aggregator,
        min_peers: int | None = None,
        take_over: int = 120,
        **arguments: Any,
    ) -> None:
        """Check the arguments.

        Args:
            num_rounds: training rounds.
            aggregator: how the leader of a round makes one of the updates; a rule that remembers nothing.
            min_peers: fewest updates that are merged, and fewest sites that sign the block of a round; with fewer the
                run ends. None for more than half of the sites of the job, with which the ledger cannot fork.
            take_over: seconds that a leader may take to merge, and to hand the model out, before the next one is asked.
            arguments: see ``MethodParts``, of which all but ``selection`` have no meaning here and must be left out;
                and ``RunSettings``, of which ``keep_updates`` must be.

        Raises:
            ConfigurationError: a value is not allowed, or an argument has no meaning in a swarm.
        """
        refuse_given(
            "a swarm, whose server sees no model", arguments, "server_optimizer", "shared_arrays", "keep_updates"
        )
        optional(whole, "workflow.min_peers", min_peers)
        whole("workflow.take_over", take_over, least=5)
        parts, settings = take_parts(arguments), RunSettings(num_rounds, **arguments)
        check_part("aggregator", aggregator, Aggregator)
        if not settings.num_rounds:
            raise ConfigurationError("workflow.num_rounds", num_rounds, "a whole number of at least 1 in a swarm")
        model = SwarmModel(aggregator)
        super().__init__(settings, model, SwarmRounds(model, min_peers, take_over), parts.asked)

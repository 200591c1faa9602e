"""BrainTorrent: sites take newer models of their peers, one site at a time, and each ends with a model of its own."""

from __future__ import annotations

from typing import Any

from fedseg.allowed import whole
from fedseg.contract.arguments import takes_arguments_of
from fedseg.contract.combinations import COUNTED_DRAWS, KNOWN_DRAWS, ONE_START, SAME_SITES
from fedseg.errors import ConfigurationError
from fedseg.workflows.peers.turns import InTurns, OwnModels
from fedseg.workflows.run.method_parts import MethodParts, take_parts
from fedseg.workflows.run.settings import RunSettings, refuse_given
from fedseg.workflows.run.workflow import Workflow


class BrainTorrentTraining(Workflow):
    """BrainTorrent (Roy et al., 2019) over FLARE's own connections; see ``InTurns``.

    A site that is drawn asks all others for their versions, takes the models that are newer than what it merged before,
    merges them with its own by numbers of training cases, and trains. There is no order, and nobody leads. Models go
    from site to site, encrypted for the receiver's certificate; the server starts turns, relays, and keeps reports,
    scores, versions and digests. The result is a model of each site.
    """

    withholds = frozenset({SAME_SITES, KNOWN_DRAWS, COUNTED_DRAWS, ONE_START})

    @takes_arguments_of(MethodParts, RunSettings)
    def __init__(self, num_rounds: int, peer_timeout: int = 60, **arguments: Any) -> None:
        """Check the arguments.

        Args:
            num_rounds: the first round, in which all sites train, and after it one turn of one site in each.
            peer_timeout: seconds without progress after which an initiator goes on without a peer.
            arguments: see ``MethodParts``, of which all but ``selection``, who may be drawn, have no meaning here and
                must be left out; and ``RunSettings``, of which ``keep_updates`` and ``personal_models`` must be.

        Raises:
            ConfigurationError: a value is not allowed, or an argument has no meaning here.
        """
        where = "BrainTorrent, whose sites merge by numbers of cases and whose server sees no model"
        refused = (
            "aggregator",
            "server_optimizer",
            "shared_arrays",
            "keep_updates",
            "personal_models",
            "model_average",
        )
        refuse_given(where, arguments, *refused)
        whole("workflow.peer_timeout", peer_timeout, least=1)
        parts, settings = take_parts(arguments), RunSettings(num_rounds, **arguments)
        if not settings.num_rounds:
            raise ConfigurationError("workflow.num_rounds", num_rounds, "a whole number of at least 1 in BrainTorrent")
        model = OwnModels()
        super().__init__(settings, model, InTurns(model, peer_timeout), parts.asked)

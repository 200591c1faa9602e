"""Split training: the sites train the first part of a network, the server the rest."""

from __future__ import annotations

from typing import Any

from fedseg.allowed import whole
from fedseg.contract.arguments import takes_arguments_of
from fedseg.contract.combinations import EVERY_CASE, EVERY_REGION, OWN_MODELS
from fedseg.workflows.run.method_parts import MethodParts, take_parts
from fedseg.workflows.run.settings import RunSettings, refuse_given
from fedseg.workflows.run.workflow import Workflow
from fedseg.workflows.split.model import SplitModel
from fedseg.workflows.split.rounds import SplitRounds


class SplitTraining(Workflow):
    """SplitAVG (Zhang et al., IEEE J Biomed Health Inform 2022) and its variants; see ``SplitSettings``.

    1. ``prepare``, as in every run.
    2. Rounds, see ``SplitRounds``. With ``site_update: handed_on`` (SplitNN) each site has its turn instead, one pass
       over its own cases.
    3. A checkpoint after every round holds the server's part with its optimizer; the sites keep theirs.
    4. With ``site_update: separate`` every site sends its own part at the end, if its policy lets it, and the run
       leaves one model for each; else it leaves one model for all, and the best one.
    """

    needs = frozenset({EVERY_CASE, EVERY_REGION})
    withholds = frozenset({OWN_MODELS})

    @takes_arguments_of(MethodParts, RunSettings)
    def __init__(self, num_rounds: int, message_timeout: int = 60, start_timeout: int = 600, **arguments: Any) -> None:
        """Check the arguments.

        Args:
            num_rounds: training rounds.
            message_timeout: seconds that a site may take to answer a call.
            start_timeout: seconds for which a round waits for the other sites once the first one has scored what it
                received; a site that was left out of the round before, and gives no sign of life, is waited for
                ``message_timeout``.
            arguments: see ``MethodParts``, of which all but ``selection`` have no meaning here and must be left out,
                and ``RunSettings``, of which ``max_epsilon`` and ``keep_updates`` must be; of ``min_sites`` those count
                in a round whose samples came into an iteration.

        Raises:
            ConfigurationError: a value is not allowed, or an argument has no meaning in split training.
        """
        absent = "aggregator", "server_optimizer", "shared_arrays", "max_epsilon", "keep_updates"
        refuse_given("split training", arguments, *absent)
        whole("workflow.message_timeout", message_timeout)
        whole("workflow.start_timeout", start_timeout)
        model = SplitModel()
        rounds = SplitRounds(model, message_timeout, start_timeout)
        parts, settings = take_parts(arguments), RunSettings(num_rounds, **arguments)
        super().__init__(settings, model, rounds, parts.asked)

"""Split training: the sites train the first part of a network, the server the rest."""

from __future__ import annotations

from typing import Any

from fedseg.allowed import whole
from fedseg.workflows.run.settings import RunSettings, refuse_given, takes_run_settings
from fedseg.workflows.run.site_selection import SiteSelection
from fedseg.workflows.run.workflow import Workflow
from fedseg.workflows.selection import AllSites
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

    @takes_run_settings
    def __init__(
        self,
        num_rounds: int,
        message_timeout: int = 60,
        start_timeout: int = 600,
        aggregator: None = None,
        server_optimizer: None = None,
        shared_arrays: None = None,
        selection: SiteSelection | None = None,
        **settings: Any,
    ) -> None:
        """Check the arguments.

        Args:
            num_rounds: training rounds.
            message_timeout: seconds that a site may take to answer a call.
            start_timeout: seconds for which a round waits for the other sites once the first one has scored what it
                received; a site that was left out of the round before, and gives no sign of life, is waited for
                ``message_timeout``.
            aggregator, server_optimizer, shared_arrays: without a meaning here; must be left out, and so must
                ``max_epsilon`` and ``keep_updates``.
            selection: which sites take part in a round; None asks all.
            settings: see ``RunSettings``; of ``min_sites`` those count in a round whose samples came into an iteration.

        Raises:
            ConfigurationError: a value is not allowed, or an argument has no meaning in split training.
        """
        given = {"aggregator": aggregator, "server_optimizer": server_optimizer, "shared_arrays": shared_arrays}
        given |= {name: settings.get(name) for name in ("max_epsilon", "keep_updates")}
        refuse_given("split training", **given)
        whole("workflow.message_timeout", message_timeout)
        whole("workflow.start_timeout", start_timeout)
        model = SplitModel()
        rounds = SplitRounds(model, message_timeout, start_timeout)
        checked = RunSettings(num_rounds, **settings)
        super().__init__(checked, model, rounds, AllSites() if selection is None else selection)

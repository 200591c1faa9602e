"""Cross-site evaluation: every model at every site, models that never saw a site included."""

from __future__ import annotations

import copy
from typing import Any

from fedseg.aggregators.base import Aggregator
from fedseg.allowed import switch
from fedseg.contract.arguments import takes_arguments_of
from fedseg.errors import ConfigurationError
from fedseg.workflows.run.leave_one_out import LeaveOneOutRun
from fedseg.workflows.run.method_parts import MethodParts, take_parts
from fedseg.workflows.run.record import RunRecord
from fedseg.workflows.run.round_protocol import Broadcast, RoundProtocol
from fedseg.workflows.run.run_model import RunModel
from fedseg.workflows.run.selection_base import SiteSelection
from fedseg.workflows.run.settings import RunSettings, check_part
from fedseg.workflows.run.sites import Sites
from fedseg.workflows.run.training_run import TrainingRun
from fedseg.workflows.run.weighted_model import WeightedModel
from fedseg.workflows.run.workflow import Workflow


class CrossSiteEvaluation(Workflow):
    """Train with all sites, train once more without each of them, and score every model at every site.

    1. Federated training, as of ``FederatedTraining``, and the last evaluation.
    2. The matrix of ``workflow.cross_site``: the last and the best global model, each site's own last model, personal
       models, and the models that the job brings as files, each at every site.
    3. With ``leave_one_out`` the training is repeated without each site; the one that is left out opens no file of its
       training cases and scores the model that never saw it (leave-one-site-out, as Sheller et al., Sci Rep 2020).

    With ``num_rounds`` 0 nothing is trained: the models that the job brings as files are validated at sites that may
    never have trained. Sites whose policy says ``evaluate_only`` take part in all of it, and never train.
    """

    @takes_arguments_of(MethodParts, RunSettings)
    def __init__(self, num_rounds: int, aggregator: Aggregator, leave_one_out: bool = True, **arguments: Any) -> None:
        """Check the arguments.

        Args:
            num_rounds: training rounds of each training; 0 for none.
            aggregator: how updates become one.
            leave_one_out: whether the training is repeated without each site, which takes as many times as long.
            arguments: see ``MethodParts`` and ``RunSettings``, of which ``cross_site`` is true here in any case.

        Raises:
            ConfigurationError: a value is not allowed.
        """
        if arguments.setdefault("cross_site", True) is not True:
            raise ConfigurationError("workflow.cross_site", arguments["cross_site"], "true, or left out, in this job")
        parts, settings = take_parts(arguments), RunSettings(num_rounds, **arguments)
        check_part("aggregator", aggregator, Aggregator)
        self.leave_one_out = switch("workflow.leave_one_out", leave_one_out)
        model = WeightedModel(aggregator, parts.server_optimizer, parts.shared_arrays)
        super().__init__(settings, model, Broadcast(), parts.asked)
        # Taken before FLARE connects the parts with its engine, which cannot be copied.
        self._blank = copy.deepcopy((self.model, self.protocol, self.selection))

    def training_run(self, sites: Sites, record: RunRecord) -> TrainingRun:
        if not self.leave_one_out:
            return super().training_run(sites, record)

        def parts() -> tuple[RunModel, RoundProtocol, SiteSelection]:
            return copy.deepcopy(self._blank)

        return LeaveOneOutRun(self.settings, parts, sites, record)

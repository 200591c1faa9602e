"""Federated training in which the server sees no model and no update."""

from __future__ import annotations

from typing import Any

from fedseg.aggregators.base import Aggregator
from fedseg.contract.arguments import takes_arguments_of
from fedseg.contract.combinations import EPSILON, OWN_MODELS, SCALING, VALUES
from fedseg.errors import ConfigurationError
from fedseg.workflows.encrypted.model import LEAST_SITES, EncryptedRunModel
from fedseg.workflows.encrypted.two_step import TwoStep
from fedseg.workflows.run.method_parts import MethodParts, take_parts
from fedseg.workflows.run.settings import RunSettings, check_part
from fedseg.workflows.run.workflow import Workflow

_ABSENT = {
    "server_optimizer": "A server optimizer computes with the aggregated update, which the server has only encrypted.",
    "shared_arrays": "Shared arrays of a method are not encrypted.",
    "keep_updates": "The server sees no updates.",
}


class EncryptedTraining(Workflow):
    """Federated training with homomorphic encryption: each round has two steps.

    1. ``train``: the sites train, keep their updates, and report scalars, the largest value of their update among them.
    2. The rule makes weights of the reports, and ``upload`` tells the sites their weights and one scale for all. They
       answer with weighted ciphertexts, which the server adds as they arrive.
    3. A site that drops out in between is named and left out; the sites divide the sum by the weights that arrived.
       With fewer than two the round fails, since the sum of one is that site's update.

    The models that the run leaves are encrypted; ``fedseg decrypt-model`` decrypts them at a site.
    """

    withholds = frozenset({VALUES, SCALING, EPSILON, OWN_MODELS})

    @takes_arguments_of(MethodParts, RunSettings)
    def __init__(
        self,
        num_rounds: int,
        aggregator: Aggregator,
        mode: str = "compact",
        scale: float | None = None,
        min_sites: int = LEAST_SITES,
        **arguments: Any,
    ) -> None:
        """Check the arguments.

        Args:
            num_rounds: training rounds.
            aggregator: the rule; it must weigh by reports alone.
            mode: ``compact``, in which a decrypted sum errs by at most 2e-4 of the round's largest update, or
                ``exact``, by at most 1e-6; see ``privacy.encryption.fixed_point``.
            scale: largest absolute value that an update may have in every round; sites then do not tell theirs, and one
                with a larger value is refused. A job with a formal guarantee needs it: what sites tell beside noisy
                updates would be outside of the guarantee. None takes the largest value that a site reports.
            min_sites: see ``RunSettings``; of the sites' ciphertexts at least two must arrive in each round.
            arguments: see ``MethodParts`` and ``RunSettings``; ``server_optimizer``, ``shared_arrays`` and
                ``keep_updates`` have no meaning here and must be left out.
        """
        for name, why in _ABSENT.items():
            if value := arguments.get(name):
                shown = value if isinstance(value, bool) else type(value).__name__
                raise ConfigurationError(f"workflow.{name}", shown, "left out in an encrypted job", why)
        if type(min_sites) is int and min_sites < LEAST_SITES:
            why = "The sum of a single ciphertext is that site's update, which every other site could read."
            allowed = f"a whole number of at least {LEAST_SITES} in an encrypted job"
            raise ConfigurationError("workflow.min_sites", min_sites, allowed, why)
        parts, settings = take_parts(arguments), RunSettings(num_rounds, min_sites, **arguments)
        check_part("aggregator", aggregator, Aggregator)
        model = EncryptedRunModel(aggregator, mode, scale)
        super().__init__(settings, model, TwoStep(model), parts.asked)

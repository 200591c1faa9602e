"""A model of the site's own beside the global one: the base of methods that keep one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from fedseg.contract.combinations import PERSONAL_MODELS
from fedseg.contract.plan import Plan
from fedseg.contract.report import ReportField
from fedseg.models.model_file import write_model
from fedseg.networks.weights import Arrays
from fedseg.tasks.objective import MEAN
from fedseg.training.companions import Companion
from fedseg.training.hooks import LocalTraining, TrainingHook, personal_plan
from fedseg.training.site_round import scores_by_output

PERSONAL_MODEL = "personal.safetensors"
_NAME = "personal"


class PersonalModel(TrainingHook, ABC):
    """Trains a model v that stays at the site unless its policy gives it, and leaves the round's update as it is.

    In a site's first round v starts as the received global model. After each round's training a method changes it in
    ``train_personal``; v and its optimizer survive a restart. v lies at the site as ``personal.safetensors`` in the
    run's state folder, a model for ``fedseg evaluate`` and ``fedseg predict``. Its mean score over the validation cases
    goes into the report as ``personal_score``, and it is scored beside the global model in the last evaluation.

    The model of a site that trains alone:

    >>> from fedseg.contract.plan import parse_plan
    >>> class Alone(PersonalModel):
    ...     def train_personal(self, training):
    ...         training.train_companion("personal")
    >>> list(Alone().companions(parse_plan({"fedseg_version": "0.6.0", "task": "hippocampus"})))
    ['personal']

    Attributes:
        provides: see ``contract.combinations``.
        trained: whether training steps change v, for which it then has an optimizer.
    """

    provides: ClassVar[frozenset[str]] = frozenset({PERSONAL_MODELS})
    trained: ClassVar[bool] = True

    reports: ClassVar[Mapping[str, ReportField]] = {
        "personal_score": ReportField("mean score of the site's personal model")
    }

    @abstractmethod
    def train_personal(self, training: LocalTraining) -> None:
        """Change the companion ``personal``; the network has had all local epochs of the round."""

    def companions(self, plan: Plan) -> dict[str, Companion]:
        network = personal_plan(plan, [self]).build_network()
        return {_NAME: Companion(network, plan.training if self.trained else None)}

    def before_round(self, training: LocalTraining, global_weights: Arrays, round_number: int) -> None:
        if not training.companions[_NAME].started:
            training.companions[_NAME].load(global_weights)

    def after_round(self, training: LocalTraining, global_weights: Arrays, round_number: int) -> None:
        self.train_personal(training)
        if training.folder is not None:
            weights, network = training.companions[_NAME].weights(), personal_plan(training.plan, [self]).network
            path = training.folder / PERSONAL_MODEL
            write_model(path, training.plan, weights, round_number, own_arrays=(), network=network)

    def personal_model(self, training: LocalTraining) -> Arrays | None:
        companion = training.companions[_NAME]
        return companion.weights() if companion.started else None

    def report(self, training: LocalTraining) -> dict[str, float]:
        weights = self.personal_model(training)
        if weights is None:
            return {}
        score = scores_by_output(training.plan.objective, training.validate(weights))[MEAN]
        return {} if score is None else {"personal_score": score}

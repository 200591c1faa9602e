"""What every kind of run may be told, checked when its workflow is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fedseg.allowed import number, setting, switch, texts, whole
from fedseg.contract.arguments import takes_arguments_of
from fedseg.contract.combinations import EPSILON, OWN_MODELS, PERSONAL_MODELS, SAME_SITES, SCORES
from fedseg.contract.round_settings import MOST_EPOCHS
from fedseg.errors import ConfigurationError
from fedseg.site.state import check_run_id
from fedseg.workflows.run.stopping import StoppingRules, check_fields

_COUNT = "a whole number of at least 0"


@dataclass(frozen=True)
class RunSettings:
    """Settings of a run at the server, the same names as the arguments of the workflow that a job names.

    >>> RunSettings(num_rounds=3, round_timeout=60).prepare_seconds
    60
    >>> RunSettings(num_rounds=0)
    Traceback (most recent call last):
    fedseg.errors.ConfigurationError: workflow.num_rounds is 0, but must be a whole number of at least 1.

    Attributes:
        num_rounds: training rounds; 0 only with ``cross_site``, for a run that scores the models that the job brings.
        min_sites: sites that must accept the job, and answer in each round (in a round that asks fewer sites, all of
            them); with fewer the job fails.
        round_timeout: seconds after which a round's training, or the last evaluation, ends without the sites that
            have not answered; 0 waits for all.
        prepare_timeout: the same for ``prepare``, in which sites start their processes and check their data; None takes
            ``round_timeout``.
        site_silence: seconds without a sign of life (a site's process gives one every 10 s, also while it trains) after
            which no task waits for a site any more; 0 waits on. It is asked again once it is heard of.
        target_dice, patience, max_hours, max_epsilon: see ``StoppingRules``.
        keep_updates: store every round's global model and updates beside the results.
        keep_checkpoints: how many of the last rounds server and sites keep to continue from; 0 keeps all.
        fresh_states: let sites that have lost what they kept of the run (private layers, personal models, and the like)
            go on without it; a site that has lost its optimizer's state only goes on in any case. Both is noted.
        cross_site: whether at the end all models (the last and the best global one, each site's own last one, personal
            ones, and those that the job brings as files) are scored at all sites.
        personal_models: whether at the end sites are asked for the personal model that their method keeps, which the
            run then has as files, for sites that were never there; a site gives it only where its policy says so.
        fine_tune: local epochs for which each site goes on with the last model after the last round, for itself; the
            result stays there, and is scored beside the last model. 0 leaves it out.
        model_average: decay of an exponential moving average of the global models over the rounds, see
            ``ModelAverage``, which is stored and scored beside the last and the best model; None keeps none.
        evaluate_only: names of sites that do not train in this run, and score the models only.
        run_id: keys the state of server and sites; if None it is made at the first start. In a federation it is the id
            of that job, so that whoever knows the job can continue the run.
        resume: continue the stopped run ``run_id`` from its checkpoint at the server.
        resume_round: the finished round to continue after; None for the last one.
        task_check_period: seconds between looks at FLARE's tasks; small, since rounds may be short.
    """

    num_rounds: int = field(metadata={"check": partial(whole, least=0)})
    min_sites: int = setting(1, whole)
    round_timeout: int = setting(0, whole, least=0, allowed=_COUNT)
    prepare_timeout: int | None = setting(None, whole, least=0, allowed=_COUNT)
    site_silence: int = setting(120, whole, least=0, allowed=_COUNT)
    target_dice: float | None = None
    patience: int | None = None
    max_hours: float | None = None
    max_epsilon: float | None = None
    keep_updates: bool = setting(False, switch)
    keep_checkpoints: int = setting(2, whole, least=0, allowed=_COUNT)
    fresh_states: bool = setting(False, switch)
    cross_site: bool = setting(False, switch)
    personal_models: bool = setting(False, switch)
    fine_tune: int = setting(0, whole, least=0, most=MOST_EPOCHS, allowed=f"a whole number from 0 to {MOST_EPOCHS}")
    model_average: float | None = setting(None, number, least=0, below=1, allowed="a number from 0 to below 1")
    evaluate_only: tuple[str, ...] | None = setting(None, texts)
    run_id: str | None = None
    resume: bool = setting(False, switch)
    resume_round: int | None = setting(None, whole, least=0, allowed=_COUNT)
    task_check_period: float = setting(0.02, number, above=0, below=60, allowed="seconds above 0 and below 60")

    def __post_init__(self) -> None:
        check_fields(self, "workflow")
        _ = self.stopping
        if not self.num_rounds and not self.cross_site:
            raise ConfigurationError("workflow.num_rounds", self.num_rounds, "a whole number of at least 1")
        if self.run_id is not None:
            check_run_id(self.run_id)
        elif self.resume:
            raise ConfigurationError("workflow.resume", True, "false without run_id, which says what to continue")
        if self.resume_round is not None and not self.resume:
            raise ConfigurationError("workflow.resume_round", self.resume_round, "null unless workflow.resume is true")

    @property
    def part_title(self) -> str:
        """What messages call the first stopping rule, since of the settings those need something of the sites."""
        return next((name for name in ("target_dice", "patience", "max_epsilon") if self._has(name)), "")

    @property
    def needs(self) -> frozenset[str]:
        """See ``contract.combinations``."""
        scores = {SCORES, SAME_SITES} if self._has("target_dice") or self._has("patience") else set()
        return frozenset(scores | ({EPSILON} if self._has("max_epsilon") else set()))

    @property
    def parts(self) -> tuple[object, ...]:
        """What else needs something of the sites, beside these settings themselves."""
        asked = ((_CrossSite, self.cross_site), (_PersonalModels, self.personal_models))
        return tuple(part() for part, is_asked in asked if is_asked)

    def _has(self, name: str) -> bool:
        return getattr(self, name) is not None

    @property
    def prepare_seconds(self) -> int:
        """Seconds after which ``prepare`` ends without the sites that have not answered; 0 waits for all."""
        return self.round_timeout if self.prepare_timeout is None else self.prepare_timeout

    @property
    def stopping(self) -> StoppingRules:
        """When the run ends before its last round."""
        return StoppingRules(self.target_dice, self.patience, self.max_hours, self.max_epsilon)


class _CrossSite:
    """What an evaluation across sites needs, see ``contract.combinations``."""

    part_title = "workflow.cross_site"
    needs = frozenset({OWN_MODELS})


class _PersonalModels:
    """What it takes that a run keeps personal models, see ``contract.combinations``."""

    part_title = "workflow.personal_models"
    needs = frozenset({OWN_MODELS, PERSONAL_MODELS})


takes_run_settings = takes_arguments_of(RunSettings)
"""For a constructor that ends with ``**settings``, see ``takes_arguments_of``."""


def check_part(name: str, part: Any, kind: Any) -> None:
    """Refuse what is no such part of a method.

    Raises:
        ConfigurationError: names the part.
    """
    if not isinstance(part, kind):
        shown = part if isinstance(part, str | int | float) else type(part).__name__
        allowed = f'the {name} of a method: {{"path": ..., "args": {{...}}}}'
        raise ConfigurationError(f"workflow.{name}", shown, allowed, "docs/reference/method-table.md lists them.")


def refuse_given(where: str, arguments: Mapping[str, Any], *names: str) -> None:
    """Refuse arguments that have no meaning in a kind of run.

    Args:
        where: words for this kind of run, such as ``split training``.
        arguments: of its constructor; what is None or false counts as left out.
        names: of those that have no meaning.

    Raises:
        ConfigurationError: names the first that is given.
    """
    for name in names:
        if arguments.get(name):
            raise ConfigurationError(f"workflow.{name}", "given", f"left out in {where}")

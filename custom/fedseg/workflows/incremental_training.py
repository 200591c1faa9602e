"""Institutional incremental learning: one model visits each site once, and trains there to the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedseg.allowed import optional, whole
from fedseg.contract.arguments import takes_arguments_of
from fedseg.contract.combinations import CARRIED, LAST_STEP, SAME_SITES, SCORES
from fedseg.contract.plan import Plan
from fedseg.contract.round_numbers import nth
from fedseg.contract.round_settings import MOST_EPOCHS, RoundSettings
from fedseg.contract.visit_order import Order, parse_order
from fedseg.errors import ConfigurationError
from fedseg.workflows.cyclic_training import CarriedModel, InTurn
from fedseg.workflows.run.method_parts import MethodParts, take_parts
from fedseg.workflows.run.round_protocol import RoundsOver
from fedseg.workflows.run.run_state import RunState
from fedseg.workflows.run.selection_base import Selection
from fedseg.workflows.run.settings import RunSettings, refuse_given
from fedseg.workflows.run.workflow import Workflow

_TURNS = 2
_RETURN = 600
"""Seconds for which a round waits for absent sites where the job has no ``round_timeout``."""


class IncrementalModel(CarriedModel):
    """A model whose last state is the result: each is scored at another site, so none of them is known as the best.

    Attributes:
        turns: that each site has had, which checkpoints keep.
    """

    keeps_former = False

    def __init__(self, rule: dict[str, Any], patience: int | None, shared_arrays: Any = None) -> None:
        super().__init__({**rule, "local_patience": patience}, shared_arrays)
        self._patience = patience
        self.turns: dict[str, int] = {}

    def history(self) -> dict[str, Any]:
        return {**super().history(), "turns": dict(self.turns)}

    def restore(self, number: int, arrays: Mapping[str, np.ndarray], history: Mapping[str, Any]) -> None:
        super().restore(number, arrays, history)
        self.turns = dict(history["turns"])

    def check_plan(self, plan: Plan) -> None:
        super().check_plan(plan)
        if self._patience is not None and plan.training.weight_average:
            why = "With patience a site leaves its best model, and not the mean of those on the way to it."
            raise ConfigurationError(
                "training.weight_average", plan.training.weight_average, "0 with workflow.local_patience", why
            )


class OnePass(InTurn):
    """Each round is one visit: to the next site in the order that was not visited yet and is there.

    A site that is absent, or whose visit fails, has its turn again after the others; after its second failed turn it
    is named and left out. Where all sites that still wait for their second turn are absent, the round waits until one
    of them is back, for ``round_timeout`` seconds at most, or ten minutes where that is 0.

    Attributes:
        needs, withholds: see ``contract.combinations``.
    """

    part_title = "workflow.local_patience"

    def __init__(self, order: Order, patience: int | None, model: IncrementalModel) -> None:
        """Choose the order, and how long a site trains; see ``IncrementalTraining``."""
        super().__init__(order)
        self._patience, self._model = patience, model
        self.needs = frozenset({SCORES} if patience else ())
        self.withholds = frozenset({LAST_STEP} if patience else ())
        self._tried: list[str] = []
        self._waited = False

    def begin(self, run: RunState) -> None:
        """See ``InTurn``; with patience, refuse sites that could not know when to stop."""
        super().begin(run)
        if self._patience is not None and (lacking := sorted(s for s, f in run.facts.items() if not f.val_cases)):
            allowed = f"left out, since {', '.join(lacking)} has no validation case by which a model could be better"
            raise ConfigurationError("workflow.local_patience", self._patience, allowed)

    def unfit(self, run: RunState, site: str) -> str | None:
        if self._patience is not None and not run.facts[site].val_cases:
            return "it has no validation case, by which workflow.local_patience judges"
        return super().unfit(run, site)

    def round_settings(self, number: int) -> RoundSettings:
        """The whole course of the learning rate at each site."""
        return RoundSettings(patience=self._patience, own_schedule=True)

    def total_rounds(self, run: RunState) -> int:
        return min(run.settings.num_rounds, len(run.rounds) + len(self._waiting(run)))

    def collect(self, run: RunState, asked: Sequence[str]) -> None:
        self._tried, self._waited = [], False
        while waiting := self._waiting(run):
            site = self._next(run, waiting)
            self._model.turns[site] = self._model.turns.get(site, 0) + 1
            if run.sites.absence(site) is None:
                self._tried.append(site)
            if self.visit(run, site):
                return
            if self._model.turns[site] == _TURNS:
                run.note(site, f"is left out: it had {_TURNS} turns, and the model was not trained there")
            else:
                self.note_absent(run, [site])
        raise RoundsOver("No further site could be visited.")

    def asked(self, run: RunState, chosen: Selection) -> Selection:
        visited = self._visited(run)
        waits = dict.fromkeys(run.facts, "waits for its turn")
        done = {site: f"was visited in round {nth(number)}" for site, number in visited.items()}
        now = dict.fromkeys(self._tried, "its turn has come")
        return Selection(list(self._tried), {**waits, **done, **now}, chosen.draw)

    def participants(self, run: RunState) -> list[str]:
        """All that had their turn: ``min_sites`` is about the sites that accept the job, since a round has one."""
        return sorted(self._tried)

    def _next(self, run: RunState, waiting: Sequence[str]) -> str:
        """The site whose turn it is; the second turn of an absent one waits for its return, but not for ever."""
        if not self._model.turns.get(waiting[0]):
            return waiting[0]
        if not self._waited and all(run.sites.absence(site) for site in waiting):
            run.sites.await_return(waiting, run.settings.round_timeout or _RETURN)
            self._waited = True
        return next((site for site in waiting if run.sites.absence(site) is None), waiting[0])

    def _visited(self, run: RunState) -> dict[str, int]:
        """The round in which each site was visited."""
        return {site: entry["round"] for entry in run.rounds for site in entry["sites"]}

    def _waiting(self, run: RunState) -> list[str]:
        """The sites that are still to be visited, those first that had fewer turns."""
        visited = self._visited(run)
        left = [site for site in self.sorted_sites(run, sorted(run.facts)) if site not in visited]
        turns = {site: self._model.turns.get(site, 0) for site in left}
        return sorted((site for site in left if turns[site] < _TURNS), key=lambda site: turns[site])


class IncrementalTraining(Workflow):
    """Carry one model over each site once (institutional incremental learning, Sheller et al., BrainLes 2018).

    A round is one visit. The site trains all its local epochs from what the site before it has left, with the whole
    course of the learning rate; with ``local_patience`` it stops when its own validation cases have seen no better
    model for so many epochs, and leaves the model as it was at its best there. The last model is the result: a model
    forgets what it learned from sites that it visited early, which is what the paper found.
    """

    provides = frozenset({CARRIED})
    withholds = frozenset({SAME_SITES})

    @takes_arguments_of(MethodParts, RunSettings)
    def __init__(
        self, num_rounds: int, order: Any = "name", local_patience: int | None = None, **arguments: Any
    ) -> None:
        """Check the arguments.

        Args:
            num_rounds: visits at most; the run ends earlier when every site was visited.
            order: of the visits: ``name``, ``largest_first`` or ``smallest_first`` by number of training cases,
                ``random`` by the seed, or a list of all sites.
            local_patience: local epochs in a row without a better validation score at the site after which the model
                goes on, from 1 to 1000; ``training.local_epochs`` is the most then. None trains all of them.
            arguments: see ``MethodParts``, of which ``aggregator``, ``server_optimizer`` and ``selection`` have no
                meaning here, and of ``shared_arrays`` those alone that are handed on with the model; and
                ``RunSettings``, of which ``target_dice`` and ``patience`` must be left out, since every round is scored
                at another site.

        Raises:
            ConfigurationError: a value is not allowed, or an argument has no meaning here.
        """
        refuse_given("incremental learning", arguments, "aggregator", "server_optimizer", "selection")
        parts, settings = take_parts(arguments), RunSettings(num_rounds, **arguments)
        optional(whole, "workflow.local_patience", local_patience, most=MOST_EPOCHS)
        checked = parse_order("workflow.order", order)
        shown = list(checked) if isinstance(checked, tuple) else checked
        rule = {"name": "IncrementalLearning", "order": shown}
        model = IncrementalModel(rule, local_patience, parts.shared_arrays)
        protocol = OnePass(checked, local_patience, model)
        super().__init__(settings, model, protocol, parts.asked)

"""Cyclic weight transfer: one model visits site after site, again and again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from nvflare.app_common.abstract.fl_model import FLModel

from fedseg.aggregators.shared_state import SharedState
from fedseg.contract.arguments import takes_arguments_of
from fedseg.contract.combinations import CARRIED
from fedseg.contract.protocol import MODEL_NAME, SPLITS
from fedseg.contract.scores import is_withheld
from fedseg.contract.update import Update
from fedseg.contract.visit_order import Order, in_order, not_listed, parse_order
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.networks.weights import join_shared
from fedseg.workflows.run.method_parts import MethodParts, take_parts
from fedseg.workflows.run.round_protocol import RoundProtocol
from fedseg.workflows.run.run_model import Keep
from fedseg.workflows.run.run_state import RunState
from fedseg.workflows.run.scores import UNREADABLE, readable
from fedseg.workflows.run.settings import RunSettings, refuse_given
from fedseg.workflows.run.sharing_model import SharingModel
from fedseg.workflows.run.workflow import Workflow

_SCORED = "validation"


class CarriedModel(SharingModel):
    """The model between two visits: each update is added as it comes, after the checks that any update goes through.

    Arrays that travel with it, such as the importance of its weights, are handed on from visit to visit, too.

    Attributes:
        visited: the sites whose updates were accepted in this round, in the order of the visits.
    """

    def __init__(self, rule: dict[str, Any], shared_arrays: SharedState | None = None) -> None:
        """Begin without weights.

        Args:
            rule: name and arguments of the transfer, for the run's results.
            shared_arrays: see ``SharingModel``.

        Raises:
            ConfigurationError: the shared arrays are combined over sites that train at the same time.
        """
        if shared_arrays is not None and not shared_arrays.handed_on:
            allowed = "left out, or arrays that are handed on from site to site with the model"
            why = "They are combined over the sites of a round; here one site trains at a time."
            raise ConfigurationError("workflow.shared_arrays", type(shared_arrays).__name__, allowed, why)
        super().__init__(shared_arrays)
        self.components = (shared_arrays,)
        self.visited: list[str] = []
        self._rule = rule

    def begin_round(self, keep: Keep | None = None) -> None:
        super().begin_round(keep)
        self.visited = []

    def accept_update(self, site: str, update: Update) -> None:
        arrays, shared = self.check(site, update)
        if self.shared_arrays is not None:
            self.shared_arrays.accept(site, shared)
        self.keep_arrays(site, join_shared(arrays, shared))
        self.apply(arrays)
        if self.shared_arrays is not None:
            self.shared_arrays.finish_round({site: update.report.num_samples})
        self.reports[site], self.steps[site] = update.report, update.steps
        self.visited.append(site)

    def describe(self) -> dict[str, Any]:
        beside = {} if self.shared_arrays is None else {"shared_arrays": self.shared_arrays.describe()}
        return {**self._rule, **beside}

    def describe_round(self) -> dict[str, Any]:
        """Also that the model is carried, which is what a report says in the place of weights, and the visits."""
        return {**super().describe_round(), "carried": True, "visited": list(self.visited)}


class InTurn(RoundProtocol):
    """The sites of a round are visited one after the other, each once.

    A site that is absent when its turn comes is visited after the others, or else named and passed over in this round.
    Before its first visit a round has its model scored at all of its sites; these are the scores that the round has in
    the results, since those of a visit are of another model at each site.
    """

    def __init__(self, order: Order = "name") -> None:
        """Choose the order; see ``contract.visit_order``.

        Raises:
            ConfigurationError: it is none.
        """
        self.order = parse_order("workflow.order", order)
        self._passed_over: set[str] = set()

    def begin(self, run: RunState) -> None:
        """Refuse an order that leaves out a site, and note sites that it names and that take no part.

        Raises:
            ConfigurationError: names the sites.
        """
        if missing := not_listed(self.order, sorted(run.facts)):
            allowed = f"one of the named orders, or a list of all sites, {', '.join(missing)} included"
            raise ConfigurationError("workflow.order", list(self.order), allowed)
        for site in self.order if isinstance(self.order, tuple) else ():
            if site not in run.facts:
                run.note(site, "is named in workflow.order, but does not take part; it is passed over")

    def unfit(self, run: RunState, site: str) -> str | None:
        return "workflow.order is a list that does not name it" if not_listed(self.order, [site]) else None

    def sorted_sites(self, run: RunState, sites: Sequence[str]) -> list[str]:
        """Some of the sites of the run in the order of their visits, which is the same whoever of them is asked."""
        sizes = {site: facts.num_samples for site, facts in run.facts.items()}
        return [site for site in in_order(self.order, sizes, run.plan.seed, "order") if site in sites]

    def collect(self, run: RunState, asked: Sequence[str]) -> None:
        scores = self._score_round(run, asked)
        self.note_absent(run, [site for site in run.facts if site not in asked])
        again: list[str] = []
        for site in self.sorted_sites(run, asked):
            if not self.visit(run, site) and run.sites.absence(site) is not None:
                again.append(site)
        for site in again:
            self.visit(run, site)
        self.note_absent(run, again)
        for site, report in run.model.reports.items():
            part = scores.get(site, {})
            values = {"val_loss": part.get("loss"), "val_scores": part.get(run.plan.objective.primary.name, {})}
            run.model.reports[site] = replace(report, val_cases=part.get("cases", 0), **values)

    def visit(self, run: RunState, site: str) -> bool:
        """Have a site train what the one before it has left; whether its update was accepted."""
        if run.sites.absence(site) is not None:
            return False
        # Each visit moves the model, which goes by the number of the round before until this one is finished.
        received = run.model.digest_after(run.number - 1)
        run.record.append("visit", round=run.number, site=site, start=run.start_id, received=received)
        self.train(run, [site])
        self._passed_over.discard(site)
        return site in run.model.reports

    def note_absent(self, run: RunState, sites: Sequence[str]) -> None:
        """Note once of each of these sites that is absent that it is passed over."""
        for site in sites:
            why = run.sites.absence(site)
            if why is not None and site not in self._passed_over:
                self._passed_over.add(site)
                run.note(site, f"is passed over: {why}; it is visited when it is back")

    def _score_round(self, run: RunState, asked: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Scores of the round's model on the validation cases of each site that tells them."""
        scoring = [site for site in asked if run.facts[site].val_cases]
        meta = {SPLITS: [_SCORED], MODEL_NAME: "round"}
        answers = self.score(run, run.number - 1, scoring, meta, partial(_accept_scores, run))
        return {site: answer.metrics[_SCORED] for site, answer in answers.items() if _SCORED in answer.metrics}


def _accept_scores(run: RunState, site: str, answer: FLModel) -> None:
    """Accept a site's scores of a round if they can be compared, or that it withholds them."""
    metrics = answer.metrics or {}
    if is_withheld(metrics.get(_SCORED, metrics.get("final"))):
        return
    scores = {"final": metrics.get(_SCORED)}
    if not readable(scores, run.plan.objective) or metrics[_SCORED]["cases"] != run.facts[site].val_cases:
        raise RefusalError("report", UNREADABLE)


class CyclicTraining(Workflow):
    """Carry one model from site to site (Chang et al., J Am Med Inform Assoc 2018).

    This is the cyclic institutional incremental learning of Sheller et al. (BrainLes 2018), too. In each round the
    sites are visited one after the other, by the ordinary task ``train``: a site trains its local epochs from what it
    receives, and what it receives is what the site before it has left. A site that fails, or whose update does not fit,
    is named and passed over; one that is absent is visited last, or in a later round.

    A site scores what it receives, as in every job. That is another model at each site, so those scores cannot tell
    which round's model is the best. Before its first visit a round therefore has its model scored at all of its sites,
    and these are the scores that the round has in the results, and by which the best model is chosen and training stops
    early. It costs one more model to each site, and one more scoring, in every round.
    """

    provides = frozenset({CARRIED})

    @takes_arguments_of(MethodParts, RunSettings)
    def __init__(self, num_rounds: int, order: Any = "name", **arguments: Any) -> None:
        """Check the arguments.

        Args:
            num_rounds: training rounds; in each every site is visited once.
            order: of the visits of a round: ``name``, ``largest_first`` or ``smallest_first`` by number of training
                cases, ``random`` by the seed (the same in every round), or a list of all sites.
            arguments: see ``MethodParts``, of which ``aggregator`` and ``server_optimizer`` have no meaning here, and
                of ``shared_arrays`` those alone that are handed on with the model; and ``RunSettings``, of which
                ``round_timeout`` is that of a single visit.

        Raises:
            ConfigurationError: a value is not allowed, or an argument has no meaning here.
        """
        refuse_given("cyclic weight transfer", arguments, "aggregator", "server_optimizer")
        parts, settings = take_parts(arguments), RunSettings(num_rounds, **arguments)
        protocol = InTurn(order)
        shown = list(protocol.order) if isinstance(protocol.order, tuple) else protocol.order
        model = CarriedModel({"name": "CyclicWeightTransfer", "order": shown}, parts.shared_arrays)
        super().__init__(settings, model, protocol, parts.asked)

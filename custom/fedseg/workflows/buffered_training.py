"""Asynchronous training: updates count in the order in which they arrive, and no site waits for a slow one."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from math import ceil
from typing import Any

import numpy as np
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.app_constant import AppConstants

from fedseg.aggregators.base import Aggregator
from fedseg.aggregators.server_optimizers import ServerOptimizer
from fedseg.aggregators.shared_state import SharedState
from fedseg.aggregators.weighted import WeightedAggregator
from fedseg.allowed import setting, whole
from fedseg.contract.arguments import takes_arguments_of
from fedseg.contract.combinations import COUNTED_DRAWS, DURATION, KNOWN_DRAWS, ONE_START, SAME_SITES
from fedseg.contract.plan import Plan
from fedseg.contract.protocol import LINEAGE
from fedseg.contract.round_numbers import nth
from fedseg.contract.shapes import array_owners
from fedseg.errors import ConfigurationError
from fedseg.workflows.run.arrivals import Arrival, Arrivals
from fedseg.workflows.run.late_updates import IN_FLIGHT, Late, LateSettings
from fedseg.workflows.run.method_parts import MethodParts, take_parts
from fedseg.workflows.run.round_protocol import UPDATE_REFUSED, JobParts, RoundProtocol
from fedseg.workflows.run.run_model import Keep, RunModel
from fedseg.workflows.run.run_state import RunState
from fedseg.workflows.run.selection_base import SiteSelection
from fedseg.workflows.run.settings import RunSettings, check_part, refuse_given
from fedseg.workflows.run.sites import Sent, single_messages
from fedseg.workflows.run.weighted_model import WeightedModel
from fedseg.workflows.run.workflow import Workflow


@dataclass(frozen=True)
class BufferSettings(LateSettings):
    """When a round ends, and what becomes of late updates; the same names as the arguments of ``BufferedTraining``.

    >>> [BufferSettings().size(sites, min_sites=1) for sites in (1, 3, 8)]
    [1, 1, 4]

    Attributes:
        buffer: updates with which a round ends; None for half of the sites, and at least ``min_sites``.
    """

    buffer: int | None = setting(None, whole)

    def size(self, sites: int, min_sites: int) -> int:
        """Updates with which a round ends."""
        return self.buffer or max(1, sites // 2, min_sites)

    def describe(self) -> dict[str, Any]:
        """Names and values that decide."""
        return {"buffer": self.buffer, **super().describe()}


class LateModel(RunModel):
    """A model whose updates may be late.

    Attributes:
        settings: when a round ends, and how late updates count.
        late: what is known of the updates of the round.
    """

    settings: BufferSettings
    late: Late

    def drop_late_scores(self) -> None:
        """Forget the scores of late sites, which are of an older model than those of the round."""
        for site, staleness in self.late.staleness.items():
            if staleness:
                self.reports[site] = replace(self.reports[site], val_loss=None, val_scores={})


class DiscountedModel(WeightedModel, LateModel):
    """A model to which late updates contribute less: each is scaled by a factor of its staleness, beside the rule."""

    def __init__(
        self,
        aggregator: WeightedAggregator,
        server_optimizer: ServerOptimizer | None = None,
        shared_arrays: SharedState | None = None,
        settings: BufferSettings | None = None,
    ) -> None:
        super().__init__(aggregator, server_optimizer, shared_arrays)
        self.rule, self.settings, self.late = aggregator, settings or BufferSettings(), Late()

    def check_plan(self, plan: Plan) -> None:
        super().check_plan(plan)
        if self.takes_shared_arrays:
            why = "They would be combined from sites that received the arrays of different rounds."
            expected = "left out, or arrays that are sent before the first round only, in buffered training"
            raise ConfigurationError("workflow.shared_arrays", type(self.shared_arrays).__name__, expected, why)

    def begin_round(self, keep: Keep | None = None) -> None:
        super().begin_round(keep)
        self.late.begin_round()

    def finish_round(self) -> None:
        late = {site: staleness for site, staleness in sorted(self.late.staleness.items()) if staleness}
        self.rule.discounts = {site: self.settings.factor(staleness) for site, staleness in late.items()}
        super().finish_round()
        self.drop_late_scores()

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), **self.settings.describe()}

    def describe_round(self) -> dict[str, Any]:
        """Also staleness, and what is under way."""
        described = super().describe_round()
        return {**described, "notes": {**described["notes"], **self.late.notes()}}

    def history(self) -> dict[str, Any]:
        return {"rule": super().history(), "late": self.late.history()}

    def restore(self, number: int, arrays: Mapping[str, np.ndarray], history: Mapping[str, Any]) -> None:
        super().restore(number, arrays, history["rule"])
        self.late.restore(history["late"])


class Buffered(RoundProtocol):
    """A round ends with its ``buffer``-th update, and a site that has answered is sent the newest model at once.

    A site trains one task at a time, and each model once: after an update of the newest model it rests until the
    round ends. An update that arrives while the round already has one of its site waits for the next round. A round
    ends with fewer updates when no site can answer any more, or after ``round_timeout``; sites train on beyond it.

    Every update is written to the server's disk before it is counted, and stays there until a checkpoint holds what it
    became. A run that is resumed takes those first, so that no update is lost that the server had taken.

    >>> from fedseg.aggregators.fedavg import FedAvg
    >>> Buffered(DiscountedModel(FedAvg())).encrypts
    False
    """

    def __init__(self, model: LateModel) -> None:
        self._model = model
        self._sent: dict[str, tuple[int, Sent]] = {}
        self._answered: dict[str, int] = {}
        self._arrived: deque[Arrival] = deque()
        self._taken: list[int] = []

    def check_job(self, job: JobParts) -> None:
        super().check_job(job)
        for name, owner in array_owners(job.plan).items():
            if owner.from_round and owner.sites:
                why = "Server and site would not agree on the round in which it joins."
                raise ConfigurationError("network.parts", name, "arrays that take part from the first round", why)

    def begin(self, run: RunState) -> None:
        """Take what had arrived when the run was stopped, and note the updates that were lost then."""
        self._journal = Arrivals(run.checkpoints.folder / "arrivals")
        if self._size(run) == 1:
            # Each model is scored at one site then, and sites differ in how hard their cases are.
            self._model.keeps_former = False
        if not run.settings.resume:
            return
        late = self._model.late
        for arrival in self._journal.left(late.next, late.waiting):
            if arrival.site in run.facts and arrival.round <= len(run.rounds):
                self._arrived.append(arrival)
                self._answered[arrival.site] = max(arrival.round, self._answered.get(arrival.site, -1))
            else:
                self._journal.remove([arrival.number])
        held = {(arrival.site, arrival.round) for arrival in self._arrived}
        for site, begun in (run.rounds[-1]["notes"][IN_FLIGHT] if run.rounds else {}).items():
            if (site, begun) not in held:
                run.note(
                    site, f"was training the model of round {nth(begun)} when the run was stopped; that update is lost"
                )

    def collect(self, run: RunState, asked: Sequence[str]) -> None:
        # The checkpoint of the round before holds what these became.
        self._journal.remove(self._taken)
        self._taken = []
        size = min(self._size(run), len(asked))
        begin, limit = time.monotonic(), run.settings.round_timeout
        while True:
            self._find_idle(run)
            self._accept_arrived(run, size)
            left = ceil(begin + limit - time.monotonic()) if limit else 0
            if len(run.model.reports) >= size or (limit and left <= 0):
                break
            self._send(run, asked)
            run.sites.wait(lambda: self._has_news(run, asked), left)
            if not self._has_news(run, asked):
                break
        self._find_idle(run)
        late = self._model.late
        # What arrives from now on has this number or a larger one.
        late.next = self._journal.next
        waiting = list(self._arrived)
        late.waiting = [arrival.number for arrival in waiting]
        held = {arrival.site: arrival.round for arrival in waiting}
        late.in_flight = held | {site: begun for site, (begun, _) in self._sent.items()}

    def finish(self, run: RunState) -> None:
        """Withdraw the tasks of sites that still train; ``in_flight`` of the last round names them."""
        for _, sent in self._sent.values():
            sent.withdraw()
        self._journal.remove([*self._taken, *(arrival.number for arrival in self._arrived)])
        self._sent.clear()
        self._arrived.clear()

    # ------------------------------------------------------------------ parts of a round

    def _size(self, run: RunState) -> int:
        """Updates with which a round ends, where so many sites are asked."""
        return self._model.settings.size(len(run.facts), run.settings.min_sites)

    def _find_idle(self, run: RunState) -> None:
        """Free the sites that have answered; those that are absent are noted, and can be asked again later."""
        for site, (begun, sent) in list(self._sent.items()):
            if sent.answered:
                self._answered[site] = begun
            elif run.sites.absence(site) is None:
                continue
            else:
                sent.withdraw()
                run.sites.note_silence(site, AppConstants.TASK_TRAIN)
            del self._sent[site]

    def _is_ready(self, run: RunState, site: str) -> bool:
        """Whether a site has nothing to do, and there is a model that it has not trained."""
        return site not in self._sent and self._answered.get(site, -1) < run.number and run.sites.absence(site) is None

    def _send(self, run: RunState, asked: Sequence[str]) -> None:
        ready = sorted(site for site in asked if self._is_ready(run, site))
        for site in run.sites.present(ready):
            (message,) = single_messages(self.message(run, [site]))
            message.meta[LINEAGE] = self._lineage(run, site)
            receive = partial(self._receive, run, run.number)
            self._sent[site] = run.number, run.sites.send(AppConstants.TASK_TRAIN, message, site, receive)

    def _lineage(self, run: RunState, site: str) -> list[str]:
        """The starts of which this site keeps states: its update of a round may be that of a start before it."""
        lineage = list(run.lineage)
        for number, start in self._model.late.former.get(site, {}).items():
            if int(number) < len(lineage):
                lineage[int(number)] = start
        return lineage

    def _receive(self, run: RunState, begun: int, site: str, answer: FLModel) -> None:
        """Keep an update until the run's own thread accepts it, since it may come between two rounds."""
        size = run.sites.traffic.pop(site, (0, 0))
        self._arrived.append(self._journal.put(site, begun, run.start_id, answer, size))

    def _has_news(self, run: RunState, asked: Sequence[str]) -> bool:
        """Whether an update can be accepted, or a site be sent the newest model or be noted as absent."""
        if any(arrival.site not in run.model.reports for arrival in list(self._arrived)):
            return True
        moved = (sent.answered or run.sites.absence(site) for site, (_, sent) in self._sent.items())
        return any(moved) or any(self._is_ready(run, site) for site in asked)

    def _accept_arrived(self, run: RunState, size: int) -> None:
        """Accept updates in the order of arrival, one of each site, until the round is full; the others wait."""
        later: list[Arrival] = []
        while self._arrived and len(run.model.reports) < size:
            arrival = self._arrived.popleft()
            if arrival.site in run.model.reports:
                later.append(arrival)
            elif (why := self._why_not(run, arrival)) is not None:
                run.note(arrival.site, why)
        self._arrived.extendleft(reversed(later))

    def _why_not(self, run: RunState, arrival: Arrival) -> str | None:
        """Accept an update, or say why it is left out."""
        staleness, site, late = run.number - arrival.round, arrival.site, self._model.late
        self._taken.append(arrival.number)
        run.sites.count(site, *arrival.bytes)
        most = self._model.settings.max_staleness
        if most is not None and staleness > most:
            return (
                f"{UPDATE_REFUSED}: it started from the model of round {nth(arrival.round)}, {staleness} rounds ago; "
                f"{most} are allowed"
            )
        why = run.sites.try_accept(site, arrival.answer, self.accepting(run, arrival.round), UPDATE_REFUSED)
        if why is None:
            late.staleness[site] = staleness
            if arrival.start != run.start_id:
                late.starts[site] = arrival.start
                late.former.setdefault(site, {})[str(arrival.round)] = arrival.start
        return why


class BufferedTraining(Workflow):
    """Train one model asynchronously (FedBuff, Nguyen et al., AISTATS 2022).

    1. Every site that is there trains all the time. When it has answered, it is sent the newest model.
    2. A round, one step of the server, ends when ``buffer`` updates have arrived. An update is the difference to the
       model that its site received; its staleness is the number of rounds that ended since.
    3. The rule weighs the updates of the buffer; each is scaled by a factor of its staleness besides, as a rule by
       (1 + staleness)^-exponent (FedAsync, Xie et al., 2019), without making up for it elsewhere, as in FedBuff: late
       updates move the model less.

    With ``buffer`` of all sites it is federated averaging. A site's round is that of the model that it received: its
    seeds and states go by that number, with numbers left out where rounds ended while it trained. The scores of a
    round are those of the sites that received its model and answered in time. Where one update ends a round, a model is
    scored at one site, so no round is known as the best, and the last model is the result.

    Over FLARE the order in which updates arrive decides which models there are, so two runs differ, and a run that is
    resumed differs from one that was not stopped: updates that sites were working on are lost, and noted; those that
    had arrived are taken. In one process sites answer in a fixed order, and a run is repeated to the last bit.
    """

    withholds = frozenset({ONE_START, SAME_SITES, KNOWN_DRAWS})

    @takes_arguments_of(MethodParts, RunSettings, LateSettings)
    def __init__(self, num_rounds: int, aggregator: Aggregator, buffer: int | None = None, **arguments: Any) -> None:
        """Check the arguments.

        Args:
            num_rounds: steps of the server.
            aggregator: how updates become one; it must weigh sites by their reports alone.
            buffer: see ``BufferSettings``.
            arguments: see ``LateSettings``; ``MethodParts``, of which ``selection`` says who is sent the newest model
                when it is idle, and of ``shared_arrays`` those alone have a meaning that sites send before the first
                round; and ``RunSettings``, of which ``target_dice``, ``patience`` and ``max_epsilon`` must be left out,
                since rounds score at different sites, and sites are ahead of what they have reported.

        Raises:
            ConfigurationError: a value is not allowed, or an argument has no meaning here.
        """
        refuse_given("buffered training", arguments, "target_dice", "patience", "max_epsilon")
        late = take_late(arguments)
        parts, settings = take_parts(arguments), RunSettings(num_rounds, **arguments)
        _check_rule(aggregator)
        check_selection(parts.asked)
        own = BufferSettings(**late, buffer=buffer)
        if buffer is not None and buffer < settings.min_sites:
            raise ConfigurationError("workflow.buffer", buffer, f"null, or at least min_sites ({settings.min_sites})")
        model = DiscountedModel(aggregator, parts.server_optimizer, parts.shared_arrays, own)
        super().__init__(settings, model, Buffered(model), parts.asked)


def take_late(arguments: dict[str, Any]) -> dict[str, Any]:
    """Take what ``LateSettings`` has out of the arguments of a workflow."""
    return {each.name: arguments.pop(each.name) for each in fields(LateSettings) if each.name in arguments}


def check_selection(selection: SiteSelection) -> None:
    """Refuse a selection whose rounds are something that here is none.

    Raises:
        ConfigurationError: names it.
    """
    kind = type(selection)
    why = ""
    if DURATION in kind.needs:
        why = "No site waits for a slow one here, so none has to be left out."
    elif COUNTED_DRAWS in getattr(kind, "provides", ()) or COUNTED_DRAWS in kind.needs:
        why = "A late update would count as often as its site was drawn in another round."
    elif kind.site_settings is not SiteSelection.site_settings:
        why = "A late update would be held to the settings of another round."
    if why:
        raise ConfigurationError(
            "workflow.selection", kind.__name__, "a selection without counts, durations and settings of its own", why
        )


def _check_rule(rule: Aggregator) -> None:
    """Refuse a rule that compares updates, which here start from different models, or that counts missed rounds."""
    check_part("aggregator", rule, Aggregator)
    if not isinstance(rule, WeightedAggregator) or ONE_START in rule.needs:
        raise ConfigurationError(
            "workflow.aggregator",
            type(rule).__name__,
            "a rule that weighs sites by their reports alone, such as FedAvg, in buffered training",
            "Updates start from different models, so they cannot be compared; the workflow itself weighs staleness.",
        )

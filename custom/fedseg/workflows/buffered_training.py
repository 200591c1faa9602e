"""Asynchronous training: updates count in the order in which they arrive, and no site waits for a slow one."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import ceil
from typing import Any

from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.app_constant import AppConstants

from fedseg.aggregators.base import Aggregator
from fedseg.aggregators.server_optimizers import ServerOptimizer
from fedseg.aggregators.shared_state import SharedState
from fedseg.aggregators.weighted import WeightedAggregator
from fedseg.allowed import number, setting, whole
from fedseg.contract.arguments import takes_arguments_of
from fedseg.contract.combinations import KNOWN_DRAWS, ONE_START, SAME_SITES
from fedseg.contract.plan import Plan
from fedseg.contract.round_numbers import nth
from fedseg.contract.shapes import array_owners
from fedseg.errors import ConfigurationError
from fedseg.workflows.run.method_parts import MethodParts, take_parts
from fedseg.workflows.run.record import STALENESS
from fedseg.workflows.run.round_protocol import UPDATE_REFUSED, JobParts, RoundProtocol
from fedseg.workflows.run.run_model import Keep
from fedseg.workflows.run.run_state import RunState
from fedseg.workflows.run.settings import RunSettings, check_part, refuse_given
from fedseg.workflows.run.sites import Sent, single_messages
from fedseg.workflows.run.stopping import check_fields
from fedseg.workflows.run.weighted_model import WeightedModel
from fedseg.workflows.run.workflow import Workflow

_IN_FLIGHT = "in_flight"


@dataclass(frozen=True)
class BufferSettings:
    """When a round ends, and what becomes of late updates; the same names as the arguments of ``BufferedTraining``.

    >>> [BufferSettings().size(sites, min_sites=1) for sites in (1, 3, 8)]
    [1, 1, 4]

    Attributes:
        buffer: updates with which a round ends; None for half of the sites, and at least ``min_sites``.
        exponent: how fast the weight of an update falls with its staleness; 0 for no discount.
        max_staleness: updates of a larger staleness are left out; None for no limit.
    """

    buffer: int | None = setting(None, whole)
    exponent: float = setting(0.5, number, least=0)
    max_staleness: int | None = setting(None, whole, least=0)

    def __post_init__(self) -> None:
        check_fields(self, "workflow")

    def size(self, sites: int, min_sites: int) -> int:
        """Updates with which a round ends."""
        return self.buffer or max(1, sites // 2, min_sites)


class DiscountedModel(WeightedModel):
    """A model to which late updates contribute less: each is scaled by (1 + staleness)^-exponent, beside the rule.

    Attributes:
        staleness: of each update of the round the rounds that ended since its site received the model.
        in_flight: the sites whose updates are under way when the round ends, with the round of the model that they
            received.
    """

    def __init__(
        self,
        aggregator: WeightedAggregator,
        server_optimizer: ServerOptimizer | None = None,
        shared_arrays: SharedState | None = None,
        settings: BufferSettings | None = None,
    ) -> None:
        super().__init__(aggregator, server_optimizer, shared_arrays)
        self.rule, self.settings = aggregator, settings or BufferSettings()
        self.staleness: dict[str, int] = {}
        self.in_flight: dict[str, int] = {}

    def check_plan(self, plan: Plan) -> None:
        super().check_plan(plan)
        if self.takes_shared_arrays:
            why = "They would be combined from sites that received the arrays of different rounds."
            expected = "left out, or arrays that are sent before the first round only, in buffered training"
            raise ConfigurationError("workflow.shared_arrays", type(self.shared_arrays).__name__, expected, why)

    def begin_round(self, keep: Keep | None = None) -> None:
        super().begin_round(keep)
        self.staleness, self.in_flight = {}, {}

    def finish_round(self) -> None:
        late = {site: staleness for site, staleness in sorted(self.staleness.items()) if staleness}
        self.rule.discounts = {site: (1 + staleness) ** -self.settings.exponent for site, staleness in late.items()}
        super().finish_round()
        for site in late:
            # They are of an older model than those of the round.
            self.reports[site] = replace(self.reports[site], val_loss=None, val_scores={})

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), **asdict(self.settings)}

    def describe_round(self) -> dict[str, Any]:
        """Also staleness, and what is under way."""
        described = super().describe_round()
        own = {STALENESS: dict(sorted(self.staleness.items())), _IN_FLIGHT: dict(sorted(self.in_flight.items()))}
        return {**described, "notes": {**described["notes"], **own}}


@dataclass(frozen=True)
class _Arrival:
    """An update that waits to be accepted: who sent it, the round of the model that the site received, and bytes."""

    site: str
    round: int
    answer: FLModel
    bytes: tuple[int, int]


class Buffered(RoundProtocol):
    """A round ends with its ``buffer``-th update, and a site that has answered is sent the newest model at once.

    A site trains one task at a time, and each model once: after an update of the newest model it rests until the
    round ends. An update that arrives while the round already has one of its site waits for the next round. A round
    ends with fewer updates when no site can answer any more, or after ``round_timeout``; sites train on beyond it.

    >>> from fedseg.aggregators.fedavg import FedAvg
    >>> Buffered(DiscountedModel(FedAvg())).encrypts
    False
    """

    def __init__(self, model: DiscountedModel) -> None:
        self._model = model
        self._sent: dict[str, tuple[int, Sent]] = {}
        self._answered: dict[str, int] = {}
        self._arrived: deque[_Arrival] = deque()

    def check_job(self, job: JobParts) -> None:
        super().check_job(job)
        for name, owner in array_owners(job.plan).items():
            if owner.from_round and owner.sites:
                why = "Server and site would not agree on the round in which it joins."
                raise ConfigurationError("network.parts", name, "arrays that take part from the first round", why)

    def begin(self, run: RunState) -> None:
        """Note the updates that were lost when the run was stopped."""
        for site, begun in (run.rounds[-1]["notes"][_IN_FLIGHT] if run.rounds else {}).items():
            run.note(
                site, f"was training the model of round {nth(begun)} when the run was stopped; that update is lost"
            )

    def collect(self, run: RunState, asked: Sequence[str]) -> None:
        size = self._model.settings.size(len(run.facts), run.settings.min_sites)
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
        held = {arrival.site: arrival.round for arrival in list(self._arrived)}
        self._model.in_flight = held | {site: begun for site, (begun, _) in self._sent.items()}

    def finish(self, run: RunState) -> None:
        """Withdraw the tasks of sites that still train; ``in_flight`` of the last round names them."""
        for _, sent in self._sent.values():
            sent.withdraw()
        self._sent.clear()
        self._arrived.clear()

    # ------------------------------------------------------------------ parts of a round

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
            receive = partial(self._receive, run, run.number)
            self._sent[site] = run.number, run.sites.send(AppConstants.TASK_TRAIN, message, site, receive)

    def _receive(self, run: RunState, begun: int, site: str, answer: FLModel) -> None:
        """Keep an update until the run's own thread accepts it, since it may come between two rounds."""
        self._arrived.append(_Arrival(site, begun, answer, run.sites.traffic.pop(site, (0, 0))))

    def _has_news(self, run: RunState, asked: Sequence[str]) -> bool:
        """Whether an update can be accepted, or a site be sent the newest model or be noted as absent."""
        if any(arrival.site not in run.model.reports for arrival in list(self._arrived)):
            return True
        moved = (sent.answered or run.sites.absence(site) for site, (_, sent) in self._sent.items())
        return any(moved) or any(self._is_ready(run, site) for site in asked)

    def _accept_arrived(self, run: RunState, size: int) -> None:
        """Accept updates in the order of arrival, one of each site, until the round is full; the others wait."""
        later: list[_Arrival] = []
        while self._arrived and len(run.model.reports) < size:
            arrival = self._arrived.popleft()
            if arrival.site in run.model.reports:
                later.append(arrival)
            elif (why := self._why_not(run, arrival)) is not None:
                run.note(arrival.site, why)
        self._arrived.extendleft(reversed(later))

    def _why_not(self, run: RunState, arrival: _Arrival) -> str | None:
        """Accept an update, or say why it is left out."""
        staleness, site = run.number - arrival.round, arrival.site
        run.sites.count(site, *arrival.bytes)
        most = self._model.settings.max_staleness
        if most is not None and staleness > most:
            return (
                f"{UPDATE_REFUSED}: it started from the model of round {nth(arrival.round)}, {staleness} rounds ago; "
                f"{most} are allowed"
            )
        why = run.sites.try_accept(site, arrival.answer, self.accepting(run, arrival.round), UPDATE_REFUSED)
        if why is None:
            self._model.staleness[site] = staleness
        return why


class BufferedTraining(Workflow):
    """Train one model asynchronously (FedBuff, Nguyen et al., AISTATS 2022).

    1. Every site that is there trains all the time. When it has answered, it is sent the newest model.
    2. A round, one step of the server, ends when ``buffer`` updates have arrived. An update is the difference to the
       model that its site received; its staleness is the number of rounds that ended since.
    3. The rule weighs the updates of the buffer; each is scaled by (1 + staleness)^-exponent besides (FedAsync, Xie
       et al., 2019), without making up for it elsewhere, as in FedBuff: late updates move the model less.

    With ``buffer`` of all sites it is federated averaging. A site's round is that of the model that it received: its
    seeds and states go by that number, with numbers left out where rounds ended while it trained. The scores of a
    round are those of the sites that received its model and answered in time.

    Over FLARE the order in which updates arrive decides which models there are, so two runs differ, and a run that is
    resumed differs from one that was not stopped: updates that sites were working on are lost, and noted. In one
    process sites answer in a fixed order, and a run is repeated to the last bit.
    """

    withholds = frozenset({ONE_START, SAME_SITES, KNOWN_DRAWS})

    @takes_arguments_of(MethodParts, RunSettings)
    def __init__(
        self,
        num_rounds: int,
        aggregator: Aggregator,
        buffer: int | None = None,
        exponent: float = 0.5,
        max_staleness: int | None = None,
        **arguments: Any,
    ) -> None:
        """Check the arguments.

        Args:
            num_rounds: steps of the server.
            aggregator: how updates become one; it must weigh sites by their reports alone.
            buffer, exponent, max_staleness: see ``BufferSettings``.
            arguments: see ``MethodParts``, of which ``selection`` must be left out, since every site trains all the
                time, and of ``shared_arrays`` those alone have a meaning that sites send before the first round; and
                ``RunSettings``, of which ``target_dice``, ``patience`` and ``max_epsilon`` must be left out, since
                rounds score at different sites, and sites are ahead of what they have reported.

        Raises:
            ConfigurationError: a value is not allowed, or an argument has no meaning here.
        """
        refuse_given("buffered training", arguments, "selection", "target_dice", "patience", "max_epsilon")
        parts, settings = take_parts(arguments), RunSettings(num_rounds, **arguments)
        _check_rule(aggregator)
        own = BufferSettings(buffer, exponent, max_staleness)
        if buffer is not None and buffer < settings.min_sites:
            raise ConfigurationError("workflow.buffer", buffer, f"null, or at least min_sites ({settings.min_sites})")
        model = DiscountedModel(aggregator, parts.server_optimizer, parts.shared_arrays, own)
        super().__init__(settings, model, Buffered(model), parts.asked)


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

"""Late updates: how much less they count, and what a model remembers of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from fedseg.allowed import number, one_of, setting, whole
from fedseg.workflows.run.record import STALENESS, STARTS
from fedseg.workflows.run.stopping import check_fields

IN_FLIGHT = "in_flight"
FUNCTIONS = ("polynomial", "constant", "hinge")


def _function(name: str, value: Any) -> str:
    return one_of(name, value, FUNCTIONS)


@dataclass(frozen=True)
class LateSettings:
    """How updates count by their staleness, the number of versions that the server made since the site's model was sent
    (Xie, Koyejo and Gupta, 2019, section 5.2).

    >>> [round(LateSettings().factor(staleness), 3) for staleness in (0, 1, 3)]
    [1.0, 0.707, 0.5]
    >>> [LateSettings("hinge", hinge_after=2, hinge_slope=4).factor(staleness) for staleness in (0, 2, 3)]
    [1.0, 1.0, 0.2]

    Attributes:
        staleness: ``polynomial``: (1 + t)^-exponent; ``constant``: 1; ``hinge``: 1 up to ``hinge_after``, and
            1 / (hinge_slope (t - hinge_after) + 1) beyond.
        exponent: of ``polynomial``; 0 for no discount.
        hinge_after, hinge_slope: of ``hinge``.
        max_staleness: updates of a larger staleness are left out; None for no limit.
    """

    staleness: str = setting("polynomial", _function)
    exponent: float = setting(0.5, number, least=0)
    hinge_after: int = setting(4, whole, least=0, allowed="a whole number of versions of at least 0")
    hinge_slope: float = setting(10.0, number, above=0)
    max_staleness: int | None = setting(None, whole, least=0)

    def __post_init__(self) -> None:
        check_fields(self, "workflow")

    def factor(self, staleness: int) -> float:
        """By how much an update counts, in (0, 1]."""
        if self.staleness == "polynomial":
            return float((1 + staleness) ** -self.exponent)
        if self.staleness == "constant" or staleness <= self.hinge_after:
            return 1.0
        return 1 / (self.hinge_slope * (staleness - self.hinge_after) + 1)

    def describe(self) -> dict[str, Any]:
        """Names and values that decide."""
        used = {"polynomial": ("exponent",), "constant": (), "hinge": ("hinge_after", "hinge_slope")}[self.staleness]
        return {key: value for key, value in asdict(self).items() if key in ("staleness", "max_staleness", *used)}


@dataclass
class Late:
    """What is known of the updates of a round, and of those that are still to come.

    Attributes:
        staleness: of each update of the round.
        starts: of updates whose model another start of the server had sent: that start.
        in_flight: the sites whose updates are under way or wait when the round ends, with the round of the model that
            they received.
        next: number of the first arrival after the round's end.
        waiting: numbers of the arrivals that wait for the next round.
        former: of each site the starts that had sent it models which it trained, by round, where the run's lineage
            names another.
    """

    staleness: dict[str, int] = field(default_factory=dict)
    starts: dict[str, str] = field(default_factory=dict)
    in_flight: dict[str, int] = field(default_factory=dict)
    next: int = 0
    waiting: list[int] = field(default_factory=list)
    former: dict[str, dict[str, str]] = field(default_factory=dict)

    def begin_round(self) -> None:
        """Forget the updates of the round before."""
        self.staleness, self.starts, self.in_flight = {}, {}, {}

    def notes(self) -> dict[str, Any]:
        """What the results say of the round."""
        told = {STALENESS: dict(sorted(self.staleness.items())), IN_FLIGHT: dict(sorted(self.in_flight.items()))}
        return {**told, **({STARTS: dict(sorted(self.starts.items()))} if self.starts else {})}

    def history(self) -> dict[str, Any]:
        """What a resumed run needs, as plain JSON."""
        return {"next": self.next, "waiting": self.waiting, "former": self.former}

    def restore(self, history: dict[str, Any]) -> None:
        """Restore what ``history`` gave."""
        self.next, self.waiting, self.former = history["next"], list(history["waiting"]), dict(history["former"])

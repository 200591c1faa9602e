"""The parts of a method that a job may name beside its workflow."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from fedseg.aggregators.base import Aggregator
from fedseg.aggregators.server_optimizers import ServerOptimizer
from fedseg.aggregators.shared_state import SharedState
from fedseg.workflows.run.selection_base import SiteSelection
from fedseg.workflows.run.settings import check_part
from fedseg.workflows.selection import AllSites


@dataclass(frozen=True)
class MethodParts:
    """Arguments that kinds of run have in common; one in which a part has no meaning refuses it.

    Attributes:
        aggregator: how updates become one.
        server_optimizer: what is made of the aggregated update; None adds it as it is.
        shared_arrays: arrays that travel with weights and updates, such as SCAFFOLD's control variates, or that sites
            send once before round 0.
        selection: which sites take part in a round; None asks all.
    """

    aggregator: Aggregator | None = None
    server_optimizer: ServerOptimizer | None = None
    shared_arrays: SharedState | None = None
    selection: SiteSelection | None = None

    def __post_init__(self) -> None:
        kinds = {"server_optimizer": ServerOptimizer, "shared_arrays": SharedState, "selection": SiteSelection}
        for name, kind in kinds.items():
            check_part(name, getattr(self, name), kind | None)

    @property
    def asked(self) -> SiteSelection:
        """The rule that selects the sites of a round."""
        return AllSites() if self.selection is None else self.selection


def take_parts(arguments: dict[str, Any]) -> MethodParts:
    """Take the parts out of the arguments of a workflow, of which the settings of the run are left.

    Raises:
        ConfigurationError: one is no such part.
    """
    return MethodParts(**{each.name: arguments.pop(each.name, None) for each in fields(MethodParts)})

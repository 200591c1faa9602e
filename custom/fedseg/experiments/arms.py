"""The arms of an experiment: ways to make a model, or several, from the sites' cases.

==========  ==========================================================================================================
central     one model on the pooled cases of all sites, as if images could move
local       for each site a model of its own cases
ensemble    no training: the mean of the probabilities of an arm of local models
iil         one model visits each site once and trains there to the end (institutional incremental learning, Sheller
            et al., BrainLes 2018)
ciil        one model visits the sites in turn, again and again (cyclic institutional incremental learning, ibid.;
            cyclic weight transfer, Chang et al., J Am Med Inform Assoc 2018)
job         a job folder, which runs as ``fedseg simulate --in-process`` runs it
==========  ==========================================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fedseg.allowed import known_names, one_of, optional, switch, text, whole
from fedseg.contract.visit_order import ORDERS, Order, in_order, parse_order
from fedseg.errors import ConfigurationError
from fedseg.files.names import ARM, repeated

CENTRAL, LOCAL, ENSEMBLE, IIL, CIIL, JOB_ARM = KINDS = ("central", "local", "ensemble", "iil", "ciil", "job")
EQUAL = ("samples", "steps")
# Keys that each kind may have beside ``kind``.
_KEYS = {
    CENTRAL: ("set", "equal"),
    LOCAL: ("set", "elsewhere"),
    ENSEMBLE: ("of",),
    IIL: ("set", "order", "patience"),
    CIIL: ("set", "order"),
    JOB_ARM: ("set", "job", "elsewhere"),
}


@dataclass(frozen=True)
class Arm:
    """One way to make models.

    Attributes:
        name: in tables.
        kind: one of ``KINDS``.
        set: settings of this arm, by the names of ``fedseg simulate --set``; they win over those of the experiment.
        job: job folder of the kind ``job``.
        equal: what pooled training has in common with the other arms: as many ``samples``, or as many ``steps``.
        of: the arm of local models that an ensemble is of.
        order: in which order a model visits the sites: by ``name``, ``largest_first`` or ``smallest_first`` by number
            of training cases, ``random`` by the seed, or a list of the sites.
        patience: of ``iil``: rounds without a better validation score after which the model goes on from a site, as it
            was at its best there; None trains all rounds.
        elsewhere: whether a model of one site is also scored at the other sites.
    """

    name: str
    kind: str
    set: Mapping[str, Any]
    job: Path | None = None
    equal: str = "samples"
    of: str = ""
    order: Order = "name"
    patience: int | None = None
    elsewhere: bool = True

    def visited(self, sizes: Mapping[str, int], seed: int) -> list[str]:
        """The sites in the order in which this arm's model visits them.

        Args:
            sizes: training cases of each site that takes part.
            seed: of the training.
        """
        return in_order(self.order, sizes, seed, self.name, "order")


KEYS = tuple(each.name for each in fields(Arm) if each.name != "name")
"""Names that an arm may have in a file."""


def parse_arms(declaration: Any, folder: Path) -> dict[str, Arm]:
    """Check the arms of an experiment.

    Args:
        declaration: an object of arms by name.
        folder: from which the paths of jobs count.

    Raises:
        ConfigurationError: a name, a kind or a value is not allowed.
    """
    if not isinstance(declaration, Mapping) or not declaration:
        raise ConfigurationError("arms", declaration, "an object with the arms by name, at least one")
    if alike := repeated(declaration):
        raise ConfigurationError("arms", alike, "names that differ in more than small and capital letters")
    arms = {ARM.check("arms: name", name): _parse(name, content, folder) for name, content in declaration.items()}
    for arm in arms.values():
        if arm.kind == ENSEMBLE:
            _check_ensemble(arm, arms)
    return arms


def _parse(name: str, content: Any, folder: Path) -> Arm:
    where = f"arms.{name}"
    if not isinstance(content, Mapping):
        raise ConfigurationError(where, content, "an object with kind, or with job")
    known_names(where, content, KEYS, "an arm has")
    kind = one_of(f"{where}.kind", content.get("kind", JOB_ARM if "job" in content else None), KINDS)
    for key, value in content.items():
        if key != "kind" and key not in _KEYS[kind]:
            allowed = f"left out in an arm of the kind {kind}, which has {', '.join(_KEYS[kind])}"
            raise ConfigurationError(f"{where}.{key}", value, allowed)
    return Arm(
        name=name,
        kind=kind,
        set=parse_settings(f"{where}.set", content.get("set", {})),
        job=folder / text(f"{where}.job", content.get("job")) if kind == JOB_ARM else None,
        equal=one_of(f"{where}.equal", content.get("equal", EQUAL[0]), EQUAL),
        of=text(f"{where}.of", content.get("of")) if kind == ENSEMBLE else "",
        order=parse_order(f"{where}.order", content.get("order", ORDERS[0])),
        patience=optional(whole, f"{where}.patience", content.get("patience")),
        elsewhere=switch(f"{where}.elsewhere", content.get("elsewhere", True)),
    )


def parse_settings(name: str, value: Any) -> dict[str, Any]:
    """Settings of jobs by the names of ``fedseg simulate --set``; the job judges them (ConfigurationError)."""
    if not isinstance(value, Mapping):
        raise ConfigurationError(name, value, "an object of settings, as of fedseg simulate --set")
    return dict(value)


def _check_ensemble(arm: Arm, arms: Mapping[str, Arm]) -> None:
    local = [other.name for other in arms.values() if other.kind == LOCAL]
    if arm.of not in local:
        remedy = "" if local else "Add an arm of the kind local."
        raise ConfigurationError(f"arms.{arm.name}.of", arm.of, f"the name of an arm of local models: {local}", remedy)


def check_order(arm: Arm, sites: Sequence[str]) -> None:
    """Refuse a list of sites that lacks one, or names one that is not there.

    Raises:
        ConfigurationError: names the list.
    """
    if isinstance(arm.order, tuple) and sorted(arm.order) != sorted(sites):
        raise ConfigurationError(f"arms.{arm.name}.order", list(arm.order), f"a list of all sites: {sorted(sites)}")

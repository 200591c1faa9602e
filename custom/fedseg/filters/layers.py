"""Layers that stay at the site, and their opposite: layers that alone are shared.

FLOP (Yang et al., "FLOP: Federated learning on medical datasets using partial networks", KDD 2021) keeps the last
layers, FedBN (Li et al., ICLR 2021) the normalisations, LG-Fed (Liang et al., 2020) shares the upper layers only.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from fedseg import allowed
from fedseg.contract.combinations import OWN_LAYERS
from fedseg.contract.plan import Plan
from fedseg.contract.shapes import update_shapes
from fedseg.contract.update import Stage, Update
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.filters.base import UpdateFilter
from fedseg.filters.context import SiteContext
from fedseg.networks.layers import last_names, matching_names, normalisation_names
from fedseg.networks.weights import is_averaged

NORM = "norm"
# Without sets of letters ([abc]), all that stands in a pattern which matches stands in the name of an array.
_PATTERN = re.compile(r"[A-Za-z0-9_.*?]{1,100}")
_BETWEEN = ", "


class LayerFilter(UpdateFilter):
    """Drops the arrays of some layers from the update; the global model keeps all its arrays.

    What stays is not protected by noise, but it does not leave: neither its values nor that it changed. A site trains
    and scores with its own arrays in the place of the global ones, and keeps them with its state (see
    ``SiteTrainer.own_model``), so they come back after a restart.
    """

    provides = frozenset({OWN_LAYERS})
    stage = Stage.LAYERS
    words = frozenset({NORM})

    def __init__(self, patterns: list[str] | None = None, kind: str | None = None, last: int | None = None) -> None:
        """Choose layers; what any of the three chooses is chosen.

        Args:
            patterns: of the names of arrays with ``*`` and ``?``, e.g. ``model.2.*``; letter case counts.
            kind: ``norm`` for all normalisation layers, by their type.
            last: the last modules with parameters on the way to the output; 1 is the output convolution.
        """
        super().__init__()
        where = type(self).__name__
        allowed.optional(allowed.texts, f"{where}.patterns", patterns, allowed="a list of patterns")
        for pattern in patterns or ():
            if not _PATTERN.fullmatch(pattern):
                raise ConfigurationError(
                    f"{where}.patterns", pattern, "letters, digits, _ and . of an array's name, * and ?"
                )
        if kind is not None and kind != NORM:
            raise ConfigurationError(f"{where}.kind", kind, f"{NORM!r}, or null")
        allowed.optional(allowed.whole, f"{where}.last", last)
        if patterns is None and kind is None and last is None:
            raise ConfigurationError(where, {}, "given patterns, kind or last")
        self.patterns, self.kind, self.last = patterns, kind, last
        self._kept: dict[str, frozenset[str]] = {}

    @abstractmethod
    def keeps(self, chosen: frozenset[str], names: frozenset[str]) -> frozenset[str]:
        """Which of all ``names`` of a network stay at the site, given the ``chosen`` ones."""

    def describe(self) -> dict[str, Any]:
        # An entry of the privacy record is flat.
        return {**super().describe(), "patterns": None if self.patterns is None else _BETWEEN.join(self.patterns)}

    def tells(self, text: str, plan: Plan) -> bool:
        names = update_shapes(plan)
        patterns = text.split(_BETWEEN)
        chosen = all(_PATTERN.fullmatch(p) and any(fnmatchcase(name, p) for name in names) for p in patterns)
        return super().tells(text, plan) or chosen

    def kept_names(self, plan: Plan) -> frozenset[str]:
        """Names of all arrays of the plan's network that stay at the site.

        Raises:
            ConfigurationError: a choice matches nothing in this network, or nothing would be left to share.
        """
        if plan.digest not in self._kept:
            network = plan.build_network()
            weights = network.state_dict()
            kept = self.keeps(self._chosen(plan, network), frozenset(weights))
            if not any(is_averaged(value.numpy()) for name, value in weights.items() if name not in kept):
                raise ConfigurationError(
                    type(self).__name__,
                    self.describe(),
                    "a choice that leaves something to share",
                    "`fedseg simulate --compare local` trains each site alone.",
                )
            self._kept[plan.digest] = kept
        return self._kept[plan.digest]

    def private_names(self, plan: Plan) -> frozenset[str]:
        return self.kept_names(plan)

    def apply(self, update: Update, context: SiteContext) -> Update:
        kept = self.kept_names(context.plan)
        arrays = {name: value for name, value in update.arrays.items() if name not in kept}
        if not arrays:
            raise RefusalError("privacy", f"{type(self).__name__} leaves nothing of this update to share.")
        total = sum(value.size for value in update.arrays.values())
        shared = sum(value.size for value in arrays.values())
        return update.after(self.step(coordinates=total, shared=shared), arrays)

    def _chosen(self, plan: Plan, network: nn.Module) -> frozenset[str]:
        where = type(self).__name__
        chosen = frozenset[str]()
        for pattern in self.patterns or []:
            found = matching_names(network, pattern)
            if not found:
                names = list(network.state_dict())
                allowed = f"a pattern that matches arrays of this network, such as {names[0]} or {names[-1]}"
                raise ConfigurationError(f"{where}.patterns", pattern, allowed)
            chosen |= found
        if self.kind == NORM:
            found = normalisation_names(network)
            if not found:
                raise ConfigurationError(
                    f"{where}.kind",
                    self.kind,
                    "null with a network whose normalisation layers have neither parameters nor buffers",
                    "Choose a network with affine normalisation: every one of docs/reference/job-folder.md has it.",
                )
            chosen |= found
        if self.last is not None:
            size = plan.network.arguments.example_size(plan.task.patch_size)
            chosen |= last_names(network, self.last, (1, len(plan.task.channels), *size))
        return chosen


class PrivateLayers(LayerFilter):
    """The chosen layers stay at the site; all others are shared.

    ``last=1`` is FLOP with the output convolution, ``kind="norm"`` is FedBN, and the last modules under the average by
    cases are FedPer (Arivazhagan et al., "Federated learning with personalization layers", 2019).
    """

    meaning = "keeps some layers at the site: nothing of them can be looked into, no guarantee for the rest"

    def keeps(self, chosen: frozenset[str], names: frozenset[str]) -> frozenset[str]:
        return chosen


class SharedLayers(LayerFilter):
    """Only the chosen layers are shared; all others stay at the site (LG-Fed with ``last``).

    With ``frozen`` the others are not the site's own but stay as the server sent them, untrained, at every site: then
    all sites have one model, of which a small part is trained.
    """

    meaning = "sends some layers only: nothing of the others can be looked into, no guarantee for the rest"

    def __init__(
        self,
        patterns: list[str] | None = None,
        kind: str | None = None,
        last: int | None = None,
        frozen: bool = False,
    ) -> None:
        """Choose layers; see ``LayerFilter``.

        Args:
            patterns, kind, last: as there.
            frozen: whether all other layers are left untrained instead of becoming the site's own.
        """
        super().__init__(patterns, kind, last)
        allowed.switch("SharedLayers.frozen", frozen)
        self.frozen = frozen

    def keeps(self, chosen: frozenset[str], names: frozenset[str]) -> frozenset[str]:
        return names - chosen

    def private_names(self, plan: Plan) -> frozenset[str]:
        return frozenset() if self.frozen else self.kept_names(plan)

    def frozen_names(self, plan: Plan) -> frozenset[str]:
        return self.kept_names(plan) if self.frozen else frozenset()


def layers_of_sites(client: Mapping[str, Any], plan: Plan) -> frozenset[str]:
    """Names of the arrays that each site keeps for itself, by the filters in the sites' part of a job.

    >>> from fedseg.contract.plan import parse_plan
    >>> plan = parse_plan({"fedseg_version": "0.6.0", "task": "hippocampus"})
    >>> chain = {"filters": [{"path": "fedseg.filters.layers.PrivateLayers", "args": {"last": 1}}]}
    >>> len(layers_of_sites({"task_result_filters": [chain]}, plan)) > 0
    True
    """
    kinds = {f"{kind.__module__}.{kind.__name__}": kind for kind in (PrivateLayers, SharedLayers)}
    named = [each for chain in client.get("task_result_filters", []) for each in chain.get("filters", [])]
    found = [kinds[each["path"]](**each.get("args", {})) for each in named if each.get("path") in kinds]
    return frozenset[str]().union(*(each.private_names(plan) for each in found))

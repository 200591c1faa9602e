"""Patches of several sizes in one training, and how many of a batch must have foreground in their centre."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedseg import allowed
from fedseg.errors import ConfigurationError
from fedseg.tasks.task import LARGEST_PATCH

_MOST_SIZES = 16


@dataclass(frozen=True)
class PatchSize:
    """A size of patches, and how often it is drawn.

    Attributes:
        size: voxels along each axis.
        share: of the batches, in any scale; above 0.
    """

    size: tuple[int, int, int]
    share: float = 1.0


def patch_sizes(name: str, value: Any) -> tuple[PatchSize, ...]:
    """Sizes of patches and their shares, as a plan declares them: ``[{"size": [64, 64, 64], "share": 0.5}, ...]``.

    Raises:
        ConfigurationError: it is anything else.
    """
    what = 'a list of {"size": [x, y, z], "share": number}, none of the sizes twice'
    if not isinstance(value, list | tuple) or len(value) > _MOST_SIZES:
        raise ConfigurationError(name, value, f"{what}, and at most {_MOST_SIZES} of them")
    found = tuple(_patch_size(f"{name}[{number}]", each, what) for number, each in enumerate(value))
    if len({each.size for each in found}) != len(found):
        raise ConfigurationError(name, value, what)
    return found


def forced_count(share: float, batch: int, patches: int | None = None) -> int:
    """How many patches of a batch have foreground in their centre: the share, rounded as nnU-Net rounds it.

    A last batch that is short, which nnU-Net does not have, has no smaller share of them than a whole batch: a site
    with fewer patches in an epoch than a batch holds would else never train on what is rare.

    >>> forced_count(1 / 3, 2), forced_count(0.33, 12), forced_count(0.33, 1)
    (1, 4, 0)
    >>> [forced_count(0.33, 12, patches) for patches in (1, 3, 4, 12)]
    [1, 1, 2, 4]

    Args:
        share: from 0 to 1.
        batch: patches of a whole batch.
        patches: of this batch; None for a whole one.
    """
    whole = batch - round(batch * (1 - share))
    return whole if patches is None else -(-patches * whole // batch)


def _patch_size(name: str, value: Any, what: str) -> PatchSize:
    if not isinstance(value, Mapping) or not {"size"} <= set(value) <= {"size", "share"}:
        raise ConfigurationError(name, value, f"one of {what}")
    size = value["size"]
    if not isinstance(size, list | tuple) or len(size) != 3:
        raise ConfigurationError(f"{name}.size", size, "three numbers of voxels")
    x, y, z = (allowed.whole(f"{name}.size", voxels, most=LARGEST_PATCH) for voxels in size)
    return PatchSize((x, y, z), allowed.number(f"{name}.share", value.get("share", 1.0), above=0, most=1e6))

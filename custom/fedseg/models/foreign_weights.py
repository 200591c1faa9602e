"""Weights that another program trained, for a network of this one: which arrays belong to which, and which to none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

from fedseg.contract.plan import Plan
from fedseg.errors import DataError, UsageError
from fedseg.files.arrays import read_arrays
from fedseg.networks.weights import Arrays, check_weights, get_weights

_TORCH = (".pt", ".pth", ".ckpt")
_INSIDE = ("state_dict", "model", "network_weights")
Renames = Sequence[tuple[str, str]]
"""Beginnings of names, and what stands there in the network; of several that fit the first one counts."""


@dataclass(frozen=True)
class Matched:
    """What became of the arrays of a file.

    Attributes:
        weights: of the network, in its order.
        taken: names of its arrays that come from the file.
        fresh: names of those that begin as the plan's seed makes them.
        unused: names of the file's arrays that are nowhere in the network, or have another shape there.
    """

    weights: Arrays
    taken: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        """One sentence, with every name that has no partner."""
        parts = [f"{len(self.taken)} of {len(self.weights)} arrays come from the file"]
        parts += [f"these begin as the seed makes them: {', '.join(self.fresh)}"] if self.fresh else []
        parts += [f"these of the file are not used: {', '.join(self.unused)}"] if self.unused else []
        return f"{'; '.join(parts)}."


def match_weights(plan: Plan, arrays: Mapping[str, np.ndarray], renames: Renames = ()) -> Matched:
    """Put arrays into the network of a plan, by name and shape.

    After ``renames`` names change as ``NetworkArguments.own_name`` of the network says.

    Args:
        plan: its network, channels and outputs.
        arrays: of the file.
        renames: see there.

    Raises:
        DataError: none of them fits, two are for one place, or one that fits is not finite.
    """
    fresh = get_weights(plan.build_network())
    found: dict[str, str] = {}
    for name, value in arrays.items():
        new = plan.network.arguments.own_name(renamed(name, renames))
        if new in fresh and np.shape(value) == np.shape(fresh[new]):
            if new in found:
                raise DataError(f"Both {found[new]} and {name} of the file would become {new} of the network.")
            found[new] = name
    if not found:
        theirs, ours = next(iter(arrays), "none"), next(iter(fresh))
        raise DataError(
            f"No array of the file has a name and a shape of the network {plan.network.name}: the file's first is "
            f"{theirs}, the network's is {ours}. Say with --rename how beginnings of names change."
        )
    weights = {n: np.asarray(arrays[found[n]]).astype(v.dtype) if n in found else v for n, v in fresh.items()}
    check_weights(fresh, weights)
    taken, rest = tuple(n for n in fresh if n in found), tuple(n for n in fresh if n not in found)
    return Matched(weights, taken, rest, tuple(n for n in arrays if n not in set(found.values())))


def renamed(name: str, renames: Renames) -> str:
    """A name whose beginning is another one.

    >>> renamed("swinViT.a.weight", [("swinViT.", "encoder."), ("", "x.")]), renamed("b", [("a", "c")])
    ('encoder.a.weight', 'b')
    """
    for old, new in renames:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def parse_renames(texts: Sequence[str]) -> list[tuple[str, str]]:
    """Renames as typed on the command line, ``OLD=NEW`` each; either side may be empty.

    Raises:
        UsageError: one lacks the ``=``.
    """
    for text in texts:
        if "=" not in text:
            raise UsageError(f"--rename is {text!r}, but must be OLD=NEW: beginnings of names.")
    return [(old, new) for old, _, new in (text.partition("=") for text in texts)]


def read_foreign(path: Path) -> Arrays:
    """Arrays of a safetensors file, or of a file of torch; of the latter tensors are read and nothing is executed.

    Raises:
        DataError: it is missing, damaged, or holds no arrays.
    """
    try:
        if path.suffix not in _TORCH:
            return read_arrays(path)[1]
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DataError(f"The file {path} does not exist.") from None
    except (OSError, RuntimeError, UnpicklingError, EOFError, ValueError, KeyError) as error:
        raise DataError(f"{path} holds no weights that can be read ({str(error).splitlines()[0]}).") from None
    for key in _INSIDE:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    items = content.items() if isinstance(content, Mapping) else ()
    found = {str(n): v.to(torch.float32).numpy() for n, v in items if torch.is_tensor(v) and v.is_floating_point()}
    if not found:
        raise DataError(f"{path} holds no arrays by name.")
    return found

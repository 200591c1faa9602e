"""Parts of networks by name, with arguments checked before anything is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from fedseg.allowed import settings
from fedseg.errors import ConfigurationError
from fedseg.networks.parts.part import Part


def _declared() -> dict[str, type[Part]]:
    """The parts that the modules of this folder declare, by their names."""
    names = [module.name for module in iter_modules([str(Path(__file__).parent)], f"{__package__}.")]
    found = [each for name in names if name != __name__ for each in vars(import_module(name)).values()]
    kinds = [each for each in found if isinstance(each, type) and issubclass(each, Part) and each is not Part]
    return {kind.name: kind for kind in kinds}


PARTS = _declared()


def parse_parts(declaration: Any, where: str) -> tuple[Part, ...]:
    """Check the parts that a plan adds to its network.

    Args:
        declaration: a list of ``{"name": ..., argument: value...}``.
        where: how the user calls the list, for messages.

    Returns:
        The parts, in the order in which they are added.

    Raises:
        ConfigurationError: a name or an argument is unknown, a value is not allowed, or a part is named twice.
    """
    if not isinstance(declaration, Sequence) or isinstance(declaration, str):
        raise ConfigurationError(where, declaration, 'a list of parts: [{"name": ..., argument: value}]')
    parts: dict[str, Part] = {}
    for number, content in enumerate(declaration):
        place = f"{where}[{number}]"
        if not isinstance(content, Mapping):
            raise ConfigurationError(place, content, "an object with name and arguments")
        arguments = dict(content)
        name = arguments.pop("name", None)
        if not isinstance(name, str) or name not in PARTS:
            raise ConfigurationError(f"{place}.name", name, f"one of {sorted(PARTS)}")
        if name in parts:
            raise ConfigurationError(f"{place}.name", name, "a part that is not in the list yet")
        parts[name] = settings(PARTS[name], arguments, place)
    return tuple(parts.values())

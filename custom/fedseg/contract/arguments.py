"""What a component says of itself in a run's summary: the arguments with which it was built."""

from __future__ import annotations

import inspect
from typing import Any


def arguments_of(component: object) -> dict[str, Any]:
    """The arguments of a component's constructor, by name, as its attributes of the same names hold them.

    An argument that the component keeps under another name, or not at all, is left out.

    >>> class Trim:
    ...     def __init__(self, share: float = 0.2) -> None:
    ...         self.share, self.rounds = share, 0
    >>> arguments_of(Trim(0.1))
    {'share': 0.1}
    """
    names = inspect.signature(type(component)).parameters
    return {name: getattr(component, name) for name in names if hasattr(component, name)}

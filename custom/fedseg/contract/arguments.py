"""What a component says of itself in a run's summary: the arguments with which it was built."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

Constructor = Callable[..., None]


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


def takes_arguments_of(*others: Callable[..., Any]) -> Callable[[Constructor], Constructor]:
    """Say in the signature of a constructor that ends with ``**further`` which these are: those that ``others`` take.

    Jobs are checked by signatures, so that an argument that no component has is refused by its name.

    >>> def settings(rounds: int = 3, *, sites: int = 2): ...
    >>> @takes_arguments_of(settings)
    ... def build(mode="compact", rounds=1, **further): ...
    >>> [f"{each.name}={each.default}" for each in inspect.signature(build).parameters.values()]
    ['mode=compact', 'rounds=1', 'sites=2']
    """

    def complete(constructor: Constructor) -> Constructor:
        parameters = inspect.signature(constructor).parameters.values()
        own = {p.name: p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        taken = [each for other in others for each in inspect.signature(other).parameters.values()]
        further = {p.name: p.replace(kind=p.KEYWORD_ONLY) for p in taken if p.name not in own}
        constructor.__signature__ = inspect.Signature([*own.values(), *further.values()])  # type: ignore[attr-defined]
        return constructor

    return complete

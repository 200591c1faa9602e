"""How far long work on images is: a callback that commands give, such as ``console.track``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """Yields the items while it shows how far the work is."""

    def __call__(self, items: Iterable[T], description: str, total: int | None = None, /) -> Iterable[T]: ...


def silent(items: Iterable[T], description: str, total: int | None = None, /) -> Iterable[T]:
    """Show nothing."""
    return items

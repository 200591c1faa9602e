"""In which order a model visits sites that train one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from fedseg.allowed import one_of, texts
from fedseg.randomness import generator

ORDERS = ("name", "largest_first", "smallest_first", "random")
Order: TypeAlias = str | tuple[str, ...]


def parse_order(name: str, value: Any) -> Order:
    """Check an order: one of ``ORDERS``, or a list of names of sites.

    Raises:
        ConfigurationError: it is none.
    """
    return one_of(name, value, ORDERS) if isinstance(value, str) else texts(name, value)


def in_order(order: Order, sizes: Mapping[str, int], *draw: int | str) -> list[str]:
    """The sites in the order in which they are visited.

    >>> in_order("largest_first", {"a": 2, "b": 5, "c": 5})
    ['b', 'c', 'a']
    >>> in_order(("c", "a", "b"), {"a": 2, "b": 5})
    ['a', 'b']

    Args:
        order: by ``name``, ``largest_first`` or ``smallest_first`` by number of training cases (sites of equal size by
            name), ``random``, or a list, of which those count that are there.
        sizes: training cases of each site.
        draw: what a random order follows from, beside the names of the sites.
    """
    names = sorted(sizes)
    if isinstance(order, tuple):
        return [site for site in order if site in sizes]
    if order == "random":
        return [names[i] for i in generator(*draw).permutation(len(names))]
    signs = {"largest_first": -1, "smallest_first": 1, "name": 0}
    return sorted(names, key=lambda site: signs[order] * sizes[site])


def not_listed(order: Order, sites: Sequence[str]) -> list[str]:
    """Sites that a list leaves out; none where the order is no list."""
    return sorted(set(sites) - set(order)) if isinstance(order, tuple) else []

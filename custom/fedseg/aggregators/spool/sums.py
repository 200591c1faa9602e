"""Weighted sums of the arrays in a spool, cut into strips that several threads work on."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from fedseg.aggregators.spool.reader import SpoolReader
from fedseg.networks.weights import Arrays

# Elements of all sites together in a strip (8 MiB in float32), so that memory does not grow with the number of sites.
_STRIP = 2**21
# Memory, not arithmetic, is the limit: more threads than this only take processors from others.
_MOST_THREADS = 8

Item = TypeVar("Item")


@dataclass(frozen=True)
class Strip:
    """A range of elements of one flattened array."""

    name: str
    start: int
    stop: int


def weighted_sums(
    reader: SpoolReader, factors: Mapping[str, Mapping[str, float]], threads: int | None = None
) -> Arrays:
    """Sum of factor times array over sites, in the order of the sites' names, accumulated in float64.

    The result has the same bits for any number of threads and any order in which the sites sent.

    Args:
        reader: the updates.
        factors: for each array the sites to sum over, at least one, with their factors; a site with the factor 0 is
            not read.
        threads: how many to use; None takes one per processor, up to eight.

    Returns:
        The arrays named in ``factors``: float32, or float64 where any site sent that.
    """
    from fedseg.aggregators.spool.kernels import add_weighted

    sums = {name: np.empty(reader.shape(name), reader.result_type(name)) for name in factors}
    flat = {name: array.reshape(-1) for name, array in sums.items()}
    used = {name: [site for site in reader.sites_with(name) if factors[name].get(site)] for name in factors}
    weights = {name: np.array([factors[name][site] for site in sites], np.float64) for name, sites in used.items()}

    def add(strip: Strip) -> None:
        name = strip.name
        data, starts = reader.rows(name, used[name], strip.start, strip.stop)
        add_weighted(data, starts, weights[name], flat[name][strip.start : strip.stop])

    for name in factors:
        if not used[name]:
            flat[name][:] = 0.0
    in_threads(add, strips(reader, [name for name in factors if used[name]]), threads)
    return sums


def strips(reader: SpoolReader, names: Iterable[str]) -> Iterator[Strip]:
    """All arrays cut into strips, the narrower the more sites sent the array; none for arrays without elements."""
    for name in names:
        size, width = reader.size(name), max(1, _STRIP // len(reader.sites_with(name)))
        for start in range(0, size, width):
            yield Strip(name, start, min(start + width, size))


def in_threads(work: Callable[[Item], object], items: Iterable[Item], threads: int | None = None) -> None:
    """Call ``work`` for each item, in any order; returns when all are done, raises what a call raised."""
    queue = deque(items)

    def drain(_: int) -> None:
        while True:
            try:
                item = queue.popleft()
            except IndexError:
                return
            work(item)

    count = min(threads or min(_MOST_THREADS, len(os.sched_getaffinity(0))), len(queue))
    if count < 2:
        drain(0)
        return
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(drain, range(count)))

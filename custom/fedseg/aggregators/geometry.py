"""Inner products and distances between the updates of a round, each update taken as one long vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedseg.aggregators.spool.reader import SpoolReader
from fedseg.aggregators.spool.sums import Strip, in_threads, strips
from fedseg.aggregators.spool.updates import UpdateSpool

# Running sums, each over every 16th strip: how the strips are shared out must not depend on the number of threads.
_LANES = 16


@dataclass(frozen=True)
class Geometry:
    """Where updates lie to each other; rows and columns in the order of ``sites``.

    Attributes:
        sites: names, sorted.
        inner: inner products <u_i, u_j> [J, J] float64.
        squared: squared Euclidean distances |u_i - u_j|^2 [J, J] float64, summed from the differences themselves, so
            that equal updates have the distance 0 exactly.
    """

    sites: list[str]
    inner: np.ndarray
    squared: np.ndarray

    @property
    def norms(self) -> np.ndarray:
        """Euclidean norms [J]."""
        return np.sqrt(np.diag(self.inner))


def measure(spool: UpdateSpool, threads: int | None = None) -> Geometry:
    """The geometry of all updates in a spool, read strip by strip; an array that a site did not send counts as 0.

    Time grows with J^2 times the parameters. Memory: 16 pairs of [J, J] float64 (2.5 MB for 100 sites), and a strip for
    each thread (8 MB). The result has the same bits for any number of threads and any order in which sites sent.

    Args:
        spool: the updates.
        threads: how many to use; None takes one per processor, up to eight.
    """
    sites = spool.sites
    lanes = [Geometry(sites, np.zeros((len(sites),) * 2), np.zeros((len(sites),) * 2)) for _ in range(_LANES)]
    with spool.columns() as reader:
        pieces = list(strips(reader, spool.names()))
        work = [(lane, pieces[number::_LANES]) for number, lane in enumerate(lanes)]
        in_threads(lambda item: _add(reader, *item), work, threads)
    inner = np.sum([lane.inner for lane in lanes], axis=0)
    squared = np.sum([lane.squared for lane in lanes], axis=0)
    return Geometry(sites, _mirrored(inner), _mirrored(squared))


def _add(reader: SpoolReader, total: Geometry, pieces: Sequence[Strip]) -> None:
    """Add what the pieces contribute to the lower triangles of ``total``."""
    from fedseg.aggregators.spool.kernels import add_pairs

    for piece in pieces:
        senders = reader.sites_with(piece.name)
        inner, squared = np.zeros((len(senders),) * 2), np.zeros((len(senders),) * 2)
        data, starts = reader.rows(piece.name, senders, piece.start, piece.stop)
        add_pairs(data, starts, piece.stop - piece.start, inner, squared)
        present = np.isin(total.sites, senders)
        total.inner[np.ix_(present, present)] += inner
        total.squared[np.ix_(present, present)] += squared
        lengths = np.zeros(len(present))
        lengths[present] = np.diag(inner)
        # From a site that did not send the array, the distance to one that did is that one's length.
        apart = np.tril(present[:, None] != present[None])
        total.squared[apart] += (lengths[:, None] + lengths[None])[apart]


def _mirrored(lower: np.ndarray) -> np.ndarray:
    """The symmetric matrix with this lower triangle."""
    return lower + np.tril(lower, -1).T

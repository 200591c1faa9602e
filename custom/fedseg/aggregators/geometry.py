"""Inner products and distances between the updates of a round, each update taken as one long vector."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedseg.aggregators.spool import UpdateSpool


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


def measure(spool: UpdateSpool) -> Geometry:
    """The geometry of all updates in a spool, read array by array; an array that a site did not send counts as 0."""
    sites = spool.sites
    inner, squared = np.zeros((len(sites), len(sites))), np.zeros((len(sites), len(sites)))
    with spool.columns() as reader:
        for name in spool.names():
            present = set(reader.sites_with(name))
            shape = next(reader.read(s, name).size for s in sites if s in present)
            rows = np.stack(
                [reader.read(s, name).ravel().astype(np.float64) if s in present else np.zeros(shape) for s in sites]
            )
            inner += rows @ rows.T
            for i in range(len(sites)):
                squared[i] += ((rows - rows[i]) ** 2).sum(axis=1)
    return Geometry(sites, inner, squared)

"""Updates of a round, kept on disk until they are summed: memory does not grow with the number of sites."""

from __future__ import annotations

import os
import tempfile
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from fedseg.aggregators.spool.reader import Place, SpoolError, SpoolReader
from fedseg.errors import RefusalError

# Starts of arrays are multiples of a cache line, so that the file can be seen as one array of either type.
_ALIGNMENT = 64


class UpdateSpool:
    """All updates of a round in one temporary file without a name, which the system removes however the process ends.

    Arrays lie one behind the other as plain float32 or float64; where, is known in memory only. Safe to be filled from
    several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._file: int | None = None
        self._close: weakref.finalize | None = None
        self._places: dict[str, dict[str, Place]] = {}
        self._end = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> UpdateSpool:
        """An empty one, since rules are copied before their first round: each copy has a spool of its own."""
        if self._places:
            raise ValueError("A spool that holds updates cannot be copied.")
        return UpdateSpool()

    @property
    def sites(self) -> list[str]:
        """Sites with an update, sorted by name: the order in which everything is summed."""
        return sorted(self._places)

    def put(self, site: str, update: Mapping[str, Any]) -> None:
        """Store a site's update, completely or not at all; a second one of the same site replaces the first.

        The file keeps the space of a replaced update until ``clear``.

        Args:
            site: its name.
            update: arrays by name, numpy's or torch's, or FLARE's references to tensors on disk, of which one at a
                time is read. Half precision is stored as float32, which holds all its values.

        Raises:
            RefusalError: an array is not floating point, or its shape is not that of another site's (``weights``).
            SpoolError: the disk is full, or cannot be written.
        """
        with self._lock:
            try:
                places, end = {}, self._end
                for name in update:
                    array = _storable(name, as_array(update[name]))
                    self._check_shape(site, name, array)
                    start = -(-end // _ALIGNMENT) * _ALIGNMENT
                    places[name] = Place(start, array.shape, array.dtype)
                    if array.size:
                        with _disk(site):
                            self._write(array, start)
                        end = start + array.nbytes
            except BaseException:
                self._cut()
                raise
            self._places[site], self._end = places, end

    def names(self) -> list[str]:
        """Names of all arrays that any site sent, sorted."""
        return sorted({name for places in self._places.values() for name in places})

    def columns(self) -> SpoolReader:
        """A reader for the arrays that are there now; use it as a context manager."""
        with self._lock:
            return SpoolReader(self._file, self._end, {site: self._places[site] for site in self.sites})

    def clear(self) -> None:
        """Forget all updates and give their space back; open readers can still read them."""
        with self._lock:
            if self._close is not None:
                self._close()
            self._file, self._close, self._end = None, None, 0
            self._places.clear()

    def _check_shape(self, site: str, name: str, array: np.ndarray) -> None:
        for other, places in self._places.items():
            if other != site and name in places and places[name].shape != array.shape:
                text = f"{name} of {site} has the shape {array.shape}, that of {other} {places[name].shape}."
                raise RefusalError("weights", text)

    def _write(self, array: np.ndarray, start: int) -> None:
        if self._file is None:
            with tempfile.TemporaryFile(prefix="fedseg-updates-", buffering=0) as file:
                self._file = os.dup(file.fileno())
            self._close = weakref.finalize(self, os.close, self._file)
        left = array.reshape(-1).view(np.uint8).data
        while left:
            written = os.pwrite(self._file, left, start)
            left, start = left[written:], start + written

    def _cut(self) -> None:
        """Give back what an update that failed had taken."""
        if self._file is not None:
            os.ftruncate(self._file, self._end)


def as_array(value: Any) -> np.ndarray:
    """An array as it arrived: numpy, a tensor, or FLARE's reference to a tensor on disk, which is read here."""
    materialize = getattr(value, "materialize", None)
    array = materialize() if callable(materialize) else value
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        # numpy has no bfloat16.
        array = array.float() if array.dtype == torch.bfloat16 else array
    return np.asarray(array)


@contextmanager
def _disk(site: str) -> Iterator[None]:
    """Say what to do where the disk refuses."""
    try:
        yield
    except OSError as error:
        raise SpoolError(
            f"The update of {site} could not be kept in {tempfile.gettempdir()}: {error.strerror or error}. "
            "Free space there, or set TMPDIR to a folder with room for the updates of all sites."
        ) from error


def _storable(name: str, array: np.ndarray) -> np.ndarray:
    """The array contiguous, in the machine's byte order, as float32 or float64."""
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise RefusalError("weights", f"{name} is of the type {array.dtype}, not of half, single or double precision.")
    if not np.isfinite(array).all():
        raise RefusalError("weights", f"{name} holds values that are not finite.")
    kind = np.float64 if array.dtype.itemsize == 8 else np.float32
    # ascontiguousarray gives arrays without axes one.
    return np.ascontiguousarray(array, kind).reshape(array.shape)

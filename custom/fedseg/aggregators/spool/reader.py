"""Reading the updates of a round from the file in which ``UpdateSpool`` keeps them."""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from fedseg.errors import FedsegError

# Bytes looked at through the memory map before its pages are given back.
_MAPPED = 2**25
# Up to so many sites are looked at in place. The system maps up to 2 MiB around every byte that is looked at, so the
# memory in use would grow with the sites; strips of more are copied, which is slower (benchmarks/aggregation_speed.py).
_MOST_IN_PLACE = 8


class SpoolError(FedsegError):
    """An update could not be kept on disk, or not be read back."""


@dataclass(frozen=True)
class Place:
    """Where an array lies: first byte in the file, shape, and type (float32 or float64)."""

    start: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))


class SpoolReader:
    """Reads whole arrays, parts of them, or the same part of many sites at once; safe to use from several threads."""

    def __init__(self, file: int | None, end: int, places: Mapping[str, Mapping[str, Place]]) -> None:
        self._places = places
        self._end = end
        self._file = None if file is None else os.dup(file)
        self._close = weakref.finalize(self, os.close, self._file) if self._file is not None else None
        self._map: mmap.mmap | None = None
        self._floats = np.empty(0, np.float32)
        self._looked_at = 0
        self._lock = threading.Lock()
        self._own = threading.local()

    def __enter__(self) -> SpoolReader:
        if self._file is not None and self._end:
            self._map = mmap.mmap(self._file, self._end, access=mmap.ACCESS_READ)
            self._floats = np.frombuffer(self._map, np.float32)
        return self

    def __exit__(self, *error: object) -> None:
        # The map goes with the last array that looks into it; closing it here would fail where an error holds one.
        self._floats, self._map = np.empty(0, np.float32), None
        if self._close is not None:
            self._close()

    def sites_with(self, name: str) -> list[str]:
        """Sites that sent the array ``name``, sorted."""
        return [site for site, places in self._places.items() if name in places]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of the array ``name``, the same at all sites."""
        return self._places[self.sites_with(name)[0]][name].shape

    def size(self, name: str) -> int:
        """How many elements the array ``name`` has."""
        return self._places[self.sites_with(name)[0]][name].size

    def result_type(self, name: str) -> np.dtype:
        """The type of what the array is combined to: float32, or float64 where any site sent that."""
        return np.result_type(np.float32, *(self._places[site][name].dtype for site in self.sites_with(name)))

    def read(self, site: str, name: str) -> np.ndarray:
        """The array ``name`` of one site, the caller's own."""
        place = self._places[site][name]
        array = np.empty(place.shape, place.dtype)
        self._fill(array.reshape(-1), place.start)
        return array

    def read_into(self, site: str, name: str, start: int, out: np.ndarray) -> None:
        """Fill ``out`` (contiguous, one axis, any floating type) with the flattened array from element ``start`` on.

        Raises:
            IndexError: the array ends before ``out`` is full.
        """
        place = self._places[site][name]
        if not 0 <= start <= start + out.size <= place.size:
            raise IndexError(f"{name} has {place.size} elements, not {start + out.size}.")
        part = out if out.dtype == place.dtype else np.empty(out.size, place.dtype)
        self._fill(part, place.start + start * place.dtype.itemsize)
        if part is not out:
            out[:] = part

    def rows(self, name: str, sites: Sequence[str], start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """The elements from ``start`` to ``stop`` of the flattened array of many sites, if possible without a copy.

        Args:
            name: the array.
            sites: sites that sent it.
            start, stop: range of elements.

        Returns:
            One long array, only to be read, float64 where any of these sites sent that, else float32; and where in it
            each site's elements begin [J] int64. The thread's next call may overwrite it.

        Raises:
            IndexError: the array ends before ``stop``.
        """
        places = [self._places[site][name] for site in sites]
        if not 0 <= start <= stop <= min(place.size for place in places):
            raise IndexError(f"{name} has {places[0].size} elements, not {stop}.")
        width, kind = stop - start, np.result_type(np.float32, *(place.dtype for place in places))
        if kind == np.float32 and len(sites) <= _MOST_IN_PLACE:
            self._give_back(len(sites) * width * kind.itemsize)
            return self._floats, np.array([place.start // kind.itemsize + start for place in places], np.int64)
        copies = self._buffer(len(sites) * width, kind)
        for number, site in enumerate(sites):
            self.read_into(site, name, start, copies[number * width : (number + 1) * width])
        copies.flags.writeable = False
        return copies, np.arange(len(sites), dtype=np.int64) * width

    def _buffer(self, size: int, kind: np.dtype) -> np.ndarray:
        """An array of the calling thread, which uses it again and again: fresh memory costs more than reading."""
        held = getattr(self._own, "buffer", None)
        if held is None or held.nbytes < size * kind.itemsize:
            held = self._own.buffer = np.empty(size * kind.itemsize, np.uint8)
        return held[: size * kind.itemsize].view(kind)

    def _give_back(self, coming: int) -> None:
        """Unmap pages that were looked at, before ``coming`` more bytes are; they stay in the system's file cache."""
        with self._lock:
            self._looked_at += coming
            if self._looked_at > _MAPPED and self._map is not None:
                self._map.madvise(mmap.MADV_DONTNEED)
                self._looked_at = coming

    def _fill(self, out: np.ndarray, start: int) -> None:
        left = out.view(np.uint8).data
        while left:
            count = os.preadv(cast(int, self._file), [left], start)
            if count == 0:
                raise SpoolError("The file of the round's updates is shorter than it was written.")
            left, start = left[count:], start + count

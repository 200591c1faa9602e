"""Updates of a round, kept on disk until they are summed: memory does not grow with the number of sites."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from fedseg.networks.weights import contiguous


class UpdateSpool:
    """One file per site; single arrays are read back without loading the rest."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fedseg-updates-")
        self._files: dict[str, Path] = {}

    @property
    def sites(self) -> list[str]:
        """Sites with an update, sorted by name: the order in which everything is summed."""
        return sorted(self._files)

    def put(self, site: str, update: Mapping[str, np.ndarray]) -> None:
        """Store a site's update; a second one of the same site replaces the first."""
        path = Path(self._folder.name) / f"{len(self._files)}.safetensors"
        path = self._files.get(site, path)
        save_file(contiguous(update), path)
        self._files[site] = path

    def names(self) -> list[str]:
        """Names of all arrays that any site sent, sorted."""
        found: set[str] = set()
        for path in self._files.values():
            with safe_open(path, framework="numpy") as file:
                found.update(file.keys())
        return sorted(found)

    def columns(self) -> SpoolReader:
        """A reader for the arrays; use it as a context manager."""
        return SpoolReader({site: self._files[site] for site in self.sites})

    def clear(self) -> None:
        """Forget all updates."""
        for path in self._files.values():
            path.unlink(missing_ok=True)
        self._files.clear()


class SpoolReader:
    """Reads one array of every site at a time."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files
        self._open: dict[str, safe_open] = {}
        self._names: dict[str, set[str]] = {}

    def __enter__(self) -> SpoolReader:
        for site, path in self._files.items():
            self._open[site] = safe_open(path, framework="numpy").__enter__()
            self._names[site] = set(self._open[site].keys())
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._open.values():
            file.__exit__(None, None, None)
        self._open.clear()

    def sites_with(self, name: str) -> list[str]:
        """Sites that sent the array ``name``, sorted."""
        return [site for site in self._files if name in self._names[site]]

    def read(self, site: str, name: str) -> np.ndarray:
        """The array ``name`` of one site."""
        return self._open[site].get_tensor(name)

"""``statistics.json``: the statistics of all sites that told theirs, of all together, and how far they are apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedseg.errors import ConfigurationError, DataError
from fedseg.files.documents import load_data, write_json
from fedseg.statistics.distances import SitePair, advice, pairs
from fedseg.statistics.site_statistics import Statistics, parse_statistics, pooled
from fedseg.tasks.registry import resolve_task
from fedseg.tasks.task import Task
from fedseg.version import versions

FILE, REPORT = "statistics.json", "report"
SCHEMA = "fedseg-statistics-1"


@dataclass(frozen=True)
class FederationStatistics:
    """The statistics of a federation.

    Attributes:
        task: whose cases they are of.
        sites: by name, of those that told theirs; at least one.
        left_out: why each other site told nothing, by name.
    """

    task: Task
    sites: Mapping[str, Statistics]
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def pooled(self) -> Statistics:
        """Of all sites together."""
        return pooled(self.sites)

    @property
    def pairs(self) -> list[SitePair]:
        """Every pair of sites."""
        return pairs(self.task, self.sites)

    @property
    def advice(self) -> list[str]:
        """What to think of; see ``distances.advice``."""
        return advice(self.task, self.sites)

    def to_dict(self) -> dict[str, Any]:
        """The content of the file."""
        return {
            "schema": SCHEMA,
            "task": self.task.to_dict(),
            "sites": {site: self.sites[site].to_dict() for site in sorted(self.sites)},
            "pooled": self.pooled.to_dict(),
            "pairs": [pair.to_dict() for pair in self.pairs],
            "advice": self.advice,
            "left_out": dict(self.left_out),
            "versions": versions(),
        }


def write_statistics(statistics: FederationStatistics, path: Path) -> Path:
    """Write the file as a whole."""
    return write_json(path, statistics.to_dict())


def find_statistics(path: Path) -> Path:
    """The file that is meant: the path itself, the one in that folder, or in the report of that run."""
    if not path.is_dir():
        return path
    inside = path / REPORT / FILE
    return inside if inside.is_file() else path / FILE


def read_statistics(path: Path) -> FederationStatistics:
    """Read the file that is meant; what follows from the sites' parts is made again, not believed.

    Args:
        path: see ``find_statistics``.

    Raises:
        DataError: it is missing or no such file.
    """
    path = find_statistics(path)
    content = load_data(path, "does not exist. `fedseg statistics` writes it.", "cannot be read as JSON")
    return parse_document(content, str(path))


def parse_document(content: Any, where: str) -> FederationStatistics:
    """Read the content of such a file.

    Args:
        content: of the file.
        where: what messages call it.

    Raises:
        DataError: it is no such content.
    """
    sound = isinstance(content, Mapping) and content.get("schema") == SCHEMA
    if not sound or not isinstance(content.get("sites"), Mapping) or not content["sites"]:
        raise DataError(f"{where} holds no statistics of sites (schema {SCHEMA}). `fedseg statistics` writes them.")
    try:
        task = resolve_task(content.get("task", {}))
        sites = {str(site): parse_statistics(part, task) for site, part in content["sites"].items()}
    except (ConfigurationError, DataError) as error:
        raise DataError(f"{where}: {error}") from None
    left_out = content.get("left_out", {})
    return FederationStatistics(task, sites, dict(left_out) if isinstance(left_out, Mapping) else {})

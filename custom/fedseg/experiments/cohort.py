"""The cases of an experiment: those of its sites, of external test sites, and a digest of every file."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fedseg.data.datalist import SPLITS, Case, Datalist, read_datalist
from fedseg.data.intake.sources import convention_of, origin_note, read_source
from fedseg.data.label_convention import settled
from fedseg.data.partition import Sites, check_names, draw_sites, partition_by_csv
from fedseg.data.progress import Progress, silent
from fedseg.data.site_folders import find_sites, write_sites
from fedseg.data.splits import patients_needed, require_files
from fedseg.errors import ConfigurationError, DataError, UsageError
from fedseg.experiments.definition import DataSettings, Definition
from fedseg.tasks.task import Task


@dataclass(frozen=True)
class Cohort:
    """All cases of an experiment.

    Attributes:
        sites: of the sites that train, as their datalists split them.
        external: of sites that never train; all their cases are tests.
        digests: SHA-256 of the content of each file of a case.
    """

    sites: Mapping[str, Datalist]
    external: Mapping[str, Datalist]
    digests: Mapping[Path, str]

    def digest(self, datalist: Datalist) -> str:
        """SHA-256 of the cases of a datalist, split by split: patients, the contents of all files in order, and what is
        known of their regions; and of the convention that says what their labels mean, where there are several."""
        content: list[Any] = [
            [name, [_said(case, [self.digests[file] for file in case.files]) for case in cases]]
            for name, cases in ((split, datalist.split(split)) for split in SPLITS)
        ]
        content += [] if datalist.convention is None else [datalist.convention]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def read_cohort(definition: Definition, task: Task, data: Path, out: Path, progress: Progress = silent) -> Cohort:
    """Read the datalists, and spread a pool over sites where the definition says so.

    Args:
        definition: of the experiment.
        task: of the experiment.
        data: folder from which the definition's paths of data count.
        out: folder in which the sites of a pool are written; what an earlier call with the same settings wrote is
            used again.
        progress: shows how far long reading is.

    Raises:
        UsageError, ConfigurationError, DataError: a path leads nowhere, sites are unknown, or cases cannot be used.
    """
    settings, digests = definition.data, dict[Path, str]()
    if settings.folder is not None:
        folder = data / settings.folder
    else:
        folder, digests = _written(settings, task, data, out, progress)
    with _named("data.folder"):
        names = find_sites(folder)
    chosen = names if definition.sites is None else list(definition.sites)
    for name in chosen:
        if name not in names:
            raise ConfigurationError("sites", name, f"one of the sites that there are: {names}")
    lists = {name: _settled(task, read_datalist(folder / name), settings) for name in sorted(chosen)}
    external = {}
    for name, path in definition.external.items():
        if name.casefold() in {site.casefold() for site in lists}:
            raise ConfigurationError(f"external.{name}", path, f"under another name than {name}, which trains")
        with _named(f"external.{name}"):
            external[name] = _external(task, data / path, settings)
    check_names([*lists, *external])
    every = [case for part in (*lists.values(), *external.values()) for name in SPLITS for case in part.split(name)]
    require_files(every)
    digests |= _digests((file for case in every for file in case.files if file not in digests), progress)
    return Cohort(lists, external, digests)


_OPTIONS = {
    "--data": "data.folder", "--sites": "data.sizes", "--names": "data.names", "--dirichlet": "data.dirichlet",
    "--validation-fraction": "data.validation", "--convention": "data.convention", "--task": "task",
}  # fmt: skip
"""Keys of a definition in the place of the options of ``fedseg partition`` and ``fedseg simulate``."""


@contextmanager
def _named(key: str) -> Iterator[None]:
    """Errors of what is done meanwhile begin with a key of the definition, and name keys instead of options."""
    try:
        yield
    except (UsageError, DataError) as error:
        text = re.sub("|".join(_OPTIONS), lambda found: _OPTIONS[found[0]], str(error))
        raise type(error)(text if text.startswith(key) else f"{key}: {text}") from None


def _said(case: Case, files: list[Any]) -> list[Any]:
    """What decides about a case, ``files`` being what its files are: where all its regions are drawn, no more."""
    more = [] if case.drawn is None else [{"drawn": case.drawn}]
    return [case.patient, case.missing, files, *more, *([case.supervision.to_entry()] if case.supervision.weak else [])]


def _settled(task: Task, datalist: Datalist, settings: DataSettings) -> Datalist:
    stated = replace(datalist, convention=settings.convention or datalist.convention)
    return settled(task, stated)


def _external(task: Task, path: Path, settings: DataSettings) -> Datalist:
    """All labelled cases of a datalist, or of a data set in another layout, as a test."""
    cases = read_source(path, task, settings.convention)
    return Datalist(test=cases, task=task.name, convention=convention_of(path, task, cases, settings.convention))


def _written(
    settings: DataSettings, task: Task, data: Path, out: Path, progress: Progress
) -> tuple[Path, dict[Path, str]]:
    """The folder with the sites of a pool, or of one data set for each site, and digests of the files that they come
    from; made where none is there of the same settings and the same contents."""
    places = dict(settings.sources or {"": str(settings.source)})
    found = {}
    for site, path in places.items():
        with _named(f"data.sources.{site}" if settings.sources else "data.source"):
            found[site] = read_source(data / path, task, settings.convention)
    digests = _digests((file for cases in found.values() for case in cases for file in case.files), progress)
    folder = out / _key(settings, task, data, found, digests)
    if folder.is_dir():
        return folder, digests
    fractions = {"validation": settings.validation, "test": settings.test}
    with _named("data"):
        sites = _spread(settings, found[""], data, fractions, progress) if settings.sources is None else found
    source = data / next(iter(places.values()))
    every = [case for cases in sites.values() for case in cases]
    convention = convention_of(source, task, every, settings.convention, progress)
    notes = {"origin": origin_note(source)}
    with _named("data"):
        write_sites(
            sites, folder, task, fractions, settings.seed, settings.scanner_shift, notes,
            progress=progress, convention=convention, label_noise=settings.label_noise,
        )  # fmt: skip
    return folder, digests


def _key(
    settings: DataSettings, task: Task, data: Path, found: Mapping[str, Sequence[Case]], digests: Mapping[Path, str]
) -> str:
    """A name for the sites that follow from settings, the table of a partition, and the contents of all files."""
    table = [] if settings.csv is None else [*_digests([data / settings.csv], silent).values()]
    contents = {
        site: [_said(case, [[str(file), digests[file]] for file in case.files]) for case in cases]
        for site, cases in found.items()
    }
    said = json.dumps([asdict(settings), task.to_dict(), str(data.resolve()), *table, contents], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _spread(
    settings: DataSettings, cases: tuple[Case, ...], data: Path, fractions: Mapping[str, float], progress: Progress
) -> Sites:
    if settings.csv is not None:
        found, _ = partition_by_csv(cases, data / settings.csv)
        if unknown := sorted(set(settings.names or ()) - set(found)):
            raise ConfigurationError("data.names", unknown[0], f"a site of the table: {sorted(found)}")
        return {name: found[name] for name in settings.names or found}
    count = settings.number or len(settings.names or settings.sizes or ())
    names = list(settings.names or (f"site-{i + 1}" for i in range(count)))
    least = patients_needed(fractions)
    return draw_sites(cases, names, settings.sizes, settings.dirichlet, settings.seed, least, progress)


def _digests(files: Iterable[Path], progress: Progress) -> dict[Path, str]:
    every, found = list(dict.fromkeys(files)), {}
    for file in progress(every, "Reading files", len(every)):
        try:
            with file.open("rb") as stream:
                found[file] = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror}.") from None
    return found

"""What an experiment is, as checked values: read from one YAML file in which nothing is code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fedseg import allowed
from fedseg.allowed import one_of, optional, setting, settings, switch, text, texts, whole
from fedseg.data.label_noise import LabelNoise, parse_label_noise
from fedseg.errors import ConfigurationError
from fedseg.experiments.arms import Arm, parse_arms, parse_settings
from fedseg.files.names import EXPERIMENT, SITE
from fedseg.files.yaml_documents import read_yaml

BUDGETS = ("rounds", "steps", "samples")
FOLD_KINDS = ("none", "patients", "leave_one_site_out")
REQUIRED = ("experiment", "job", "data", "arms")


def _paths(name: str, value: Any) -> dict[str, str]:
    """Folders or files by the name of a site."""
    if not isinstance(value, Mapping) or not value:
        raise ConfigurationError(name, value, "an object with a path for each site, at least one")
    for site, path in value.items():
        SITE.check(f"{name}: site", site)
        text(f"{name}.{site}", path)
    return dict(value)


def _counts(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not value:
        raise ConfigurationError(name, value, "a list of whole numbers, at least one")
    return tuple(whole(f"{name}[{i}]", each) for i, each in enumerate(value))


def _fraction(name: str, value: Any, least: float = 0.0) -> float:
    return float(allowed.number(name, value, least=least, below=1))


@dataclass(frozen=True)
class DataSettings:
    """Where the sites' cases are; exactly one of ``folder``, ``source`` and ``sources``.

    Attributes:
        folder: a folder with ``<site>/datalist.json``, as ``fedseg simulate --data`` takes it.
        source: one data set in any layout that ``fedseg partition`` reads, which is spread over simulated sites.
        sources: for each site a data set of its own.
        convention: the label convention of all files, where the task has several.
        names: of the sites of a partition.
        number: of equal sites of a partition.
        sizes: cases of each site of a partition.
        dirichlet: skew of a partition by the size of the target; smaller is more skewed.
        csv: table of a partition with the columns ``Partition_ID`` and ``Subject_ID``.
        scanner_shift: strength from 0 to 1 of a simulated scanner at each site.
        label_noise: by site, how a simulated annotator draws its training and validation cases.
        validation: share of a site's patients on which rounds are watched, where the data do not say.
        test: share of a site's patients on which models are compared, where neither data nor folds say.
        seed: of these draws; the same for all seeds of the experiment.
    """

    folder: str | None = setting(None, text)
    source: str | None = setting(None, text)
    sources: Mapping[str, str] | None = setting(None, _paths)
    convention: str | None = setting(None, text)
    names: tuple[str, ...] | None = setting(None, texts)
    number: int | None = setting(None, whole, most=1000)
    sizes: tuple[int, ...] | None = setting(None, _counts)
    dirichlet: float | None = setting(None, allowed.number, above=0)
    csv: str | None = setting(None, text)
    scanner_shift: float = setting(0.0, allowed.number, least=0, most=1)
    label_noise: Mapping[str, LabelNoise] | None = setting(None, parse_label_noise)
    validation: float = setting(0.2, allowed.number, above=0, below=1)
    test: float = setting(0.2, _fraction)
    seed: int = setting(0, whole, least=0, most=2**32 - 1)

    def __post_init__(self) -> None:
        places = [name for name in ("folder", "source", "sources") if getattr(self, name) is not None]
        if len(places) != 1:
            raise ConfigurationError("data", places or None, "an object with one of folder, source and sources")
        ways = [name for name in ("number", "sizes", "dirichlet", "csv") if getattr(self, name) is not None]
        if places != ["source"]:
            given = [*ways, *(name for name in ("names", "scanner_shift", "label_noise") if getattr(self, name))]
            if given:
                raise ConfigurationError(f"data.{given[0]}", getattr(self, given[0]), "left out without data.source")
        else:
            self._check_partition()
        if self.validation + self.test >= 1:
            total = self.validation + self.test
            raise ConfigurationError("data.validation + data.test", total, "below 1, or nothing is left to train on")

    def _check_partition(self) -> None:
        if self.label_noise and not self.test:
            raise ConfigurationError("data.test", self.test, "above 0 with data.label_noise: tests need true labels")
        if self.csv is None and self.sizes is None and self.names is None and self.number is None:
            remedy = "Name number, sizes, names or csv."
            raise ConfigurationError("data.number", None, "given where data.source is spread over sites", remedy)
        if self.csv is not None and (self.sizes or self.dirichlet or self.number):
            raise ConfigurationError("data.csv", self.csv, "given without number, sizes and dirichlet")
        if self.sizes is not None and self.dirichlet is not None:
            raise ConfigurationError("data.dirichlet", self.dirichlet, "left out with data.sizes")
        counts = {"names": len(self.names or ()), "sizes": len(self.sizes or ()), "number": self.number or 0}
        (first, sites), *others = [(name, count) for name, count in counts.items() if count] or [("", 0)]
        for name, count in others if self.csv is None else ():
            if count != sites:
                allowed = f"for as many sites as data.{first}, one number of sites: {sites}"
                raise ConfigurationError(f"data.{name}", getattr(self, name), allowed)


@dataclass(frozen=True)
class FoldSettings:
    """How cases are held out.

    Attributes:
        kind: ``none``: as the datalists say, one test; ``patients``: k-fold over the patients of each site;
            ``leave_one_site_out``: each site is the test of a training without it.
        k: parts of ``patients``.
        with_it: with ``leave_one_site_out``: only the test cases of each site are tests, and all sites train in one
            more fold, so that each site is tested on the same patients without it and with it.
        only: names of the folds that are run; None runs all.
    """

    kind: str = setting("none", one_of, choices=FOLD_KINDS)
    k: int = setting(5, whole, least=2, most=100)
    with_it: bool = setting(False, switch)
    only: tuple[str, ...] | None = setting(None, texts)

    def __post_init__(self) -> None:
        if self.with_it and self.kind != "leave_one_site_out":
            raise ConfigurationError("folds.with_it", True, "false where folds.kind is not leave_one_site_out")


@dataclass(frozen=True)
class Budget:
    """How long every arm trains; exactly one is given.

    Attributes:
        rounds: rounds of the job's local epochs.
        steps: optimizer steps, summed over all sites that train the model.
        samples: training cases seen, each pass counted, summed likewise.
    """

    rounds: int | None = setting(None, whole, most=1_000_000)
    steps: int | None = setting(None, whole)
    samples: int | None = setting(None, whole)

    def __post_init__(self) -> None:
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ConfigurationError("budget", given or None, f"an object with one of {', '.join(BUDGETS)}")

    @property
    def unit(self) -> str:
        """Which of the three is given."""
        return next(name for name in BUDGETS if getattr(self, name) is not None)

    @property
    def amount(self) -> int:
        """How much."""
        return int(getattr(self, self.unit))


@dataclass(frozen=True)
class Watts:
    """Power that is charged for the measured seconds; energy is told only where these are given.

    Attributes:
        cpu: watts of one busy core.
        gpu: watts of a GPU for the time in which a unit holds it.
    """

    cpu: float | None = setting(None, allowed.number, above=0)
    gpu: float | None = setting(None, allowed.number, above=0)


@dataclass(frozen=True)
class Definition:
    """A checked experiment.

    Attributes:
        name: of the experiment.
        description: what it asks, for people.
        job: job folder whose task, network and training all arms share.
        task: in the place of the job's: a built-in name, the path of a declaration, or a declaration.
        set: settings of all arms, by the names of ``fedseg simulate --set``.
        data, folds, budget, watts: see their classes; a budget of None takes the job's rounds.
        statistics: fewest patients behind each number of the statistics of the sites' cases; None makes none.
        sites: of those that there are, the ones that take part; None takes all.
        external: test sets of sites that never train: a datalist or its folder, by the site's name.
        seeds: every arm is trained with each.
        arms: by name, in the order of tables.
        reference: the arm with which others are compared; the first by default.
        raw: the file's content as it was read.
        folder: of the file, from which its paths count.
    """

    name: str
    job: Path
    data: DataSettings
    arms: Mapping[str, Arm]
    description: str = ""
    task: Any = None
    set: Mapping[str, Any] = field(default_factory=dict)
    folds: FoldSettings = FoldSettings()
    budget: Budget | None = None
    watts: Watts = Watts()
    statistics: int | None = None
    sites: tuple[str, ...] | None = None
    external: Mapping[str, str] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    reference: str = ""
    raw: Mapping[str, Any] = field(default_factory=dict)
    folder: Path = Path()

    def __post_init__(self) -> None:
        true_tests = self.folds.kind == "none" or self.folds.with_it
        if self.data.label_noise and not true_tests:
            raise ConfigurationError(
                "folds.kind",
                self.folds.kind,
                "none, or leave_one_site_out with with_it, with data.label_noise: else tests have noisy labels",
            )

    @property
    def digest(self) -> str:
        """SHA-256 of what the file says."""
        return hashlib.sha256(json.dumps(self.raw, sort_keys=True).encode()).hexdigest()


KEYS = tuple("experiment" if each.name == "name" else each.name for each in fields(Definition))[:-2]
"""Names that a file may have."""


def read_definition(path: Path) -> Definition:
    """Read and check the file of an experiment; job folders are checked later, see ``experiments.units``.

    Raises:
        ConfigurationError: the file cannot be read, a name is unknown, or a value is not allowed.
    """
    content = read_yaml(path, "the definition of an experiment")
    if not isinstance(content, Mapping):
        raise ConfigurationError(path.name, type(content).__name__, f"an object with {list(KEYS)}")
    allowed.known_names("", content, KEYS, "an experiment has")
    for name in REQUIRED:
        if name not in content:
            raise ConfigurationError(name, None, "given in the definition of an experiment")
    return _parse(content, path.parent)


def _parse(content: Mapping[str, Any], folder: Path) -> Definition:
    arms = parse_arms(content["arms"], folder)
    reference = content.get("reference", next(iter(arms)))
    external = _paths("external", content["external"]) if content.get("external") else {}
    return Definition(
        name=_name(content["experiment"]),
        description=str(content.get("description", "")),
        job=folder / text("job", content["job"]),
        task=content.get("task"),
        set=parse_settings("set", content.get("set", {})),
        data=settings(DataSettings, content["data"], "data"),
        folds=settings(FoldSettings, content.get("folds", {}), "folds"),
        budget=settings(Budget, content["budget"], "budget") if "budget" in content else None,
        watts=settings(Watts, content.get("watts", {}), "watts"),
        statistics=optional(whole, "statistics", content.get("statistics")),
        sites=optional(texts, "sites", content.get("sites")),
        external=external,
        seeds=_seeds(content.get("seeds", [0])),
        arms=arms,
        reference=one_of("reference", reference, tuple(arms)),
        raw=content,
        folder=folder,
    )


def _name(value: Any) -> str:
    return EXPERIMENT.check("experiment", text("experiment", value))


def _seeds(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not value or len(set(map(str, value))) < len(value):
        raise ConfigurationError("seeds", value, "a list of different whole numbers, at least one")
    return tuple(whole(f"seeds[{i}]", seed, least=0, most=2**32 - 1) for i, seed in enumerate(value))

"""Who trains on what, and on what every model is tested: as datalists say, k-fold over patients, or without a site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from fedseg.data.datalist import SPLITS, Datalist
from fedseg.data.splits import by_patient, split_by_patient
from fedseg.errors import ConfigurationError, DataError, UsageError
from fedseg.evaluation.experiment_folder import LEFT_OUT
from fedseg.experiments.cohort import Cohort
from fedseg.experiments.definition import DataSettings, Definition, FoldSettings
from fedseg.experiments.same_patients import check_apart
from fedseg.randomness import derive_seed, generator

SINGLE = "-"
"""Name of the only fold where there are no others."""


@dataclass(frozen=True)
class Fold:
    """One way to hold cases out.

    Attributes:
        name: ``-``, the number of a part, or ``loso-SITE``.
        training: of the sites that train: their training and validation cases; nothing else is read before a model is
            finished.
        tests: of all sites that models are scored at: their test cases.
    """

    name: str
    training: Mapping[str, Datalist]
    tests: Mapping[str, Datalist]

    @property
    def words(self) -> str:
        """The fold in a sentence: `` in the fold 3``; empty where it is the only one."""
        return "" if self.name == SINGLE else f" in the fold {self.name}"

    @property
    def left_out(self) -> str:
        """The site that is left out; empty where none is."""
        return self.name.removeprefix(LEFT_OUT) if self.name.startswith(LEFT_OUT) else ""


def make_folds(definition: Definition, cohort: Cohort) -> list[Fold]:
    """The folds of an experiment, in order.

    Raises:
        UsageError: there is one site, and it is to be left out.
        DataError: a site has too few patients, or no cases to train on; or an image is a test and trains elsewhere.
        ConfigurationError: ``folds.only`` names another fold than there are.
    """
    settings = definition.folds
    if settings.kind == "patients":
        folds = [_part(number, settings, definition.data, cohort) for number in range(settings.k)]
    elif settings.kind == "leave_one_site_out":
        if len(cohort.sites) < 2:
            raise UsageError("folds.kind is leave_one_site_out, but there is one site only. Choose patients or none.")
        whole = [_fold(SINGLE, cohort.sites, cohort)] if settings.with_it else []
        folds = [*whole, *(_without(site, cohort, settings.with_it) for site in cohort.sites)]
    else:
        folds = [_fold(SINGLE, cohort.sites, cohort)]
    names = [fold.name for fold in folds]
    for name in settings.only or ():
        if name not in names:
            raise ConfigurationError("folds.only", name, f"one of {names}")
    chosen = [fold for fold in folds if settings.only is None or fold.name in settings.only]
    for fold in chosen:
        _check(fold)
        check_apart(fold.words, fold.training, fold.tests, cohort.digests)
    return chosen


def _fold(name: str, sites: Mapping[str, Datalist], cohort: Cohort) -> Fold:
    training = {site: replace(datalist, test=()) for site, datalist in sites.items()}
    tests = {site: _only_test(datalist) for site, datalist in sites.items()}
    return Fold(name, training, tests | dict(cohort.external))


def _only_test(datalist: Datalist) -> Datalist:
    found = datalist.scorable
    return replace(found, training=(), validation=(), test=found.split(found.final_split))


def _without(site: str, cohort: Cohort, same_tests: bool) -> Fold:
    """A fold in which a site does not train; all its cases are tests, or those that also a training with it spares.

    Raises:
        DataError: ``same_tests``, and the site has no test case.
    """
    others = {name: datalist for name, datalist in cohort.sites.items() if name != site}
    fold, datalist = _fold(LEFT_OUT + site, others, cohort), cohort.sites[site]
    if same_tests and not datalist.test:
        raise DataError(
            f"{site} has no test case, on which folds.with_it compares. Give it some, or leave with_it out."
        )
    splits = ("test",) if same_tests else SPLITS
    every = tuple(dict.fromkeys(case for split in splits for case in datalist.split(split)))
    tests = {**fold.tests, site: replace(datalist, training=(), validation=(), test=every).scorable}
    return replace(fold, tests={name: tests[name] for name in sorted(tests)})


def _part(number: int, settings: FoldSettings, data: DataSettings, cohort: Cohort) -> Fold:
    """A fold that tests the ``number``-th part of each site's patients; splits of the datalists do not count."""
    sites = {}
    for site, datalist in cohort.sites.items():
        cases = tuple(dict.fromkeys(case for split in SPLITS for case in datalist.split(split)))
        patients = sorted(by_patient(cases))
        if len(patients) < settings.k:
            raise DataError(f"{site} has {len(patients)} patient(s), too few for folds.k of {settings.k}. Lower it.")
        order = [patients[i] for i in generator(data.seed, site, "folds").permutation(len(patients))]
        held = set(order[number :: settings.k])
        rest = [case for case in cases if case.patient not in held]
        seed = derive_seed(data.seed, site, "validation", number)
        parts = split_by_patient(rest, {"validation": data.validation, "test": 0.0}, seed)
        test = tuple(case for case in cases if case.patient in held)
        sites[site] = replace(datalist, training=parts["training"], validation=parts["validation"], test=test)
    return _fold(str(number), sites, cohort)


def _check(fold: Fold) -> None:
    for site, datalist in fold.training.items():
        for split in ("training", "validation"):
            if not datalist.split(split):
                raise DataError(f"{site} has no {split} case{fold.words}. Add cases, or leave the site out.")
        trained = {case.patient for split in SPLITS for case in datalist.split(split) if split == "training"}
        if both := sorted(trained & set(by_patient(fold.tests[site].test))):
            raise DataError(f"{site}: the patient {both[0]} is trained on and tested{fold.words}.")


def pooled(fold: Fold) -> tuple[str, Datalist]:
    """All training and validation cases of a fold in one place, and what that place is called.

    A pool of one site goes by the site's name, so that pooled training of one site is its own training.

    Raises:
        DataError: the sites follow different label conventions.
    """
    lists = list(fold.training.values())
    conventions = {datalist.convention for datalist in lists}
    if len(conventions) > 1:
        named = ", ".join(sorted(str(name) for name in conventions))
        raise DataError(f"The sites' labels follow different conventions ({named}), so that they cannot be pooled.")
    name = next(iter(fold.training)) if len(lists) == 1 else "pooled"
    training, validation = (
        tuple(case for datalist in lists for case in datalist.split(split)) for split in ("training", "validation")
    )
    return name, replace(lists[0], training=training, validation=validation, path=None, notes={})

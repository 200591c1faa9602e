"""Folds: every patient is tested once, nobody is on two sides, and a site that is left out does not train."""

from collections import Counter
from dataclasses import replace

import pytest

from fedseg.data.datalist import SPLITS, read_datalist
from fedseg.errors import FedsegError
from fedseg.experiments.cohort import Cohort, read_cohort
from fedseg.experiments.definition import read_definition
from fedseg.experiments.folds import make_folds, pooled
from fedseg.tasks.registry import resolve_task
from tiny import TASK, make_sites, write_case
from tiny_experiment import write_experiment

SIZES = {"alpha": (7, 1), "beta": (5, 1)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiment")
    write_experiment(folder, sizes=SIZES)
    return folder


def folds_of(folder, **more):
    definition = read_definition(write_experiment(folder, **more))
    cohort = read_cohort(definition, resolve_task(TASK), folder, folder / "sites")
    return make_folds(definition, cohort)


def patients(datalist, *splits):
    return {case.patient for split in splits for case in datalist.split(split)}


def test_without_folds_the_datalists_say_who_is_tested(folder):
    (fold,) = folds_of(folder)
    for site in SIZES:
        said = read_datalist(folder / "data" / site)
        assert fold.training[site].training == said.training
        assert fold.training[site].validation == said.validation
        assert fold.training[site].test == ()
        assert fold.tests[site].test == said.test
        assert fold.tests[site].training == fold.tests[site].validation == ()


def test_every_patient_is_tested_once_and_never_trained_on_then(folder):
    folds = folds_of(folder, folds={"kind": "patients", "k": 3})
    assert [fold.name for fold in folds] == ["0", "1", "2"]
    for site, (training, validation) in SIZES.items():
        tested = Counter(p for fold in folds for p in patients(fold.tests[site], "test"))
        assert len(tested) == training + validation + 1
        assert set(tested.values()) == {1}
        for fold in folds:
            own = patients(fold.training[site], "training", "validation")
            assert not own & patients(fold.tests[site], "test")
            assert len(own) + len(patients(fold.tests[site], "test")) == len(tested)
            assert fold.training[site].validation


def test_cases_of_one_patient_stay_together(folder):
    definition = read_definition(write_experiment(folder, folds={"kind": "patients", "k": 3}))
    cohort = read_cohort(definition, resolve_task(TASK), folder, folder / "sites")
    twins = {
        site: replace(part, training=tuple(replace(case, patient=f"p{i // 2}") for i, case in enumerate(part.training)))
        for site, part in cohort.sites.items()
    }
    for fold in make_folds(definition, Cohort(twins, {}, cohort.digests)):
        for site in twins:
            tested = patients(fold.tests[site], "test")
            assert not tested & patients(fold.training[site], "training", "validation")


def test_a_site_that_is_left_out_is_a_test_as_a_whole(folder):
    folds = folds_of(folder, folds={"kind": "leave_one_site_out"})
    assert [(fold.name, fold.left_out) for fold in folds] == [("loso-alpha", "alpha"), ("loso-beta", "beta")]
    for fold in folds:
        assert set(fold.training) == set(SIZES) - {fold.left_out}
        said = read_datalist(folder / "data" / fold.left_out)
        assert set(fold.tests[fold.left_out].test) == {*said.training, *said.validation, *said.test}


def test_a_site_is_tested_on_the_same_patients_without_it_and_with_it(folder):
    whole, *apart = folds_of(folder, folds={"kind": "leave_one_site_out", "with_it": True})
    assert (whole.name, whole.left_out) == ("-", "")
    assert whole == folds_of(folder)[0]
    assert [fold.left_out for fold in apart] == list(SIZES)
    for fold in apart:
        assert fold.tests == whole.tests
        assert set(fold.training) == set(SIZES) - {fold.left_out}
        assert all(fold.training[site] == whole.training[site] for site in fold.training)
    only = {"kind": "leave_one_site_out", "with_it": True, "only": ["-", "loso-beta"]}
    assert [fold.name for fold in folds_of(folder, folds=only)] == ["-", "loso-beta"]


def test_a_site_without_test_cases_is_not_compared_with_itself(tmp_path):
    make_sites(tmp_path / "data", {"alpha": (3, 1), "beta": (3, 1)})
    with pytest.raises(FedsegError, match=r"alpha has no test case, on which folds\.with_it compares\. Give it some"):
        folds_of(tmp_path, folds={"kind": "leave_one_site_out", "with_it": True})


def test_single_folds_can_be_run(folder):
    folds = folds_of(folder, folds={"kind": "patients", "k": 3, "only": ["2", "0"]})
    assert [fold.name for fold in folds] == ["0", "2"]
    with pytest.raises(FedsegError, match=r"folds\.only is '9', but must be one of \['0', '1', '2'\]"):
        folds_of(folder, folds={"kind": "patients", "k": 3, "only": ["9"]})


def test_external_sites_are_tested_and_never_trained(folder):
    make_sites(folder / "elsewhere", {"a": (1, 1), "b": (1, 1), "delta": (2, 1)})
    (fold,) = folds_of(folder, external={"delta": "elsewhere/delta"})
    assert "delta" not in fold.training
    assert len(fold.tests["delta"].test) == 3


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"folds": {"kind": "patients", "k": 8}}, "beta has 7 patient(s), too few for folds.k of 8"),
        ({"sites": ["alpha"], "folds": {"kind": "leave_one_site_out"}}, "there is one site only"),
        ({"folds": {"kind": "patients", "with_it": True}}, "folds.with_it is True, but must be false where folds.kind"),
        ({"sites": ["omega"]}, "sites is 'omega', but must be one of the sites that there are: ['alpha', 'beta']"),
        (
            {"external": {"alpha": "data/alpha"}},
            "external.alpha is 'data/alpha', but must be under another name than alpha",
        ),
        ({"external": {"delta": "nowhere"}}, "external.delta: "),
        ({"data": {"folder": "nothing"}}, "data.folder "),
        ({"data": {"source": "nothing", "number": 2}}, "data.source: "),
        ({"data": {"sources": {"a": "nothing"}}}, "data.sources.a: "),
    ],
)
def test_what_cannot_be_folded_is_refused(folder, more, said):
    with pytest.raises(FedsegError) as found:
        folds_of(folder, **more)
    assert said in str(found.value)


def test_a_pool_has_all_training_and_validation_cases_and_one_sites_pool_its_name(folder):
    (fold,) = folds_of(folder)
    name, pool = pooled(fold)
    assert name == "pooled"
    for split in ("training", "validation"):
        assert Counter(pool.split(split)) == Counter(c for part in fold.training.values() for c in part.split(split))
    assert pool.test == ()
    (alone,) = folds_of(folder, sites=["beta"])
    assert pooled(alone)[0] == "beta"


def test_a_pool_is_spread_once_and_found_again(folder, tmp_path):
    more = {"data": {"source": "data/alpha", "sizes": [4, 4], "test": 0.25, "validation": 0.25}}
    definition = read_definition(write_experiment(folder, **more))
    first = read_cohort(definition, resolve_task(TASK), folder, tmp_path)
    (made,) = tmp_path.iterdir()
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    again = read_cohort(definition, resolve_task(TASK), folder, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before
    assert first == again
    assert {site: tuple(map(len, (p.training, p.validation, p.test))) for site, p in first.sites.items()} == {
        "site-1": (2, 1, 1), "site-2": (2, 1, 1),
    }  # fmt: skip


def test_labels_that_mean_something_else_are_other_data(folder):
    definition = read_definition(write_experiment(folder))
    cohort = read_cohort(definition, resolve_task(TASK), folder, folder / "sites")
    one = cohort.sites["alpha"]
    digests = {cohort.digest(replace(one, convention=name)) for name in (None, "BraTS 2021", "BraTS 2023")}
    assert len(digests) == 3


def test_a_table_that_was_changed_spreads_the_cases_anew(tmp_path):
    definition = read_definition(
        write_experiment(tmp_path, sizes=SIZES, data={"source": "data/alpha", "csv": "table.csv", "test": 0.25})
    )
    names = sorted(patients(read_datalist(tmp_path / "data" / "alpha"), *SPLITS))
    for turn in (0, 4):
        order = [*names[turn:], *names[:turn]]
        lines = [f"{1 if order.index(name) < 4 else 2},{name}" for name in names]
        (tmp_path / "table.csv").write_text("\n".join(["Partition_ID,Subject_ID", *lines]), "utf-8")
        cohort = read_cohort(definition, resolve_task(TASK), tmp_path, tmp_path / "sites")
        assert patients(cohort.sites["site-1"], *SPLITS) == set(order[:4])


@pytest.mark.parametrize("shift", [0, 0.5])
def test_a_source_that_was_changed_is_spread_anew(tmp_path, shift):
    data = {"source": "data/alpha", "number": 2, "test": 0.25, "scanner_shift": shift}
    definition = read_definition(write_experiment(tmp_path, sizes=SIZES, data=data))

    def cohort():
        return read_cohort(definition, resolve_task(TASK), tmp_path, tmp_path / "sites")

    before = cohort()
    write_case(tmp_path / "data" / "alpha" / "images", "alpha-0", 999)
    after = cohort()
    assert len(list((tmp_path / "sites").iterdir())) == 2
    changed = [site for site in before.sites if before.digest(before.sites[site]) != after.digest(after.sites[site])]
    assert len(changed) == 1
    assert patients(before.sites[changed[0]], *SPLITS) == patients(after.sites[changed[0]], *SPLITS)


def test_each_site_may_have_a_source_of_its_own(folder, tmp_path):
    more = {"data": {"sources": {"one": "data/alpha", "two": "data/beta"}}}
    definition = read_definition(write_experiment(folder, **more))
    cohort = read_cohort(definition, resolve_task(TASK), folder, tmp_path)
    assert {site: sum(len(p.split(s)) for s in ("training", "validation", "test")) for site, p in cohort.sites.items()}
    assert len(patients(cohort.sites["one"], "training", "validation", "test")) == 9
    assert len(patients(cohort.sites["two"], "training", "validation", "test")) == 7

"""Labels out of which regions are taken: which cases, which voxels, and what the datalists say of them."""

import json

import numpy as np
import pytest

from fedseg.cli import main
from fedseg.data.checks.datalist_check import check_datalist
from fedseg.data.datalist import read_datalist
from fedseg.data.reading import read_label
from fedseg.data.undrawn_labels import PartialLabels, chosen_patients
from fedseg.errors import DataError, UsageError
from fedseg.tasks.registry import get_task
from tiny import TASK, make_sites

EXCLUSIVE = {**TASK, "regions": {"inner": ["inner"], "outer": ["outer"]}}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_sites(tmp_path_factory.mktemp("source"), {"all": (12, 4)}) / "all"


def partition(source, folder, task, *more):
    (folder / "task.json").write_text(json.dumps(task))
    out = folder / "sites"
    splits = ["--validation-fraction", "0.25", "--test-fraction", "0.25"]
    code = main(
        [
            "partition",
            str(source),
            "--task",
            str(folder / "task.json"),
            "--sites",
            "2",
            "--out",
            str(out),
            *splits,
            *more,
        ]
    )
    return code, ({path.name: read_datalist(path) for path in sorted(out.iterdir())} if out.exists() else {})


def values(case):
    return read_label(case.label)[0]


def test_one_site_keeps_one_region_and_test_cases_keep_all(source, tmp_path):
    before = {case.id: values(case) for case in read_datalist(source).training + read_datalist(source).validation}
    code, sites = partition(source, tmp_path, EXCLUSIVE, "--drawn", "outer", "--drawn-at", "site-2")
    assert code == 0
    for site, found in sites.items():
        for case in (*found.training, *found.validation):
            whole = before[case.id]
            assert case.drawn == (None if site == "site-1" else ("outer",))
            expected = whole if site == "site-1" else np.where(whole == 2, 2, 0)
            np.testing.assert_array_equal(values(case), expected)
        assert {case.drawn for case in found.test} == {None}
        assert all(np.array_equal(values(case), before[case.id]) for case in found.test)
    assert all(np.array_equal(values(c), before[c.id]) for c in read_datalist(source).training), (
        "inputs stay as they are"
    )


def test_of_overlapping_regions_the_outer_one_loses_what_lies_in_it(source, tmp_path):
    _, sites = partition(source, tmp_path, TASK, "--drawn", "whole", "--drawn-at", "site-1", "--shared", "0.2")
    partial = [case for case in sites["site-1"].training if case.drawn == ("whole",)]
    assert partial
    assert all(set(np.unique(values(case))) == {0, 2} for case in partial)
    # A shared case stays what it is at its own site.
    assert {case.drawn for case in sites["site-2"].training} <= {None, ("whole",)}
    assert all(case.label.exists() for found in sites.values() for case in found.training)


def test_a_share_is_of_patients_and_follows_from_the_seed(source, tmp_path):
    _, sites = partition(source, tmp_path, EXCLUSIVE, "--drawn", "inner", "--drawn-share", "0.25")
    marked = [c.patient for d in sites.values() for c in (*d.training, *d.validation) if c.drawn]
    total = sum(len(d.training) + len(d.validation) for d in sites.values())
    assert len(marked) == round(0.25 * total)
    again = chosen_patients(PartialLabels(("inner",), (), 0.25), sites, 0)
    assert again == set(marked)
    assert chosen_patients(PartialLabels(("inner",), (), 0.25), sites, 1) != again


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--drawn-at", "site-1"], "--drawn-at and --drawn-share need --drawn"),
        (["--drawn", "inner", "--drawn-at", "site-9"], "--drawn-at names site-9"),
        (["--drawn", "inner,outer"], "names all regions"),
        (["--drawn", "liver"], "'liver'"),
        (["--drawn", "inner", "--drawn-share", "0"], "--drawn-share is 0.0"),
    ],
)
def test_what_makes_no_sense_is_refused_and_leaves_nothing(source, tmp_path, capsys, more, why):
    code, sites = partition(source, tmp_path, EXCLUSIVE, *more)
    assert code != 0
    assert sites == {}
    assert why in " ".join(capsys.readouterr().err.split())


def test_names_twice_and_none_are_refused():
    with pytest.raises(DataError, match="--drawn"):
        PartialLabels(("a", "a"))
    with pytest.raises(UsageError, match="--drawn-share"):
        PartialLabels(("a",), (), 1.5)


def test_phantoms_of_a_site_without_tumours_pass_the_check(tmp_path):
    arguments = ["phantom", "pancreas", "--sites", "2", "--cases", "3", "--out", str(tmp_path / "data")]
    assert main([*arguments, "--drawn", "pancreas", "--drawn-at", "site-2", "--heterogeneity", "0"]) == 0
    first, second = (read_datalist(tmp_path / "data" / f"site-{n}") for n in (1, 2))
    reports = [check_datalist(get_task("pancreas"), found) for found in (first, second)]
    assert all(report.ok for report in reports)
    counts = [report.statistics["cases_drawn"]["tumour"] for report in reports]
    assert counts == [3, 0]
    assert reports[1].statistics["cases_with_class"]["tumour"] == 0

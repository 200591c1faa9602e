"""Simulated annotators: cubes whose new labels are counted, and what partitions and experiments do with them."""

import json

import numpy as np
import pytest

from fedseg.cli import main
from fedseg.data.datalist import SPLITS, read_datalist
from fedseg.data.label_noise import LabelNoise, disturb, disturb_site, parse_label_noise
from fedseg.data.reading import read_label
from fedseg.errors import ConfigurationError, DataError, FedsegError
from fedseg.experiments.cohort import read_cohort
from fedseg.experiments.definition import read_definition
from fedseg.tasks.registry import get_task, resolve_task
from fedseg.tasks.task import parse_task
from tiny import EXCLUSIVE, TASK, make_sites
from tiny_experiment import write_experiment

NESTED, APART = parse_task(TASK), parse_task(EXCLUSIVE)
UNIT = (1.0, 1.0, 1.0)


def generator(seed=0):
    return np.random.default_rng(seed)


def cube(low, high, value=1, size=12):
    label = np.zeros((size,) * 3, np.uint8)
    label[low:high, low:high, low:high] = value
    return label


def drawn(task, label, spacing=UNIT, seed=0, **habits):
    return disturb(task, label, spacing, LabelNoise(**habits), generator(seed))


def test_a_cube_loses_one_layer_for_each_millimetre():
    label = cube(2, 9)
    np.testing.assert_array_equal(drawn(APART, label, eroded_mm=1), cube(3, 8))
    np.testing.assert_array_equal(drawn(APART, label, eroded_mm=2), cube(4, 7))
    assert not drawn(APART, label, eroded_mm=4).any(), "the middle of a cube of 7 is 4 mm from the outside"
    np.testing.assert_array_equal(label, cube(2, 9))


def test_distances_are_in_millimetres_along_each_axis():
    expected = np.zeros((12, 12, 12), np.uint8)
    expected[4:7, 3:8, 2:9] = 1  # 2 mm are two voxels of 1 mm, one of 2 mm, and none of 3 mm
    np.testing.assert_array_equal(drawn(APART, cube(2, 9), (1.0, 2.0, 3.0), eroded_mm=2), expected)


def test_a_voxel_grows_to_its_six_neighbours_and_then_to_a_ball():
    label = cube(5, 6)
    assert np.count_nonzero(drawn(APART, label, dilated_mm=1)) == 7
    assert np.count_nonzero(drawn(APART, label, dilated_mm=1.5)) == 19, "and the twelve at a distance of 1.41"
    assert np.count_nonzero(drawn(APART, label, dilated_mm=1.8)) == 27, "and the eight at 1.73"


def test_exclusive_neighbours_keep_their_border_and_share_what_is_gained():
    label = cube(3, 9)
    label[6:9][label[6:9] == 1] = 2
    smaller = drawn(APART, label, eroded_mm=1)
    np.testing.assert_array_equal(smaller, np.where(cube(4, 8) > 0, label, 0))
    larger = drawn(APART, label, dilated_mm=1)
    assert (larger[:6] != 2).all()
    assert (larger[6:] != 1).all()
    assert np.count_nonzero(larger) == 6**3 + 6 * 6**2
    np.testing.assert_array_equal(larger[label > 0], label[label > 0])


def test_nested_regions_become_smaller_one_by_one():
    label = cube(2, 9, 2)
    label[cube(4, 7) > 0] = 1
    expected = cube(3, 8, 2)
    expected[5, 5, 5] = 1
    np.testing.assert_array_equal(drawn(NESTED, label, eroded_mm=1), expected)


def test_a_shift_moves_everything_by_its_length():
    label = cube(5, 7, size=16)
    for seed in range(20):
        moved = drawn(APART, label, seed=seed, shifted_mm=4)
        assert np.count_nonzero(moved) == 8
        step = np.argwhere(moved).mean(0) - np.argwhere(label).mean(0)
        assert abs(np.linalg.norm(step) - 4) <= np.sqrt(3) / 2, "each axis is rounded by half a voxel at most"
    thick = drawn(APART, label, (1.0, 1.0, 9.0), shifted_mm=4)
    assert set(np.argwhere(thick)[:, 2]) == {5, 6}, "4 mm are less than half a slice of 9 mm"
    assert not drawn(APART, label, shifted_mm=99).any()


def test_flips_are_of_parts_and_alike_likely():
    label = np.zeros((120, 3, 3), np.uint8)
    label[::2, 1, 1] = 1  # sixty parts of one voxel
    for probability in (0.0, 0.5, 1.0):
        counts = np.zeros(3)
        for seed in range(20):
            found = drawn(APART, label, seed=seed, flipped=probability)
            counts += np.bincount(found[label > 0], minlength=3)
        expected = 1200 * np.array([probability / 2, 1 - probability, probability / 2])
        # Five standard deviations of a binomial count of 1200 draws.
        np.testing.assert_allclose(counts, expected, atol=5 * np.sqrt(1200 / 4) * (probability > 0))
    one = drawn(APART, cube(2, 9), seed=3, flipped=1)
    assert len(np.unique(one[cube(2, 9) > 0])) == 1, "one part is one decision"
    assert not (drawn(parse_task({**EXCLUSIVE, "labels": {"only": 1}, "sampling": {}}), cube(2, 9), flipped=1)).any()


@pytest.mark.parametrize("label", [cube(0, 0), cube(0, 12)])
def test_nothing_and_everything_have_no_border(label):
    for habits in ({"eroded_mm": 2}, {"dilated_mm": 2}):
        np.testing.assert_array_equal(drawn(APART, label, **habits), label)
        np.testing.assert_array_equal(drawn(NESTED, label, **habits), label)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({}, "noise is {}"),
        ({"a": {}}, "noise.a is {}"),
        ({"a": {"share": 0.5}}, "one at least of flipped"),
        ({"a": {"eroded_mm": 1, "dilated_mm": 1}}, "either eroded_mm or dilated_mm"),
        ({"a": {"flipped": 1.5}}, "noise.a.flipped is 1.5"),
        ({"a": {"eroded_mm": -1}}, "noise.a.eroded_mm is -1"),
        ({"a": {"share": 0, "flipped": 1}}, "noise.a.share is 0"),
        ({"a": {"blurred": 1}}, "noise.a.blurred"),
        ({"server": {"flipped": 1}}, "'server'"),
        ("a", "noise is 'a'"),
    ],
)
def test_habits_that_cannot_be_are_refused(given, why):
    with pytest.raises(ConfigurationError) as error:
        parse_label_noise("noise", given)
    assert why in str(error.value)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = make_sites(tmp_path_factory.mktemp("source"), {"all": (12, 4)})
    (folder / "task.json").write_text(json.dumps(EXCLUSIVE))
    return folder


def partition(source, out, *more):
    splits = ["--validation-fraction", "0.25", "--test-fraction", "0.25", "--sites", "2"]
    given = ["partition", str(source / "all"), "--task", str(source / "task.json"), "--out", str(out), *splits, *more]
    code = main(given)
    return code, ({path.name: read_datalist(path) for path in sorted(out.iterdir())} if out.exists() else {})


def values(case):
    return read_label(case.label)[0]


def test_a_partition_has_the_annotators_that_it_asks_for(source, tmp_path):
    truth = {case.id: values(case) for split in ("training", "validation") for case in
             read_datalist(source / "all").split(split)}  # fmt: skip
    code, sites = partition(source, tmp_path / "one", "--label-noise", "site-2:eroded_mm=1")
    assert code == 0
    for site, found in sites.items():
        for case in (*found.training, *found.validation):
            whole = truth[case.id]
            expected = whole if site == "site-1" else drawn(APART, whole, eroded_mm=1)
            np.testing.assert_array_equal(values(case), expected)
        assert all(np.array_equal(values(case), truth[case.id]) for case in found.test)
    assert "simulated_label_noise" not in sites["site-1"].notes
    assert sites["site-2"].notes["simulated_label_noise"] == LabelNoise(eroded_mm=1).to_dict()
    assert not np.array_equal(values(sites["site-2"].training[0]), truth[sites["site-2"].training[0].id])


def test_draws_follow_from_the_seed_and_the_share_is_of_patients(source, tmp_path):
    more = ["--label-noise", "site-1:shifted_mm=4,share=0.5", "--label-noise", "site-2:flipped=0.5"]
    runs = [partition(source, tmp_path / name, *more)[1] for name in ("one", "two")]
    other = partition(source, tmp_path / "three", *more, "--seed", "1")[1]
    for first, second in zip(*(run["site-1"].training for run in runs), strict=True):
        np.testing.assert_array_equal(values(first), values(second))
    found = runs[0]["site-1"]
    cases = (*found.training, *found.validation)
    noisy = [case for case in cases if case.label.parent.name == "noisy-labels"]
    assert len(noisy) == round(0.5 * len(cases))
    steps = {
        tuple(np.argwhere(values(case)).mean(0).round(2)) for run in (runs[0], other) for case in run["site-1"].training
    }
    assert len(steps) > len(found.training)


def test_regions_are_taken_out_of_what_the_annotator_drew(source, tmp_path):
    more = ["--label-noise", "site-1:dilated_mm=1", "--drawn", "outer", "--drawn-at", "site-1"]
    code, sites = partition(source, tmp_path / "out", *more)
    assert code == 0
    truth = {case.id: values(case) for case in read_datalist(source / "all").training}
    for case in sites["site-1"].training:
        if case.id in truth:
            larger = drawn(APART, truth[case.id], dilated_mm=1)
            np.testing.assert_array_equal(values(case), np.where(larger == 2, 2, 0))


@pytest.mark.parametrize(
    ("argument", "why"),
    [
        ("site-9:flipped=0.1", "at site-9, but the sites are site-1, site-2"),
        ("site-1", "must have the form SITE:HABIT=STRENGTH"),
        ("site-1:flipped", "must have the form"),
        ("site-1:flipped=much", "'much' is no number"),
        ("site-1:flipped=nan", "--label-noise.site-1.flipped is nan"),
    ],
)
def test_arguments_that_cannot_be_are_refused_and_leave_nothing(source, tmp_path, capsys, argument, why):
    code, sites = partition(source, tmp_path / "out", "--label-noise", argument)
    assert (code != 0, sites) == (True, {})
    assert why in " ".join(capsys.readouterr().err.split())


def test_a_site_has_one_annotator(source, tmp_path, capsys):
    same = ["--label-noise", "site-1:flipped=0.1"]
    assert partition(source, tmp_path / "out", *same, *same)[0] == 2
    assert "names site-1 twice" in " ".join(capsys.readouterr().err.split())


def test_partial_labels_are_not_disturbed(source, tmp_path):
    partial = read_datalist(source / "all").with_drawn(["outer"])
    with pytest.raises(DataError, match="has outer alone"):
        disturb_site(APART, partial, LabelNoise(flipped=1), 0, tmp_path)


def noisy(**more):
    return {"source": "data/alpha", "number": 2, "label_noise": {"site-2": {"dilated_mm": 1}}, **more}


def test_an_experiment_has_annotators(tmp_path):
    sizes = {"alpha": (6, 2)}
    definition = read_definition(write_experiment(tmp_path, sizes=sizes, data=noisy(test=0.25)))
    cohort = read_cohort(definition, resolve_task(TASK), tmp_path, tmp_path / "sites")
    places = {site: {case.label.parent.name for case in found.training} for site, found in cohort.sites.items()}
    assert places == {"site-1": {"images"}, "site-2": {"noisy-labels"}}
    assert {case.label.parent.name for found in cohort.sites.values() for case in found.test} == {"images"}
    plain = {"source": "data/alpha", "number": 2, "test": 0.25}
    other = read_cohort(
        read_definition(write_experiment(tmp_path, data=plain)), resolve_task(TASK), tmp_path, tmp_path / "sites"
    )
    assert cohort.digest(cohort.sites["site-2"]) != other.digest(other.sites["site-2"])
    assert cohort.digest(cohort.sites["site-1"]) == other.digest(other.sites["site-1"])


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"data": noisy(test=0)}, "data.test is 0"),
        ({"data": {"folder": "data", "label_noise": {"a": {"flipped": 1}}}}, "left out without data.source"),
        ({"data": noisy(), "folds": {"kind": "patients"}}, "folds.kind is 'patients'"),
        ({"data": noisy(), "folds": {"kind": "leave_one_site_out"}}, "folds.kind is 'leave_one_site_out'"),
    ],
)
def test_noisy_labels_are_no_tests(tmp_path, more, why):
    with pytest.raises(FedsegError) as error:
        read_definition(write_experiment(tmp_path, **more))
    assert why in str(error.value)


def test_folds_that_test_true_labels_may_have_annotators(tmp_path):
    folds = {"kind": "leave_one_site_out", "with_it": True}
    assert read_definition(write_experiment(tmp_path, data=noisy(), folds=folds)).data.label_noise is not None


# -------------------------------------------------------------------------- phantoms


@pytest.mark.parametrize("name", ["pancreas", "abdomen"])
def test_phantoms_have_the_annotators_that_they_ask_for(tmp_path, name):
    """The site's labels are those of its annotator; the phantom's own, and all other files, are as without one."""
    given = ["phantom", name, "--sites", "2", "--cases", "3", "--test-fraction", "0.3", "--out"]
    assert main([*given, str(tmp_path / "whole")]) == 0
    assert main([*given, str(tmp_path / "noisy"), "--label-noise", "site-2:eroded_mm=3"]) == 0
    whole, noisy = (
        {site: read_datalist(tmp_path / out / site) for site in ("site-1", "site-2")} for out in ("whole", "noisy")
    )
    task = get_task("pancreas")
    for site in whole:
        for split in SPLITS:
            for case, expected in zip(noisy[site].split(split), whole[site].split(split), strict=True):
                truth, spacing = values(expected), read_label(expected.label)[1].spacing
                if site == "site-2" and split != "test":
                    truth = disturb(task, truth, spacing, LabelNoise(eroded_mm=3), np.random.default_rng(0))
                    assert 0 < (truth > 0).sum() < (values(expected) > 0).sum()
                np.testing.assert_array_equal(values(case), truth)
    assert "simulated_label_noise" not in noisy["site-1"].notes
    assert noisy["site-2"].notes["simulated_label_noise"] == LabelNoise(eroded_mm=3).to_dict()
    for path in (tmp_path / "whole").rglob("*.nii.gz"):
        assert (tmp_path / "noisy" / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()


def test_phantoms_of_an_unknown_annotator_are_not_made(tmp_path, capsys):
    given = ["phantom", "pancreas", "--sites", "2", "--cases", "3", "--out", str(tmp_path / "out")]
    assert main([*given, "--label-noise", "site-9:flipped=0.1"]) == 2
    assert "at site-9, but the sites are site-1, site-2" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()

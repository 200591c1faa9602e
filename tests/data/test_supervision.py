"""Weak labels: what a datalist says of them, what the check finds, and how partition makes them from masks."""

import json

import numpy as np
import pytest

from fedseg.cli import main
from fedseg.data.checks.datalist_check import check_datalist
from fedseg.data.datalist import Case, Datalist, read_datalist, write_datalist
from fedseg.data.phantoms.phantoms import make_phantoms
from fedseg.data.reading import read_label
from fedseg.data.supervision import Box, Supervision
from fedseg.data.weak_labels import WeakLabels, boxes_around
from fedseg.errors import DataError, UsageError
from fedseg.tasks.registry import get_task
from fedseg.tasks.task import parse_task
from tiny import EXCLUSIVE, make_sites

IMAGE = {"image": "a.nii.gz", "patient": "p"}
BOXES = {"inner": [[[1, 2, 3], [4, 5, 6]], [[0, 0, 0], [0, 0, 0]]], "outer": []}


def written(folder, *entries, **more):
    path = folder / "datalist.json"
    path.write_text(json.dumps({"training": [{**IMAGE, **entry} for entry in entries], **more}))
    return path


def test_every_kind_is_read_and_written(tmp_path):
    entries = [
        {"label": "l.nii.gz"},
        {"supervision": "voxels", "label": "l.nii.gz"},
        {"supervision": "boxes", "boxes": BOXES},
        {"supervision": "image", "present": {"inner": True, "outer": False}},
        {"supervision": "none"},
    ]
    read = read_datalist(written(tmp_path, *entries, drawn=["inner"]))
    cases = read.training
    assert [c.supervision.kind for c in cases] == ["voxels", "voxels", "boxes", "image", "none"]
    assert [c.drawn for c in cases] == [("inner",)] * 2 + [None] * 3
    assert cases[2].supervision.boxes[0] == ("inner", (Box((1, 2, 3), (4, 5, 6)), Box((0, 0, 0), (0, 0, 0))))
    assert cases[2].supervision.there(["outer", "inner", "other"]) == (False, True, None)
    assert cases[3].supervision.there(["outer", "inner"]) == (False, True)
    again = read_datalist(write_datalist(read, tmp_path / "again.json"))
    assert again.training == cases


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"supervision": "points"}, "must be one of voxels, boxes, image, none"),
        ({"supervision": "boxes"}, "lacks 'boxes'"),
        ({"supervision": "none", "boxes": BOXES}, "has 'boxes', which is for supervision 'boxes' alone"),
        ({"boxes": BOXES, "label": "l.nii.gz"}, "It says 'voxels'"),
        ({"supervision": "image", "present": ["inner"]}, "true or false for each region"),
        ({"supervision": "none", "label": "l.nii.gz"}, "has 'label' beside supervision 'none'"),
        ({"supervision": "none", "drawn": ["inner"]}, "has 'drawn' beside supervision 'none'"),
        ({"supervision": "boxes", "boxes": {"inner": [[[1, 1, 1], [0, 2, 2]]]}}, "its first and its last voxel"),
        ({"supervision": "boxes", "boxes": {"inner": [[1, 1, 1, 2, 2, 2]]}}, "its first and its last voxel"),
        ({"supervision": "boxes", "boxes": {"inner": [[[1, 1, 1], [2, 2, True]]]}}, "its first and its last voxel"),
    ],
)
def test_what_contradicts_itself_is_refused(entry, words, tmp_path):
    with pytest.raises(DataError, match="training\\[0\\]") as caught:
        read_datalist(written(tmp_path, entry))
    assert words in str(caught.value)


def test_supervision_stands_in_cases(tmp_path):
    with pytest.raises(DataError, match="for the whole list"):
        read_datalist(written(tmp_path, {}, supervision="none"))


def test_possible_places_against_a_slow_loop():
    said = Supervision("boxes", (("a", (Box((0, 1, 0), (1, 2, 1)), Box((2, 2, 2), (2, 2, 2)))), ("b", ())))
    found = said.possible(["a", "b", "c"], (3, 4, 3))
    for x, y, z in np.ndindex(3, 4, 3):
        inside = (0 <= x <= 1 and 1 <= y <= 2 and 0 <= z <= 1) or (x, y, z) == (2, 2, 2)
        assert found[:, x, y, z].tolist() == [inside, False, True]
    image = Supervision("image", present=(("a", False),))
    assert image.possible(["a", "b"], (3, 4, 3)).ravel().tolist() == [False, True]


def test_boxes_are_around_the_parts_of_a_mask():
    mask = np.zeros((5, 5, 5), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[4, 2:4, 3] = True
    assert boxes_around(mask) == (Box((0, 0, 0), (1, 1, 1)), Box((4, 2, 3), (4, 3, 3)))
    assert boxes_around(mask & False) == ()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_sites(tmp_path_factory.mktemp("source"), {"all": (12, 4)}) / "all"


def partition(source, folder, *more):
    (folder / "task.json").write_text(json.dumps(EXCLUSIVE))
    fixed = ["partition", str(source), "--task", str(folder / "task.json"), "--sites", "2", "--test-fraction", "0.25"]
    code = main([*fixed, "--out", str(folder / "sites"), *more])
    out = folder / "sites"
    return code, ({path.name: read_datalist(path) for path in sorted(out.iterdir())} if out.exists() else {})


def test_partition_makes_boxes_that_hold_every_voxel_and_touch_it(source, tmp_path):
    masks = {
        c.images[0].name: read_label(c.label)[0]
        for s in ("training", "validation")
        for c in read_datalist(source).split(s)
    }
    code, sites = partition(source, tmp_path, "--supervision", "site-1=image,site-2=boxes")
    assert code == 0
    for site, kind in (("site-1", "image"), ("site-2", "boxes")):
        cases = [*sites[site].training, *sites[site].validation]
        assert {case.supervision.kind for case in cases} == {kind}
        assert all(case.label is None for case in cases)
        assert {case.supervision.kind for case in sites[site].test} == {"voxels"}
        for case in cases:
            values = masks[case.images[0].name]
            possible = case.supervision.possible(["inner", "outer"], values.shape)
            for index, value in enumerate((1, 2)):
                inside = values == value
                assert not (inside & ~possible[index]).any()
                if kind == "boxes":
                    where, extent = np.nonzero(inside), np.nonzero(possible[index])
                    assert [(a.min(), a.max()) for a in where] == [(a.min(), a.max()) for a in extent]
    report = check_datalist(parse_task(EXCLUSIVE), sites["site-2"])
    assert report.ok
    assert "no-scores" in {finding.code for finding in report.warnings}
    assert report.statistics["cases_supervised"]["boxes"] == len(sites["site-2"].training + sites["site-2"].validation)


def test_a_share_of_the_patients_loses_its_masks_and_the_draw_is_the_seeds(source, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    options = ("--supervision", "none", "--supervision-share", "0.5")
    (_, first), (_, second) = (partition(source, tmp_path / name, *options) for name in "ab")
    kinds = [
        [c.supervision.kind for s in ("training", "validation") for d in found.values() for c in d.split(s)]
        for found in (first, second)
    ]
    assert kinds[0] == kinds[1]
    assert kinds[0].count("none") == round(0.5 * len(kinds[0]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--supervision-share", "0.5"), "needs --supervision"),
        (("--supervision", "points"), "names 'points'"),
        (("--supervision", "voxels"), "names 'voxels'"),
        (("--supervision", "site-9=boxes"), "names site-9"),
        (("--supervision", "boxes,site-1=image"), "Name it for each site"),
        (("--supervision", "site-1=boxes,site-1=image"), "one place twice"),
        (("--supervision", "boxes", "--supervision-share", "0"), "above 0"),
        (("--supervision", "boxes", "--drawn", "inner"), "does not go with --drawn"),
    ],
)
def test_what_cannot_be_made_is_refused(options, words, source, tmp_path, capsys):
    code, sites = partition(source, tmp_path, *options)
    assert (code, sites) == (2, {})
    assert words in " ".join(capsys.readouterr().err.split())


def test_phantoms_have_boxes_in_the_place_of_masks(tmp_path):
    made = make_phantoms("pancreas", 2, 4, tmp_path / "made", weak=WeakLabels({"site-2": "boxes"}))
    first, second = (read_datalist(path) for path in made)
    assert {case.supervision.kind for case in first.training} == {"voxels"}
    assert {case.supervision.kind for case in second.training} == {"boxes"}
    assert check_datalist(get_task("pancreas"), second, quick=True).ok
    with pytest.raises(UsageError, match="site-3"):
        make_phantoms("pancreas", 2, 4, tmp_path / "other", weak=WeakLabels({"site-3": "boxes"}))


def test_the_check_finds_other_names_and_boxes_beyond_the_image(source, tmp_path):
    case, *rest = read_datalist(source).training
    other = read_datalist(source).validation

    def found(said):
        weak = Case(case.images, None, case.patient, supervision=said)
        report = check_datalist(parse_task(EXCLUSIVE), Datalist((weak, *rest), other), quick=True)
        return [finding.message for finding in report.errors if finding.code == "supervision"]

    assert found(Supervision("boxes", (("inner", (Box((0, 0, 0), (19, 19, 19)),)),))) == []
    assert "liver" in found(Supervision("image", present=(("liver", True),)))[0]
    assert (
        "reaches to voxel [19, 20, 19]" in found(Supervision("boxes", (("inner", (Box((0, 0, 0), (19, 20, 19)),)),)))[0]
    )


@pytest.mark.parametrize(
    ("labelled", "validation", "error", "warning"),
    [(1, "weak", False, True), (0, None, False, True), (1, None, True, False), (0, "labelled", False, False)],
)
def test_a_site_with_weak_labels_may_have_no_scores(labelled, validation, error, warning, source):
    cases = read_datalist(source).training
    weak = tuple(Case(c.images, None, c.patient, supervision=Supervision("none")) for c in cases)
    lists = {"weak": weak[5:6], "labelled": cases[5:6], None: ()}
    found = Datalist(cases[:labelled] + weak[labelled:3], lists[validation])
    report = check_datalist(parse_task(EXCLUSIVE), found, quick=True)
    assert {f.code for f in report.errors} == ({"no-cases"} if error else set())
    assert ("no-scores" in {f.code for f in report.warnings}) is warning

import numpy as np
import pytest

from fedseg.errors import ConfigurationError, DataError
from fedseg.tasks.registry import get_task, resolve_task, task_names
from fedseg.tasks.segmentation.labels import paint_regions, recognise_convention, to_classes, to_regions, to_values
from fedseg.tasks.task import parse_task
from tiny import TASK


@pytest.mark.parametrize("name", task_names())
def test_a_task_survives_its_json_form(name):
    assert parse_task(get_task(name).to_dict()) == get_task(name)


def test_brats_has_the_fields_of_the_challenge():
    task = get_task("brats")
    assert task.channels == ("t1", "t1ce", "t2", "flair")
    assert task.region_names == ("ET", "TC", "WT")
    assert (task.output_channels, task.exclusive) == (3, False)
    assert task.patch_size == (128, 128, 128)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ([0, 1, 2, 4], "BraTS 2021"),
        ([0, 1, 2, 3], "BraTS 2023"),
        ([0, 3], "BraTS 2023"),
        ([0, 1, 2], "BraTS 2021"),
        ([0], "BraTS 2021"),
    ],
)
def test_label_conventions_are_recognised_per_file(values, name):
    assert recognise_convention(get_task("brats"), values).name == name


@pytest.mark.parametrize("values", [[0, 3, 4], [0, 1, 2, 5], [0, 1.5], [-1, 0], [0, 255]])
def test_mixed_up_labels_are_refused_with_the_values(values):
    with pytest.raises(DataError, match="brats") as error:
        recognise_convention(get_task("brats"), values)
    assert str(values[-1] if values[-1] not in (0,) else values[0]) in str(error.value)


def test_both_brats_conventions_give_the_same_classes_and_regions():
    task = get_task("brats")
    old, new = np.array([0, 1, 2, 4]), np.array([0, 1, 2, 3])
    np.testing.assert_array_equal(to_classes(task, old), to_classes(task, new))
    regions = dict(zip(task.region_names, to_regions(task, to_classes(task, old)).astype(int).tolist(), strict=True))
    assert regions == {"ET": [0, 0, 0, 1], "TC": [0, 1, 0, 1], "WT": [0, 1, 1, 1]}


@pytest.mark.parametrize("name", task_names())
def test_painting_regions_is_the_inverse_of_taking_them(name):
    task = get_task(name)
    classes = np.arange(len(task.classes) + 1, dtype=np.uint8)
    np.testing.assert_array_equal(paint_regions(task, to_regions(task, classes)), classes)
    values = to_values(task, classes)
    assert values.tolist() == [0, *task.conventions[0].values.values()]
    np.testing.assert_array_equal(to_classes(task, values), classes)


def test_the_smallest_region_wins_where_predictions_contradict_each_other():
    task = get_task("brats")
    enhancing_outside_everything = np.array([[1], [0], [0]], bool)
    assert paint_regions(task, enhancing_outside_everything).tolist() == [3]


def test_an_own_task_is_declared_as_data():
    task = resolve_task(TASK)
    assert task.region_names == ("inner", "whole")
    assert not task.exclusive
    assert task.painting_order == ((1, 2), (0, 1))


def test_single_fields_of_a_built_in_task_can_be_changed():
    task = resolve_task({"name": "brats", "patch_size": [64, 64, 64]})
    assert task.patch_size == (64, 64, 64)
    assert task.conventions == get_task("brats").conventions


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"patch_size": [16, 16]}, "patch_size"),
        ({"patch_size": [16, 16, 0]}, "patch_size"),
        ({"patch_size": "16"}, "patch_size"),
        ({"modality": "PET"}, "modality"),
        ({"normalisation": "minmax"}, "normalisation"),
        ({"normalisation": "window"}, "window"),
        ({"channels": []}, "channels"),
        ({"channels": ["a", "a"]}, "channels"),
        ({"labels": {"inner": 1, "outer": 1}}, "conventions"),
        ({"labels": {"inner": 1, "outer": 2.5}}, "conventions"),
        ({"labels": ["inner"]}, "labels"),
        ({"regions": {"x": ["nothing"]}}, "regions"),
        ({"regions": {"both": ["inner", "outer"]}}, "exactly one class"),
        ({"spacing": [1, 1]}, "spacing"),
        ({"spacing": [1, 1, -1]}, "spacing"),
        ({"sampling": {"inner": -1}}, "sampling"),
        ({"sampling": {"nothing": 1}}, "sampling"),
        ({"flip_axes": [3]}, "flip_axes"),
        ({"patch_size": [2**20, 16, 16]}, "patch_size"),
        ({"patch_size": [2**70, 16, 16]}, "patch_size"),
        ({"spacing": [1, 1, 1e-9]}, "spacing"),
        ({"spacing": [1, 1, 10**400]}, "spacing"),
        ({"spacing": [1, float("nan"), 1]}, "spacing"),
        ({"spacing_range": [1e-12, 10]}, "spacing_range"),
        ({"spacing_range": [0.5, float("inf")]}, "spacing_range"),
        ({"channels": [f"c{i}" for i in range(65)]}, "channels"),
        ({"labels": {f"c{i}": i + 1 for i in range(256)}, "sampling": {}, "regions": {"x": ["c0"]}}, "classes"),
        ({"regions": {f"r{i}": ["inner"] for i in range(300)}}, "regions"),
        ({"normalisation": "window", "window": [0, 1e300]}, "window"),
        ({"normalisation": "window", "window": [float("-inf"), 1]}, "window"),
        ({"sampling": {"inner": float("inf")}}, "sampling"),
        ({"name": "two words"}, "name"),
        ({"transform": "$import os"}, "transform"),
    ],
)
def test_a_wrong_declaration_is_refused_by_name(change, named):
    with pytest.raises(ConfigurationError, match=named):
        resolve_task({**TASK, **change})


def test_overlapping_regions_that_do_not_nest_are_refused():
    three = {**TASK, "labels": {"a": 1, "b": 2, "c": 3}, "sampling": {}, "regions": {"x": ["a", "b"], "y": ["b", "c"]}}
    with pytest.raises(ConfigurationError, match="nested"):
        resolve_task(three)


def test_an_unknown_task_lists_the_known_ones():
    with pytest.raises(ConfigurationError, match="hippocampus"):
        get_task("liver")

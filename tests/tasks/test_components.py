"""Connected parts of a prediction that a task keeps."""

import numpy as np
import pytest

from fedseg.errors import ConfigurationError
from fedseg.tasks.objective import objective_of
from fedseg.tasks.registry import BRATS, get_task, resolve_task
from fedseg.tasks.segmentation.components import keep_components
from fedseg.tasks.task import parse_task

NECROSIS, OEDEMA, ENHANCING = 1, 2, 3
CUBE = (10.0, 10.0, 10.0)  # one voxel is 1 ml


def task(**components):
    return resolve_task({"name": "brats", "components": components})


def line(*values):
    """A row of voxels."""
    return np.array(values, np.uint8).reshape(-1, 1, 1)


def kept(values, spacing=CUBE, **components):
    return keep_components(task(**components), line(*values), spacing).ravel().tolist()


@pytest.mark.parametrize(
    ("components", "expected"),
    [
        ({}, [2, 0, 2, 1, 3, 3, 0, 3, 0, 2]),
        ({"foreground": "largest"}, [0, 0, 2, 1, 3, 3, 0, 0, 0, 0]),
        # The lone enhancing voxel is outside of every other part: it becomes the rest of the region around it.
        ({"ET": "largest"}, [2, 0, 2, 1, 3, 3, 0, 1, 0, 2]),
        ({"TC": "largest"}, [2, 0, 2, 1, 3, 3, 0, 2, 0, 2]),
        ({"WT": "largest"}, [0, 0, 2, 1, 3, 3, 0, 0, 0, 0]),
        ({"WT": 1.5}, [0, 0, 2, 1, 3, 3, 0, 0, 0, 0]),
        ({"ET": 2}, [2, 0, 2, 1, 3, 3, 0, 1, 0, 2]),
        ({"ET": 2.5}, [2, 0, 2, 1, 1, 1, 0, 1, 0, 2]),
        ({"ET": 2.5, "TC": 2}, [2, 0, 2, 1, 1, 1, 0, 2, 0, 2]),
        ({"foreground": 100}, [0] * 10),
    ],
)
def test_parts_by_hand(components, expected):
    assert kept([2, 0, 2, 1, 3, 3, 0, 3, 0, 2], **components) == expected


def test_volumes_are_in_ml():
    """Two voxels of 1 x 1 x 2.5 mm are 0.005 ml."""
    values = [3, 3, 0, 3]
    assert kept(values, (1, 1, 2.5), ET=0.005) == [3, 3, 0, 1]
    assert kept(values, (1, 1, 2.5), ET=0.0051) == [1, 1, 0, 1]
    assert kept(values, (1, 1, 2.5), ET=0.002) == values


def test_voxels_that_touch_at_a_corner_are_one_part():
    classes = np.zeros((4, 4, 4), np.uint8)
    classes[0, 0, 0] = classes[1, 1, 1] = classes[3, 3, 3] = OEDEMA
    found = keep_components(task(foreground="largest"), classes, CUBE)
    assert np.argwhere(found).tolist() == [[0, 0, 0], [1, 1, 1]]
    assert np.count_nonzero(classes) == 3


def test_classes_of_exclusive_regions_fall_to_the_background():
    pancreas = resolve_task({"name": "pancreas", "components": {"tumour": "largest"}})
    assert keep_components(pancreas, line(1, 2, 2, 0, 2, 1), CUBE).ravel().tolist() == [1, 2, 2, 0, 0, 1]


def test_predictions_are_refined_and_nothing_is_lost_where_there_is_nothing():
    kind = objective_of(task(foreground="largest"))
    assert kind.refine(line(2, 0, 2, 2), CUBE).ravel().tolist() == [0, 0, 2, 2]
    assert kind.refine(line(0, 0), CUBE).ravel().tolist() == [0, 0]


@pytest.mark.parametrize(
    ("components", "match"),
    [
        ({"tumour": "largest"}, "components"),
        ({"ET": "biggest"}, r"components\.ET is 'biggest', but must be 'largest' or a volume in ml above 0"),
        ({"ET": 0}, r"components\.ET"),
        ({"ET": True}, r"components\.ET"),
        ({"ET": float("nan")}, r"components\.ET"),
        (["ET"], r"components"),
    ],
)
def test_a_wrong_rule_is_refused(components, match):
    with pytest.raises(ConfigurationError, match=match):
        resolve_task({"name": "brats", "components": components})


def test_rules_travel_with_the_task_and_tasks_without_them_keep_their_digest():
    with_rules = task(ET=0.05, foreground="largest")
    assert parse_task(with_rules.to_dict()) == with_rules
    assert "components" not in BRATS.to_dict()
    assert get_task("brats").components == {}

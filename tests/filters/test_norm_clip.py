"""A bound on an update's length."""

import numpy as np
import pytest

from fedseg.contract.update import Update
from fedseg.errors import ConfigurationError
from fedseg.filters.norm_clip import NormClip
from outgoing import REPORT, make_context


def clipped(norm, arrays, tmp_path):
    return NormClip(norm).run(Update(arrays, REPORT), make_context(tmp_path))


def test_a_long_update_is_shortened_by_hand(tmp_path):
    """(3, 4, 12) over two arrays is 13 long; to the norm 6.5 it is halved."""
    arrays = {"a": np.array([3.0, 4.0], np.float32), "b": np.array([[12.0]], np.float32)}
    result = clipped(6.5, arrays, tmp_path).arrays
    np.testing.assert_allclose(result["a"], [1.5, 2])
    np.testing.assert_allclose(result["b"], [[6]])


@pytest.mark.parametrize("norm", [13, 1000.0, 1e300])
def test_a_short_update_stays_as_it_is(tmp_path, norm):
    arrays = {"a": np.array([3.0, 4.0], np.float32), "b": np.array([[12.0]], np.float32)}
    result = clipped(norm, arrays, tmp_path).arrays
    for name, value in arrays.items():
        np.testing.assert_array_equal(result[name], value)


def test_the_record_does_not_tell_how_long_it_was(tmp_path):
    """The record is the same whether the update was clipped or not."""
    records = []
    for scale in (1.0, 1e-6):
        (step,) = clipped(2.0, {"a": np.array([3.0, 4.0], np.float32) * np.float32(scale)}, tmp_path).steps
        step.pop("seconds")
        records.append(step)
    assert records[0] == records[1] == {"filter": "NormClip", "stage": 20, "norm": 2.0}


@pytest.mark.parametrize("norm", [0, -1, "1", None, True, float("nan"), float("inf")])
def test_wrong_arguments_are_refused_by_name(norm):
    with pytest.raises(ConfigurationError, match=r"^NormClip\.norm is"):
        NormClip(norm)

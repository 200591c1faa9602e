"""Calibration by hand, against MONAI, and on the voxels that lie around borders."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.metrics.calibration import CalibrationErrorMetric

from fedseg.tasks.segmentation.calibration import BAND, border_calibration_error, calibration_error
from masks import cube


def test_by_hand() -> None:
    """Four voxels of .9, of which two are true: .4 too much. Six of .12, none true: .12 too much."""
    probabilities = np.array([0.9] * 4 + [0.12] * 6)
    truth = np.array([True, False, True, False] + [False] * 6)
    assert calibration_error(probabilities, truth) == pytest.approx((4 * 0.4 + 6 * 0.12) / 10)


def test_errors_of_one_bin_cancel_and_those_of_two_do_not() -> None:
    assert calibration_error(np.array([0.51, 0.51]), np.array([True, False])) == pytest.approx(0.01)
    assert calibration_error(np.array([0.41, 0.61]), np.array([True, False])) == pytest.approx((0.59 + 0.61) / 2)


@pytest.mark.parametrize("seed", range(4))
def test_it_equals_monai(seed: int) -> None:
    generator = np.random.default_rng(seed)
    probabilities = generator.beta(0.5, 0.5, 5000).astype(np.float32)
    truth = generator.random(5000) < probabilities**1.5
    theirs = CalibrationErrorMetric()(torch.from_numpy(probabilities)[None, None], torch.from_numpy(truth)[None, None])
    assert calibration_error(probabilities, truth) == pytest.approx(float(theirs), abs=1e-5)


def test_a_network_that_means_what_it_says_has_no_error() -> None:
    generator = np.random.default_rng(1)
    probabilities = generator.random(200_000)
    assert calibration_error(probabilities, generator.random(200_000) < probabilities) < 0.01
    assert calibration_error(probabilities, probabilities > 0.5) == pytest.approx(0.25, abs=0.01)


def test_ends_of_the_range_belong_to_the_outer_bins() -> None:
    assert calibration_error(np.array([0.0, 1.0]), np.array([False, True])) == 0.0
    assert calibration_error(np.array([0.0, 1.0]), np.array([True, False])) == 1.0


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 2.0, 4.0), (0.7, 0.7, 2.5)])
def test_voxels_near_a_border_count_and_no_others(spacing: tuple[float, float, float]) -> None:
    """Probabilities are wrong only where they count: then the error is whole; elsewhere, and it is nothing."""
    shape = (30, 18, 12)
    reference, predicted = cube(shape, (4, 5, 4), 4), cube(shape, (5, 5, 4), 4)

    def surface(mask: np.ndarray) -> list[tuple[int, ...]]:
        found = []
        for point in np.argwhere(mask):
            near = [point + step for axis in np.eye(3, dtype=int) for step in (axis, -axis)]
            if not all(mask[tuple(q)] for q in near):
                found.append(tuple(point))
        return found

    points = np.array(surface(reference) + surface(predicted)) * spacing
    band = np.zeros(shape, bool)
    for place in np.ndindex(shape):
        band[place] = min(math.dist(np.array(place) * spacing, point) for point in points) <= BAND
    assert 0 < band.sum() < band.size
    right, wrong = reference.astype(np.float32), 1 - reference.astype(np.float32)
    for inside, outside, expected in ((wrong, right, 1.0), (right, wrong, 0.0)):
        probabilities = np.where(band, inside, outside)
        assert border_calibration_error(probabilities, predicted, reference, spacing) == pytest.approx(expected)


def test_one_mask_is_enough_for_a_border() -> None:
    nothing, something = np.zeros((9, 9, 9), bool), cube((9, 9, 9), (3, 3, 3), 3)
    ones = np.ones((9, 9, 9), np.float32)
    assert border_calibration_error(ones, nothing, nothing, (1, 1, 1)) is None
    assert border_calibration_error(ones, something, nothing, (1, 1, 1)) == 1.0
    missed = border_calibration_error(0 * ones, nothing, something, (1, 1, 1))
    assert missed is not None
    assert 0 < missed < 1, "the share of the band that is the region itself"


def test_a_border_at_the_edge_of_the_image() -> None:
    whole = np.ones((4, 4, 4), bool)
    assert border_calibration_error(whole.astype(np.float32), whole, whole, (1, 1, 1)) == 0.0

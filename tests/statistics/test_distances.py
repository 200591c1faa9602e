"""Pairs of sites: label shift against scipy, and what is advised for which difference."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from fedseg.errors import DataError
from fedseg.statistics.distances import GUIDE, advice, label_shift, pairs
from fedseg.statistics.histogram import Histogram
from statistics_of_tiny import TINY, measured, tiny_cases, with_spacings


@pytest.mark.parametrize(("one", "other"), [([1, 2, 3], [3, 2, 1]), ([1, 0, 0], [0, 0, 5]), ([2, 2, 2], [1, 1, 1])])
def test_label_shift_equals_scipys(one, other):
    found = label_shift(dict(zip("abc", one, strict=True)), dict(zip("abc", other, strict=True)))
    p, q = np.array(one) / sum(one), np.array(other) / sum(other)
    assert found.total_variation == pytest.approx(np.abs(p - q).sum() / 2)
    assert found.jensen_shannon == pytest.approx(jensenshannon(p, q, base=2) ** 2)


def test_classes_that_one_site_joined_count_together():
    found = label_shift({"a": 5, "b": 3, "c": 2}, {"a": 5, "other": 5})
    assert found.total_variation == 0
    assert label_shift({"a": 1}, {}) is None


def test_classes_that_one_site_does_not_have_count_there_as_nothing():
    """Half of what is labelled is of another class at the other site; of three shares (1/2, 1/2, 0) and (1/2, 0, 1/2)
    the divergence is half a bit. No category was joined, so that nothing is unknown."""
    found = label_shift({"a": 2, "b": 2}, {"a": 3, "c": 3})
    assert (found.total_variation, found.jensen_shannon) == (pytest.approx(0.5), pytest.approx(0.5))
    assert found == label_shift({"a": 2, "b": 2, "c": 0}, {"a": 3, "b": 0, "c": 3})
    # c may be among the joined ones of the first site; b is known to be nothing at the second one.
    found = label_shift({"a": 2, "b": 2, "other": 4}, {"a": 4, "c": 4})
    assert found.total_variation == pytest.approx(0.25)


def test_alike_sites_have_no_distance_and_need_no_advice(tmp_path):
    part = measured(tiny_cases(tmp_path, range(3)))
    (pair,) = pairs(TINY, {"b": part, "a": part})
    assert pair.sites == ("a", "b")
    assert [d.value for d in (*pair.intensities.values(), *pair.volumes.values())] == [0, 0, 0]
    assert set(pair.present.values()) == {0}
    assert pair.labels.total_variation == 0
    assert advice(TINY, {"a": part, "b": part}) == []


def shifted(part, name, bins):
    """The part with another histogram, moved by a number of bins."""
    histogram = part.histograms[name]
    moved = {(a + bins, b + bins): w for (a, b), w in histogram.bins.items()}
    return replace(part, histograms={**part.histograms, name: Histogram(histogram.scale, moved)})


def test_each_difference_has_its_advice(tmp_path):
    part = measured(tiny_cases(tmp_path, range(3)))
    brighter = shifted(part, "normalised: a", 50)
    (pair,) = pairs(TINY, {"a": part, "b": brighter})
    assert pair.intensities["a"].value == pytest.approx(1.0)
    (text,) = advice(TINY, {"a": part, "b": brighter})
    assert "intensities of a differ most between a and b: 1 standard" in text
    assert GUIDE in text
    others = replace(part, categories={**part.categories, "classes": {"inner": 3.0}})
    assert "of another class" in advice(TINY, {"a": part, "b": others})[0]
    absent = replace(part, categories={**part.categories, "present: inner": {"yes": 1.0, "no": 2.0}})
    assert "cases with inner differs by 67%" in advice(TINY, {"a": part, "b": absent})[0]
    larger = shifted(part, "volume: whole", 200)
    assert "Volumes of whole differ" in advice(TINY, {"a": part, "b": larger})[0]
    assert "b has 12 cases and a has 3" in advice(TINY, {"a": part, "b": replace(part, cases=12)})[0]


def test_a_difference_within_its_error_needs_no_advice(tmp_path):
    part = measured(tiny_cases(tmp_path, range(3)))
    coarse = {(-500, 500): 3.0}
    vague = replace(
        part,
        histograms={**part.histograms, "normalised: a": Histogram(part.histograms["normalised: a"].scale, coarse)},
    )
    assert advice(TINY, {"a": part, "b": vague}) == []


def test_coarse_and_fine_bins_are_not_compared():
    with pytest.raises(DataError, match="coarse bins"):
        advice(TINY, {"a": with_spacings([1.0]), "b": replace(with_spacings([1.0]), fine=False)})

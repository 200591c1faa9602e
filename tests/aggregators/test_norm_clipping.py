import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregators.test_fedavg import aggregate, make_update
from fedseg.aggregators.fedavg import FedAvg
from fedseg.aggregators.norm_clipping import NormClipped
from fedseg.errors import ConfigurationError


def three():
    """Norms 5, 13 and 2; samples 1, 3 and 4."""
    return [
        make_update("a", {"v": np.array([3.0]), "w": np.array([4.0])}, 1),
        make_update("b", {"v": np.array([-5.0]), "w": np.array([12.0])}, 3),
        make_update("c", {"v": np.array([2.0]), "w": np.array([0.0])}, 4),
    ]


@pytest.mark.parametrize(
    ("bound", "weight_by", "expected", "scales"),
    [
        # a by 1/2, b by 2.5/13: v = (1.5 + 3 (-5 * 2.5 / 13) + 4 * 2) / 8, w = (2 + 3 (12 * 2.5 / 13)) / 8
        (2.5, "samples", [(9.5 - 37.5 / 13) / 8, (2 + 90 / 13) / 8], {"a": 0.5, "b": 2.5 / 13}),
        # The median norm is 5: b by 5/13 only; v = (3 - 25/13 + 2) / 3, w = (4 + 60/13) / 3
        (None, "uniform", [(5 - 25 / 13) / 3, (4 + 60 / 13) / 3], {"b": 5 / 13}),
        # None is longer than 13: plain FedAvg, v = (3 - 15 + 8) / 8, w = (4 + 36) / 8
        (13, "samples", [-0.5, 5.0], {}),
    ],
)
def test_by_hand(bound, weight_by, expected, scales):
    rule = NormClipped(bound, weight_by)
    result = aggregate(rule, three())
    np.testing.assert_allclose([result["v"].item(), result["w"].item()], expected, rtol=1e-12)
    assert rule.last_scales == pytest.approx(scales)
    assert rule.last_notes == {"norms": {"a": 5.0, "b": 13.0, "c": 2.0}, "bound": 5.0 if bound is None else bound}


@given(st.integers(0, 2**32 - 1), st.floats(1e-6, 1e6), st.integers(1, 8))
def test_the_result_is_never_longer_than_the_bound(seed, bound, sites):
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(sites, 5)) * 10.0 ** generator.integers(-8, 9, size=(sites, 1))
    updates = [make_update(f"s{i}", {"w": row}, int(generator.integers(1, 100))) for i, row in enumerate(rows)]
    rule = NormClipped(bound)
    assert np.linalg.norm(aggregate(rule, updates)["w"]) <= bound * (1 + 1e-12)
    assert all(0 < scale < 1 for scale in rule.last_scales.values())


def test_a_bound_that_no_update_reaches_is_fedavg_to_the_bit():
    updates = [make_update(s, {"w": np.random.default_rng(n).normal(size=50)}, n) for n, s in enumerate("abc", 1)]
    np.testing.assert_array_equal(aggregate(NormClipped(1e9), updates)["w"], aggregate(FedAvg(), updates)["w"])


def test_equal_lengths_are_not_clipped_by_their_median():
    updates = [make_update(s, {"w": np.array([x, 3.0])}) for s, x in (("a", 4.0), ("b", -4.0), ("c", 4.0))]
    rule = NormClipped()
    aggregate(rule, updates)
    assert rule.last_scales == {}


def test_updates_of_zeros_do_not_clip_the_others_away():
    updates = [make_update(s, {"w": np.array([x])}) for s, x in (("a", 0.0), ("b", 0.0), ("c", 0.0), ("d", 8.0))]
    assert aggregate(NormClipped(), updates)["w"].tolist() == [2.0]
    assert aggregate(NormClipped(), updates[:3])["w"].tolist() == [0.0]


@pytest.mark.parametrize("bound", [0, -1.0, float("inf"), float("nan"), True, "1"])
def test_a_wrong_bound_is_refused(bound):
    with pytest.raises(ConfigurationError, match=r"bound is .*, but must be a number above 0, or null"):
        NormClipped(bound)


def test_an_unknown_base_is_refused():
    with pytest.raises(ConfigurationError, match="weight_by"):
        NormClipped(weight_by="cases")


def test_description():
    assert NormClipped(2.0, "uniform").describe() == {"name": "NormClipped", "bound": 2.0, "weight_by": "uniform"}

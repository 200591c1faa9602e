import numpy as np
import pytest

from fedseg.aggregators.shared_features import SharedFeatures
from fedseg.contract.plan import parse_plan
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.networks.bottleneck import bottleneck_width
from fedseg.networks.registry import parse_network
from tiny import PLAN

NAME = "features/bottleneck"


def started(count=3):
    shared = SharedFeatures(count)
    shared.set_plan(parse_plan(PLAN), {})
    shared.start(3)
    return shared


def vectors(value, count=3):
    return {NAME: np.full((count, 8), value, np.float32)}


def test_each_site_gets_the_last_features_of_all_others():
    shared = started()
    assert shared.outgoing("a")[NAME].shape == (0, 3, 8)
    for site, value in (("c", 3), ("a", 1), ("b", 2)):
        shared.accept(site, vectors(value))
    shared.finish_round(dict.fromkeys("abc", 1.0))
    assert shared.outgoing("b")[NAME][:, 0, 0].tolist() == [1, 3]
    shared.accept("c", vectors(4))
    shared.finish_round({"c": 1.0})
    assert shared.outgoing("b")[NAME][:, 0, 0].tolist() == [1, 4]
    assert shared.outgoing("c")[NAME][:, 0, 0].tolist() == [1, 2]
    assert shared.per_site


def test_other_counts_and_values_that_are_not_finite_are_refused():
    shared = started()
    for sent in (vectors(1, count=2), vectors(np.nan)):
        with pytest.raises(RefusalError):
            shared.accept("a", sent)


@pytest.mark.parametrize("count", [0, -1, 2.5, 5000, "3"])
def test_a_count_out_of_range_is_refused_by_name(count):
    with pytest.raises(ConfigurationError, match=r"SharedFeatures\.count is"):
        SharedFeatures(count)


@pytest.mark.parametrize(
    ("declaration", "width"),
    [
        ({"name": "residual_unet", "channels": [4, 8, 12], "strides": [2, 2]}, 12),
        ({"name": "dynunet", "filters": [4, 6, 10], "strides": [1, 2, 2]}, 10),
        ({"name": "segresnet", "init_filters": 4, "blocks_down": [1, 1, 1], "blocks_up": [1, 1]}, 16),
        ({"name": "residual_unet", "channels": [4, 8], "strides": [2], "parts": [{"name": "amplitude"}]}, 8),
    ],
)
def test_the_width_is_that_of_the_networks_coarsest_level(declaration, width):
    assert bottleneck_width(parse_network(declaration), 2, 3, (16, 16, 16)) == width

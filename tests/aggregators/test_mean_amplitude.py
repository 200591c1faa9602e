import numpy as np
import pytest

from fedseg.aggregators.mean_amplitude import MeanAmplitude
from fedseg.contract.plan import parse_plan
from fedseg.errors import ConfigurationError
from fedseg.networks.parts.amplitude import SPECTRUM
from fedseg.networks.weights import get_weights
from tiny import PLAN

PARTS = [{"name": "amplitude", "mode": "window", "window": 2}]
HARMONISED = parse_plan({**PLAN, "network": {**PLAN["network"], "parts": PARTS}})


def combined(**arguments):
    amplitudes = MeanAmplitude(**arguments)
    amplitudes.set_plan(HARMONISED, get_weights(HARMONISED.build_network()))
    amplitudes.start(2)
    for site, value in (("a", 1), ("b", 3)):
        spectrum = np.full((1, 1, 5, 5, 5), value, np.float32)
        amplitudes.accept(site, {"amplitude/spectrum": spectrum}, before_rounds=True)
    amplitudes.finish_before_rounds({"a": 1, "b": 3})
    return amplitudes


@pytest.mark.parametrize(("arguments", "expected"), [({}, 2), ({"weight_by": "samples"}, 2.5)])
def test_the_mean_over_sites_becomes_an_array_of_the_model(arguments, expected):
    amplitudes = combined(**arguments)
    np.testing.assert_array_equal(amplitudes.model_arrays()[SPECTRUM], np.full((1, 1, 5, 5, 5), expected, np.float32))
    assert amplitudes.outgoing("a") == {}


def test_rounds_leave_it_as_it_is():
    amplitudes = combined()
    amplitudes.accept("a", {})
    amplitudes.finish_round({"a": 1})
    assert amplitudes.model_arrays()[SPECTRUM].flat[0] == 2


def test_a_plan_without_the_part_is_refused():
    plan = parse_plan(PLAN)
    with pytest.raises(ConfigurationError, match=r'network\.parts is \[\].*"amplitude".*for MeanAmplitude'):
        MeanAmplitude().set_plan(plan, get_weights(plan.build_network()))


def test_what_counts_is_described_and_checked():
    assert MeanAmplitude().describe() == {"name": "MeanAmplitude", "weight_by": "uniform"}
    with pytest.raises(ConfigurationError, match=r"MeanAmplitude\.weight_by"):
        MeanAmplitude(weight_by="loss")

"""Who may hand private arrays on: LC-Fed's heads, and nobody else."""

import pytest

from fedseg.aggregators.control_variates import ControlVariates
from fedseg.aggregators.fedavg import FedAvg
from fedseg.aggregators.shared_features import SharedFeatures
from fedseg.aggregators.shared_state import SharedArray, SharedState
from fedseg.aggregators.site_heads import SiteHeads
from fedseg.contract.plan import parse_plan
from fedseg.contract.shapes import private_arrays
from fedseg.errors import ConfigurationError
from fedseg.jobs.allowed_components import component_classes
from fedseg.networks.weights import get_weights
from fedseg.workflows.run.weighted_model import WeightedModel
from tiny import PLAN

PARTS = [{"name": "head_calibration"}, {"name": "site_attention"}]


class Undeclared(SiteHeads):
    """Hands heads on and does not say so."""

    hands_on_private = False


class Mean(SharedState):
    """Something that sites send with each update."""

    prefix = "mean/"

    def declare(self, plan, weights):
        return {"value": SharedArray((2,))}


def plan(*parts):
    return parse_plan({**PLAN, "network": {**PLAN["network"], "parts": list(parts)}})


def check(shared, *parts):
    WeightedModel(FedAvg(), shared_arrays=shared).check_plan(plan(*parts))


@pytest.mark.parametrize("parts", [PARTS, PARTS[:1]])
def test_site_heads_may_and_hand_on_private_arrays_only(parts):
    shared, declared = SiteHeads(), plan(*parts)
    check(shared, *parts)
    weights = get_weights(declared.build_network())
    private = {weights[name].shape for name in private_arrays(declared) if not name.startswith("parts.")}
    assert {array.shape for array in shared.declare(declared, {}).values()} == private


@pytest.mark.parametrize("parts", [PARTS, PARTS[:1], PARTS[1:]])
@pytest.mark.parametrize("other", [ControlVariates, SharedFeatures, Mean])
def test_any_other_exchange_beside_private_arrays_is_refused(other, parts):
    check(other())
    with pytest.raises(ConfigurationError, match=f"with {other.__name__}.*would tell those that stay at a site"):
        check(other(), *parts)


def test_one_that_hands_heads_on_without_saying_so_is_refused():
    with pytest.raises(ConfigurationError, match=r"with Undeclared.*would tell those that stay at a site"):
        check(Undeclared(), *PARTS)


def test_no_other_component_says_that_it_hands_private_arrays_on():
    kinds = [each for each in component_classes().values() if issubclass(each, SharedState)]
    assert [each for each in kinds if each.hands_on_private] == [SiteHeads]
    assert len(kinds) > 1


def test_without_calibration_nothing_is_exchanged():
    check(Undeclared(), {**PARTS[0], "weight": 0}, PARTS[1])

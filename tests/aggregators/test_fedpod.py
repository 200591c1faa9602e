import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregators.test_fedavg import aggregate, make_report, make_update
from aggregators.test_fedcostwavg import plan_with
from fedseg.aggregators.fedpod import FedPOD
from fedseg.errors import ConfigurationError

LOSS = st.one_of(st.none(), st.floats(0, 1e6))
ROUND = st.dictionaries(st.sampled_from("abcdefghij"), st.tuples(st.integers(1, 1000), LOSS, LOSS), min_size=1)


def weigh(rule, sites):
    """Weights of one round; sites give (training cases, loss before, loss after)."""
    aggregate(
        rule,
        [
            make_update(s, {"w": np.ones(1)}, n, val_loss=before, val_loss_after=after)
            for s, (n, before, after) in sites.items()
        ],
    )
    return rule.last_weights


def test_weights_by_hand():
    # Cases 1, 1, 2 of 4. Drops 0.6 - 0.3, 0.4 - 0.3, and 0 for c, whose loss rose: shares .75, .25, 0.
    rule = FedPOD()
    weights = weigh(rule, {"a": (1, 0.6, 0.3), "b": (1, 0.4, 0.3), "c": (2, 0.4, 0.5)})
    assert weights == pytest.approx({"a": 0.125 + 0.375, "b": 0.125 + 0.125, "c": 0.25}, abs=1e-15)
    assert rule.last_notes["neutral"] == []


def test_a_site_without_validation_cases_has_its_part_by_cases_only():
    rule = FedPOD(alpha=0.4)
    weights = weigh(rule, {"a": (1, 0.6, 0.3), "b": (3, None, None)})
    assert weights == pytest.approx({"a": 0.1 + 0.6, "b": 0.3}, abs=1e-15)
    assert rule.last_notes["neutral"] == ["b"]


def test_without_any_drop_it_is_fedavg_and_says_so():
    rule = FedPOD(alpha=0)
    assert weigh(rule, {"a": (1, 0.3, 0.3), "b": (3, 0.2, 0.9)}) == {"a": 0.25, "b": 0.75}
    assert rule.last_notes["fallback"] == "FedAvg: no site's validation loss fell"


@given(ROUND)
def test_alpha_one_is_fedavg(sites):
    total = sum(n for n, _, _ in sites.values())
    assert weigh(FedPOD(alpha=1), sites) == {s: sites[s][0] / total for s in sorted(sites)}


@given(st.lists(ROUND, min_size=2, max_size=6), st.randoms())
def test_a_round_depends_on_no_other(rounds, order):
    rule = FedPOD()
    expected = [weigh(FedPOD(), sites) for sites in rounds]
    indices = list(range(len(rounds)))
    order.shuffle(indices)
    for index in indices:
        assert weigh(rule, rounds[index]) == expected[index]
    assert rule.history() == {}


def test_the_reported_cost_is_the_loss_after_training():
    reports = {"a": make_report(val_loss_after=1 / 3), "b": make_report()}
    assert FedPOD().costs(reports) == {"a": 1 / 3, "b": None}


def test_it_needs_validation_after_training():
    FedPOD().check_plan(plan_with(True))
    with pytest.raises(ConfigurationError, match=r"true with FedPOD. .*set training.validate_after to true"):
        FedPOD().check_plan(plan_with(False))


@pytest.mark.parametrize("alpha", [-0.1, 1.1, None, float("nan"), True])
def test_a_wrong_alpha_is_refused(alpha):
    with pytest.raises(ConfigurationError, match=r"alpha is .* a number from 0 to 1"):
        FedPOD(alpha)


def test_description():
    assert FedPOD().describe() == {"name": "FedPOD", "alpha": 0.5}

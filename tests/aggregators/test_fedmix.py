import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregators.test_fedavg import make_report, rounds_of
from fedseg.aggregators.fedavg import FedAvg
from fedseg.aggregators.fedmix import FedMix
from fedseg.contract.report import SiteReport
from fedseg.errors import ConfigurationError


def test_weights_by_hand():
    # Losses 1 and 4, to the power 1.5: 1 and 8, shares 1/9 and 8/9. Cases 3 and 1: .75 and .25. lam 10:
    # (.75 + 10 / 9) / 11 and (.25 + 80 / 9) / 11.
    rule = FedMix()
    (weights,) = rounds_of(rule, {"a": 1.0, "b": 4.0}, samples={"a": 3, "b": 1})
    assert weights == pytest.approx({"a": (0.75 + 10 / 9) / 11, "b": (0.25 + 80 / 9) / 11}, abs=1e-15)
    assert rule.last_notes["loss_shares"] == pytest.approx({"a": 1 / 9, "b": 8 / 9})


@given(st.dictionaries(st.sampled_from("abcdefghij"), st.tuples(st.integers(1, 1000), st.floats(0, 1e6)), min_size=1))
def test_no_lam_is_fedavg(sites):
    costs, samples = {s: c for s, (_, c) in sites.items()}, {s: n for s, (n, _) in sites.items()}
    assert rounds_of(FedMix(lam=0), costs, samples=samples) == rounds_of(FedAvg(), costs, samples=samples)


@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=8, unique=True), st.floats(1e-3, 1e3))
def test_higher_losses_count_more_and_their_unit_does_not(losses, unit):
    costs = {f"s{i}": c for i, c in enumerate(losses)}
    (weights,) = rounds_of(FedMix(), costs)
    (scaled,) = rounds_of(FedMix(), {s: c * unit for s, c in costs.items()})
    assert scaled == pytest.approx(weights, rel=1e-9)
    by_loss = [weights[s] for s in sorted(costs, key=costs.__getitem__)]
    assert by_loss == sorted(by_loss)


@pytest.mark.parametrize("losses", [(0.0, 0.0), (-1.0, 0.0)])
def test_without_losses_above_zero_it_is_fedavg_and_says_so(losses):
    rule = FedMix()
    rounds = rounds_of(rule, dict(zip("ab", losses, strict=True)), samples={"a": 1, "b": 3})
    assert rounds == [{"a": 0.25, "b": 0.75}]
    assert rule.last_notes == {"fallback": "FedAvg: no training loss is above 0"}


def test_a_negative_loss_counts_as_zero():
    assert rounds_of(FedMix(), {"a": -5.0, "b": 1.0}) == rounds_of(FedMix(), {"a": 0.0, "b": 1.0})


def test_a_site_of_which_no_sample_was_selected_weighs_by_its_loss_only():
    weights = FedMix(lam=1, beta=1).site_weights(
        {"a": make_report(0, train_loss=1.0), "b": make_report(4, train_loss=1.0)}
    )
    assert weights == {"a": 0.25, "b": 0.75}


def test_powers_do_not_overflow():
    assert rounds_of(FedMix(beta=1000), {"a": 1e11, "b": 1.0}) == [pytest.approx({"a": 10.5 / 11, "b": 0.5 / 11})]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lam": -1}, "lam is -1, but must be a number from 0 up"),
        ({"lam": float("nan")}, "lam is nan"),
        ({"beta": 0}, "beta is 0, but must be a number above 0"),
        ({"beta": "1.5"}, "beta is '1.5'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        FedMix(**arguments)


def test_description():
    assert FedMix().describe() == {"name": "FedMix", "lam": 10.0, "beta": 1.5}


def test_cases_that_taught_count_in_the_place_of_all():
    def report(taught, loss, samples=10):
        return SiteReport(samples, 1, loss, None, extras={} if taught is None else {"taught_cases": taught})

    rule = FedMix(lam=1.0, beta=1.0)
    found = rule.site_weights({"a": report(2, 0.3), "b": report(6, 0.1), "c": report(0, None)})
    assert found == pytest.approx({"a": (2 / 8 + 0.75) / 2, "b": (6 / 8 + 0.25) / 2, "c": 0.0})
    # No site has more than it has, and without any that learned the rule is FedAvg.
    assert FedMix(lam=0).site_weights({"a": report(99, 0.3), "b": report(None, 0.1)}) == {"a": 0.5, "b": 0.5}
    assert rule.site_weights({"a": report(0, None), "b": report(0, None, 30)}) == {"a": 0.25, "b": 0.75}
    assert "fallback" in rule.last_notes

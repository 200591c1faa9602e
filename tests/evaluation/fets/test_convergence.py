"""The convergence score and its clocks: numbers by hand, a slow loop, limits and properties."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.synthetic_run import SITES, make_summary
from fedseg.errors import ConfigurationError, DataError
from fedseg.evaluation.fets.clocks import (
    OWN_PROFILES,
    Compute,
    Network,
    Profiles,
    Rate,
    assign_profiles,
    read_profiles,
    simulated_seconds,
)
from fedseg.evaluation.fets.convergence import WEEK, convergence_score, measured_seconds, validation_dice

ROUNDS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 40)), min_size=1, max_size=8
)  # Dice and whole seconds of each round
HORIZON = st.integers(1, 300)


def score(rounds: list[tuple[float, int]], horizon: float) -> float:
    return convergence_score([dice for dice, _ in rounds], [seconds for _, seconds in rounds], horizon)


def test_by_hand() -> None:
    # b = .2, .5, .5; A = 10 * .2 + 20 * .5 + 30 * .5 = 27; t = 60; ((100 - 60) * .5 + 27) / 100 = .47
    assert convergence_score([0.2, 0.5, 0.4], [10, 20, 30], 100) == pytest.approx(0.47)


@pytest.mark.parametrize("third", [0.4, 1.0])
def test_the_round_that_crosses_the_horizon_counts_up_to_it_and_no_other(third: float) -> None:
    # 10 s of .2 and 15 of the 20 s of .5: (2 + 7.5) / 25 = .38
    assert convergence_score([0.2, 0.5, third], [10, 20, 30], 25) == pytest.approx(0.38)
    # Rounds that end just at the horizon leave nothing for the next: (2 + 10) / 30 = .4
    assert convergence_score([0.2, 0.5, third], [10, 20, 30], 30) == pytest.approx(0.4)


def test_rounds_without_a_score() -> None:
    # b = 0, .4, .4, .6: A = 0 + 4 + 4 + 6 = 14; (60 * .6 + 14) / 100 = .5
    assert convergence_score([None, 0.4, None, 0.6], [10, 10, 10, 10], 100) == pytest.approx(0.5)


def test_a_last_model_without_a_round_counts_for_the_rest_of_the_time() -> None:
    # 10 s of .2, then 90 s of .8: .74
    assert convergence_score([0.2, 0.8], [10, 0], 100) == pytest.approx(0.74)


@given(ROUNDS, HORIZON)
def test_slow_loop(rounds: list[tuple[float, int]], horizon: int) -> None:
    best, total, timeline = 0.0, 0.0, []
    for dice, seconds in rounds:
        best = max(best, dice)
        timeline += [best] * seconds
    for second in range(horizon):
        total += timeline[second] if second < len(timeline) else best
    assert score(rounds, horizon) == pytest.approx(total / horizon, abs=1e-12)


@given(st.floats(0, 1), st.lists(st.floats(0, 1e6), min_size=1, max_size=8), st.floats(1, 1e6))
def test_a_constant_dice_is_the_score(dice: float, seconds: list[float], horizon: float) -> None:
    assert convergence_score([dice] * len(seconds), seconds, horizon) == pytest.approx(dice, abs=1e-9)


@given(ROUNDS, HORIZON, st.integers(0, 7), st.floats(0, 1), st.integers(0, 20))
def test_better_models_never_lower_it_and_slower_rounds_never_raise_it(
    rounds: list[tuple[float, int]], horizon: int, place: int, gain: float, delay: int
) -> None:
    place %= len(rounds)
    before, (dice, seconds) = score(rounds, horizon), rounds[place]
    better = [*rounds[:place], (min(1.0, dice + gain), seconds), *rounds[place + 1 :]]
    slower = [*rounds[:place], (dice, seconds + delay), *rounds[place + 1 :]]
    assert score(better, horizon) >= before - 1e-12
    assert score(slower, horizon) <= before + 1e-12
    assert min(d for d, _ in rounds) - 1e-12 <= before <= max(d for d, _ in rounds) + 1e-12


@given(ROUNDS, HORIZON, st.integers(0, 300))
def test_a_longer_horizon_never_lowers_it(rounds: list[tuple[float, int]], horizon: int, more: int) -> None:
    assert score(rounds, horizon + more) >= score(rounds, horizon) - 1e-12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.5], [1.0], 0.0), "horizon is 0.0, but must be a number of seconds above 0"),
        (([0.5], [1.0], float("nan")), "horizon is nan"),
        (([1.5], [1.0], 1.0), "dice is 1.5, but must be from 0 to 1"),
        (([0.5], [-1.0], 1.0), "seconds is -1.0, but must be a finite number of at least 0"),
        (([0.5], [1.0, 2.0], 1.0), "must be 1 durations, one for each Dice"),
    ],
)
def test_impossible_arguments(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        convergence_score(*arguments)


def test_summaries_without_what_is_needed() -> None:
    with pytest.raises(DataError, match="no round has a validation Dice"):
        convergence_score([None], [1.0], 1.0)
    summary = {"rounds": [{"seconds": 2.0, "val_dice": None}, {"seconds": None}]}
    with pytest.raises(DataError, match="no validation Dice"):
        validation_dice(summary)
    with pytest.raises(DataError, match="no duration of round 1"):
        measured_seconds(summary)


# ------------------------------------------------------------ simulated clock


def exact(name: str, validation: float, training: float, download: float, upload: float) -> Profiles:
    compute = Compute(Rate(training, 0), Rate(validation, 0))
    return Profiles(name, (compute,), (Network(Rate(download, 0), Rate(upload, 0)),))


def two_sites() -> dict[str, Any]:
    return {
        "task": "brats",
        "sites": ["a", "b"],
        "training": {"local_epochs": 2},
        "rounds": [
            {"round": 0, "sites": {"a": {"num_samples": 5}, "b": {"num_samples": 8}}},
            {"round": 1, "sites": {"a": {"num_samples": 5}}},
        ],
    }


def test_seconds_by_hand() -> None:
    profiles = exact("exact", validation=2, training=3, download=10, upload=20)
    # round 0: a: 10 + 4 * 2 + 5 * 2 * 3 + 4 * 2 + 20 = 76; b: 10 + 1 * 2 + 8 * 2 * 3 + 1 * 2 + 20 = 82
    # round 1: a: 76; b scores only: 10 + 2 = 12
    assert simulated_seconds(two_sites(), profiles, {"a": 4, "b": 1}) == [82, 76]
    # b, left out, is the slowest all the same where it has many cases to score: 10 + 100 * 2
    assert simulated_seconds(two_sites(), profiles, {"a": 4, "b": 100})[1] == 210


def test_a_shortened_epoch_takes_the_time_of_its_cases() -> None:
    summary = two_sites()
    for epoch_cases, first in ((2, 76), (9, 82), (None, 82)):
        summary["rounds"][0]["sites"]["b"]["epoch_cases"] = epoch_cases
        # with two cases b takes 10 + 1 * 2 + 2 * 2 * 3 + 1 * 2 + 20 = 46, less than a
        profiles = exact("exact", validation=2, training=3, download=10, upload=20)
        assert simulated_seconds(summary, profiles, {"a": 4, "b": 1}) == [first, 76]


def test_no_rate_is_below_a_second() -> None:
    profiles = exact("fast", validation=0.1, training=0.1, download=0.1, upload=0.1)
    # 1 + 4 * 1 + 5 * 2 * 1 + 4 * 1 + 1
    assert simulated_seconds(two_sites(), profiles, {"a": 4, "b": 0})[1] == 20


@pytest.fixture
def global_generator() -> Iterator[None]:
    """numpy's own generator for a test, as it was afterwards."""
    state = np.random.get_state()
    yield
    np.random.set_state(state)


@pytest.mark.usefixtures("global_generator")
def test_draws_as_the_harness_makes_them() -> None:
    """The harness seeds numpy's global generator; here it does so step by step for one round of three sites."""
    summary, cases = make_summary(5), dict(zip(SITES, (4, 7, 2), strict=True))
    np.random.seed(0xFEEDFACE)
    speeds = []
    for _ in SITES:
        compute = OWN_PROFILES.compute[np.random.randint(3)]
        speeds.append((compute, OWN_PROFILES.network[np.random.randint(3)]))
    assert list(assign_profiles(OWN_PROFILES, SITES).values()) == speeds
    np.random.seed(3)
    longest = 0.0
    for site, (compute, network) in zip(SITES, speeds, strict=True):
        trains = site in summary["rounds"][3]["sites"]
        assert trains == (site != "hospital-c")
        rates = [network.download, compute.validation, compute.training, compute.validation, network.upload]
        units = [1, cases[site], 2 * 5 * {"hospital-a": 12, "hospital-b": 9, "hospital-c": 5}[site], cases[site], 1]
        count = 5 if trains else 2
        draws = [max(1.0, np.random.normal(rate.mean, rate.std)) for rate in rates[:count]]
        longest = max(longest, sum(unit * draw for unit, draw in zip(units, draws, strict=False)))
    assert simulated_seconds(summary, OWN_PROFILES, cases)[3] == pytest.approx(longest, rel=1e-14)


def test_the_clock_leaves_the_global_generator_alone() -> None:
    before = np.random.get_state()[1].copy()
    simulated_seconds(make_summary(2), OWN_PROFILES, dict.fromkeys(SITES, 1))
    assert (np.random.get_state()[1] == before).all()


def test_what_the_clock_must_know() -> None:
    with pytest.raises(DataError, match="validation cases b has"):
        simulated_seconds(two_sites(), OWN_PROFILES, {"a": 1})
    without_epochs = {**two_sites(), "training": {}}
    with pytest.raises(DataError, match=r"training\.local_epochs"):
        simulated_seconds(without_epochs, OWN_PROFILES, {"a": 1, "b": 1})
    without_cases = {**two_sites(), "rounds": [{"round": 0, "sites": {"a": {}}}]}
    with pytest.raises(DataError, match="how many cases a trained on in round 0"):
        simulated_seconds(without_cases, OWN_PROFILES, {"a": 1, "b": 1})


def test_more_work_takes_longer() -> None:
    few, many = two_sites(), {**two_sites(), "training": {"local_epochs": 4}}
    cases = {"a": 3, "b": 3}
    assert simulated_seconds(many, OWN_PROFILES, cases)[0] > simulated_seconds(few, OWN_PROFILES, cases)[0]
    assert sum(simulated_seconds(few, OWN_PROFILES, cases)) < WEEK


PROFILES = {
    "name": "mine",
    "compute": [{"training": [2, 0.5], "validation": [8, 1]}],
    "network": [{"download": [15, 3], "upload": [25, 5]}],
}


def test_profiles_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "profiles.json"
    path.write_text(json.dumps(PROFILES), "utf-8")
    assert read_profiles(path) == Profiles(
        "mine", (Compute(Rate(2, 0.5), Rate(8, 1)),), (Network(Rate(15, 3), Rate(25, 5)),)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"more": 1}, "must be an object with exactly name, compute, network"),
        ({"name": ""}, r"profiles\.name is '', but must be a text"),
        ({"compute": []}, r"profiles\.compute is \[\], but must be a list"),
        ({"network": [{"download": [1, 1]}]}, r"profiles\.network\[0\] is \['download'\], but must be an object with"),
        ({"compute": [{"training": [0, 1], "validation": [1, 1]}]}, r"compute\[0\]\.training is \[0, 1\], but must be"),
        ({"compute": [{"training": [1, -1], "validation": [1, 1]}]}, r"\[1, -1\]"),
        ({"compute": [{"training": [1], "validation": [1, 1]}]}, r"\[1\]"),
        ({"compute": [{"training": [True, 1], "validation": [1, 1]}]}, r"\[True, 1\]"),
    ],
)
def test_wrong_profiles(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "profiles.json"
    path.write_text(json.dumps({**PROFILES, **change}), "utf-8")
    with pytest.raises(ConfigurationError, match=message):
        read_profiles(path)


def test_a_file_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "profiles.json").write_text("{", "utf-8")
    with pytest.raises(DataError, match="not readable as JSON"):
        read_profiles(tmp_path / "profiles.json")

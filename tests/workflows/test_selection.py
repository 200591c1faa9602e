"""Who takes part in a round: by hand where the policy is certain, by frequency where it draws."""

import itertools
import json
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from aggregators.test_fedavg import aggregate, make_update
from fedseg.aggregators.base import AggregationError
from fedseg.aggregators.fedavg import FedAvg
from fedseg.aggregators.fedcostwavg import FedCostWAvg
from fedseg.aggregators.norm_clipping import NormClipped
from fedseg.contract.combinations import conflict
from fedseg.contract.plan import parse_plan
from fedseg.contract.report import SiteReport
from fedseg.contract.round_settings import META_KEY as ROUND_SETTINGS
from fedseg.contract.round_settings import RoundSettings, parse_round_settings
from fedseg.errors import ConfigurationError, FedsegError
from fedseg.filters.dp_sgd import DPSGD
from fedseg.workflows.buffered_training import BufferedTraining
from fedseg.workflows.cyclic_training import CyclicTraining
from fedseg.workflows.encrypted_training import EncryptedTraining
from fedseg.workflows.federated_training import FederatedTraining
from fedseg.workflows.run import selection_base
from fedseg.workflows.run.selection_base import SiteFacts
from fedseg.workflows.selection import AllSites, DropSlow, LargestSites, PoissonBySize, RandomSites, SitesBySize
from fedseg.workflows.split_training import SplitTraining
from scripted_sites import ScriptedSites, accepted, start, train
from tiny import PLAN
from toy_parts import declare

SIZES = {"a": 10, "b": 50, "c": 100, "d": 50}
FACTS = {site: SiteFacts(size) for site, size in SIZES.items()}
POLICIES = [
    AllSites(), LargestSites(2), RandomSites(2), SitesBySize(3), DropSlow(), PoissonBySize(),
    PoissonBySize(fewer="iterations"),
]  # fmt: skip


def picked(policy, facts=FACTS, seed=0, round_number=0):
    return policy.select(facts, seed, round_number).sites


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: type(p).__name__)
def test_every_site_has_a_reason_and_equal_seeds_give_equal_choices(policy):
    first = policy.select(FACTS, 7, 3)
    again = policy.select(dict(reversed(FACTS.items())), 7, 3)
    assert first == again, "neither time nor the order of the sites decides"
    assert set(first.reasons) == set(FACTS)
    assert all(first.reasons.values())
    assert first.sites == sorted(first.sites)
    assert first.sites


def test_the_largest_sites_and_the_name_where_sizes_are_equal():
    assert picked(LargestSites(2)) == ["b", "c"]
    assert picked(LargestSites(9)) == ["a", "b", "c", "d"]


def test_random_sites_are_all_equally_likely():
    counts = dict.fromkeys(SIZES, 0)
    for number in range(400):
        chosen = picked(RandomSites(2), round_number=number)
        assert len(chosen) == 2
        for site in chosen:
            counts[site] += 1
    # Each site is drawn with probability 1/2: 200 of 400, standard deviation 10.
    assert all(150 < count < 250 for count in counts.values())
    courses = [[picked(RandomSites(2), seed=seed, round_number=n) for n in range(10)] for seed in (1, 2)]
    assert courses[0] != courses[1]


def test_poisson_asks_the_outlier_as_often_as_said():
    # Mean (10 + 50 + 100 + 50) / 4 = 52.5; the .95 quantile of Poisson(52.5) is 65: only c lies above.
    policy = PoissonBySize(0.95, 0.2)
    rounds = [policy.select(FACTS, 0, number) for number in range(500)]
    assert all({"a", "b", "d"} <= set(r.sites) for r in rounds)
    share = sum("c" in r.sites for r in rounds) / 500
    assert 0.13 < share < 0.27, "p = .2, standard deviation .018"
    assert "above 65" in rounds[0].reasons["c"]


def test_poisson_limits():
    assert picked(PoissonBySize(outlier_probability=1.0)) == sorted(SIZES)
    assert all("c" not in picked(PoissonBySize(outlier_probability=0.0), round_number=n) for n in range(50))
    equal = {site: SiteFacts(20) for site in SIZES}
    assert picked(PoissonBySize(outlier_probability=0.0), equal) == sorted(SIZES)


def test_an_outlier_is_asked_always_and_goes_over_as_many_cases_as_in_the_other_reading_on_average():
    # As above only c with its 100 cases is an outlier.
    policy = PoissonBySize(0.95, 0.2, fewer="iterations")
    for number in range(20):
        chosen = policy.select(FACTS, 0, number)
        assert chosen.sites == sorted(SIZES)
        assert chosen.settings == {"c": RoundSettings(epoch_cases=20)}
    assert chosen.reasons["c"] == "100 cases, above 65: 20 of them in each local epoch"
    assert chosen.draw.expected == dict.fromkeys(SIZES, 1.0)
    rounds = PoissonBySize(0.95, 0.2)
    seen = [100 * ("c" in picked(rounds, round_number=number)) for number in range(500)]
    assert np.mean(seen) == pytest.approx(20, abs=7), "standard deviation 1.8"
    assert rounds.select(FACTS, 0, 0).settings == {}


def test_the_least_of_an_outlier_is_one_case():
    facts = {"a": SiteFacts(1), "b": SiteFacts(1), "c": SiteFacts(9)}
    chosen = PoissonBySize(0.5, 0.01, fewer="iterations").select(facts, 0, 0)
    assert chosen.settings == {"c": RoundSettings(epoch_cases=1)}


def test_the_outlier_alone_is_told_to_shorten_its_epochs_and_its_steps_are_held_to_that(tmp_path):
    told = {}

    def script(task, site, message):
        if task == "prepare":
            return accepted(training=SIZES[site])
        told[site] = parse_round_settings(message.meta)
        steps = {"a": 5, "b": 25, "c": reported, "d": 25}[site]  # batches of two; of c 20 cases are 10 steps
        arrays = {name: np.zeros_like(weight) for name, weight in message.params.items()}
        report = SiteReport(SIZES[site], steps, 0.9, None, {}, 2)
        return FLModel(params_type=ParamsType.DIFF, params=arrays, meta=report.to_meta())

    for reported, answered in ((10, "abcd"), (50, "abd")):
        told.clear()
        selection = PoissonBySize(0.95, 0.2, fewer="iterations")
        workflow = FederatedTraining(1, FedAvg(), selection=selection, run_id="run")
        run = train(start(workflow, ScriptedSites(script, "abcd"), tmp_path / str(reported)))
        entry = run.state.rounds[0]
        assert sorted(entry["sites"]) == list(answered)
        assert told == {site: RoundSettings(epoch_cases=20 if site == "c" else None) for site in "abcd"}
        assert {s: part["epoch_cases"] for s, part in entry["sites"].items()} == {
            s: 20 if s == "c" else None for s in answered
        }
    assert "reports num_steps 50, but by its own account it is 10" in run.state.events[0]["what"]


def test_slow_sites_rest_and_come_back():
    # Median of 10, 12, 11, 40 is 11.5; the limit is 23: d rests for two rounds and is asked in the third.
    facts = {s: SiteFacts(5, seconds) for s, seconds in zip("abcd", (10.0, 12.0, 11.0, 40.0), strict=True)}
    policy = DropSlow(2.0, rest=2)
    assert [("d" in picked(policy, facts, round_number=n)) for n in range(6)] == [False, False, True] * 2
    assert picked(DropSlow(), FACTS) == sorted(SIZES), "before the first round nobody is slow"


def test_slow_sites_are_remembered_across_a_resume():
    facts = {s: SiteFacts(5, seconds) for s, seconds in zip("abc", (10.0, 10.0, 99.0), strict=True)}
    policy = DropSlow(2.0, rest=1)
    picked(policy, facts)
    again = DropSlow(2.0, rest=1)
    again.restore(policy.history())
    assert picked(again, facts, round_number=1) == picked(policy, facts, round_number=1) == ["a", "b", "c"]


def test_a_policy_that_leaves_nobody_asks_the_largest_site_and_says_so():
    class Nobody(AllSites):
        def judge(self, facts, draw):
            return dict.fromkeys(facts, (False, "never"))

    chosen = Nobody().select(FACTS, 0, 0)
    assert chosen.sites == ["c"]
    assert "nobody" in chosen.reasons["c"]


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 10**6), min_size=1), st.integers(0, 99))
def test_somebody_is_always_asked(sizes, number):
    facts = {site: SiteFacts(size) for site, size in sizes.items()}
    for policy in POLICIES:
        chosen = policy.select(facts, 1, number)
        assert set(chosen.sites) <= set(facts)
        assert len(chosen.sites) >= 1


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: LargestSites(0), "selection.k"),
        (lambda: RandomSites(1.5), "selection.k"),
        (lambda: SitesBySize(0), "selection.k"),
        (lambda: FedAvg(unbiased=1), "unbiased"),
        (lambda: FedAvg("steps", unbiased=True), "weight_by is 'steps', but must be samples or uniform"),
        (lambda: DropSlow(1.0), "selection.factor"),
        (lambda: DropSlow(2.0, rest=0), "selection.rest"),
        (lambda: PoissonBySize(1.0), "selection.quantile"),
        (lambda: PoissonBySize(0.9, 1.1), "selection.outlier_probability"),
        (lambda: PoissonBySize(0.9, 0, "iterations"), "selection.outlier_probability"),
        (lambda: PoissonBySize(0.9, 0.1, "epochs"), "selection.fewer"),
    ],
)
def test_wrong_arguments_are_refused(build, named):
    with pytest.raises(ConfigurationError, match=named):
        build()


def test_a_policy_is_described_by_its_arguments_in_plain_json():
    for policy in POLICIES:
        described = policy.describe()
        assert json.loads(json.dumps(described)) == described
        again = type(policy)(**{name: value for name, value in described.items() if name != "name"})
        assert again.describe() == described


# ------------------------------------------------------------------ what a site weighs on average over all draws

FOUR = {"a": 56, "b": 40, "c": 28, "d": 20}
SHARES = [56 / 144, 40 / 144, 28 / 144, 20 / 144]
EQUAL = [1 / 4] * 4


class Outcome:
    """A generator that draws what it is told to."""

    def __init__(self, order, numbers):
        self.order, self.numbers = order, list(numbers)

    def permutation(self, count):
        return np.array(self.order[:count])

    def random(self):
        return self.numbers.pop(0)


def outcomes(policy, sizes):
    """Every way in which a policy can draw, with its probability."""
    orders = list(itertools.permutations(range(len(sizes))))
    if isinstance(policy, RandomSites):
        yield from ((1 / len(orders), Outcome(order, [])) for order in orders)
    elif isinstance(policy, SitesBySize):
        for order in orders:
            # Where the first point stands, as a part of the distance of two, when some point is on the end of a site.
            ends = itertools.accumulate(list(sizes.values())[i] for i in order)
            places = sorted({0.0, 1.0, *(end * policy.k / sum(sizes.values()) % 1 for end in ends)})
            for low, high in itertools.pairwise(places):
                yield (high - low) / len(orders), Outcome(order, [(low + high) / 2])
    elif isinstance(policy, PoissonBySize):
        p = policy.outlier_probability
        for drawn in itertools.product((True, False), repeat=len(sizes)):
            probability = math.prod(p if each else 1 - p for each in drawn)
            yield probability, Outcome([], [0.0 if each else 1.0 for each in drawn])
    else:
        yield 1.0, Outcome([], [])


def average_factors(policy, rule, sizes, monkeypatch):
    """What each site's update is multiplied by, on average over all ways to draw."""
    averages, total = dict.fromkeys(sizes, 0.0), 0.0
    facts = {site: SiteFacts(size) for site, size in sizes.items()}
    for probability, outcome in outcomes(policy, sizes):
        monkeypatch.setattr(selection_base, "generator", lambda *key, outcome=outcome: outcome)
        chosen = policy.select(facts, 0, 0)
        rule.draw = chosen.draw
        reports = {site: SiteReport(sizes[site], 1, 0.5, None) for site in chosen.sites}
        weights = rule.round_weights(reports)
        scales = rule.site_scales(reports, weights)
        for site, weight in weights.items():
            averages[site] += probability * weight * scales.get(site, 1.0)
        total += probability
    assert total == pytest.approx(1)
    return list(averages.values())


@pytest.mark.parametrize(
    ("policy", "rule", "expected"),
    [
        (AllSites(), FedAvg(), SHARES),
        (AllSites(), FedAvg(unbiased=True), SHARES),
        (RandomSites(2), FedAvg(unbiased=True), SHARES),
        (RandomSites(1), FedAvg(unbiased=True), SHARES),
        (RandomSites(9), FedAvg(unbiased=True), SHARES),
        (RandomSites(3), FedAvg("uniform"), EQUAL),
        (RandomSites(2), FedAvg("uniform", unbiased=True), EQUAL),
        (RandomSites(2), FedAvg(uniform_share=0.5, unbiased=True), [(s + 1 / 4) / 2 for s in SHARES]),
        (SitesBySize(1), FedAvg("uniform"), SHARES),
        (SitesBySize(2), FedAvg("uniform"), SHARES),
        (SitesBySize(3), FedAvg("uniform"), SHARES),
        (SitesBySize(7), FedAvg("uniform"), SHARES),
        (SitesBySize(3), FedAvg(unbiased=True), SHARES),
        (SitesBySize(3), FedAvg("uniform", unbiased=True), EQUAL),
        (PoissonBySize(0.9, 0.3), FedAvg(unbiased=True), SHARES),
        (PoissonBySize(0.9, 0.3), FedAvg("uniform", unbiased=True), EQUAL),
        (PoissonBySize(0.9, 0.3, "iterations"), FedAvg(), SHARES),
        (PoissonBySize(0.9, 0.3, "iterations"), FedAvg(unbiased=True), SHARES),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_average_weight_of_a_site_over_all_draws_is_that_of_the_objective(policy, rule, expected, monkeypatch):
    assert average_factors(policy, rule, FOUR, monkeypatch) == pytest.approx(expected, abs=1e-12)


def test_weights_that_sum_to_one_over_drawn_sites_favour_small_ones(monkeypatch):
    # Of the six pairs a is in three: (56/96 + 56/84 + 56/76) / 6.
    two = average_factors(RandomSites(2), FedAvg(), FOUR, monkeypatch)
    assert two[0] == pytest.approx((56 / 96 + 56 / 84 + 56 / 76) / 6)
    assert two[0] < SHARES[0] - 0.05
    assert average_factors(RandomSites(1), FedAvg(), FOUR, monkeypatch) == pytest.approx(EQUAL)
    poisson = average_factors(PoissonBySize(0.9, 0.2), FedAvg(), FOUR, monkeypatch)
    assert poisson[0] < 0.1
    assert poisson[2] > SHARES[2]


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 10**6), min_size=1), st.integers(1, 12))
def test_a_site_is_drawn_the_whole_number_above_or_below_its_average(sizes, k):
    facts = {site: SiteFacts(size) for site, size in sizes.items()}
    chosen = SitesBySize(k).select(facts, seed=3, round_number=5)
    draw, averages = chosen.draw, SitesBySize(k).expected_draws(facts)
    assert sum(draw.counts.values()) == k
    assert math.fsum(averages.values()) == pytest.approx(k)
    assert all(abs(draw.counts.get(site, 0) - average) < 1 + 1e-6 for site, average in averages.items())
    assert chosen.sites == sorted(draw.counts)


def test_who_is_drawn_twice_trains_once_and_counts_twice_and_who_is_silent_counts_as_zeros(tmp_path):
    asked = []

    def script(task, site, message):
        if task == "prepare":
            return accepted(training=FOUR[site])
        asked.append(site)
        report = SiteReport(FOUR[site], FOUR[site] // 2, 0.9, None, {}, 2)
        arrays = {name: np.full_like(weight, "abcd".index(site) + 1) for name, weight in message.params.items()}
        return None if site == silent else FLModel(params_type=ParamsType.DIFF, params=arrays, meta=report.to_meta())

    for silent, unbiased in (("", False), ("", True), ("b", True)):
        asked.clear()
        rule = FedAvg(unbiased=True) if unbiased else FedAvg("uniform")
        workflow = FederatedTraining(1, rule, selection=SitesBySize(5), run_id="run")
        run = start(workflow, ScriptedSites(script, "abcd"), tmp_path / f"{silent}{unbiased}")
        before = {name: value.copy() for name, value in run.state.model.weights.items()}
        train(run)
        counts = run.state.selection.select(run.state.facts, run.state.plan.seed, 0).draw.counts
        assert max(counts.values()) == 2
        assert sorted(asked) == sorted(counts), "nobody trains twice"
        moved = sum(n * ("abcd".index(site) + 1) for site, n in counts.items() if site != silent) / 5
        for name, value in run.state.model.weights.items():
            np.testing.assert_allclose(value - before[name], moved, atol=2e-5)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (
            [FedAvg(unbiased=True), LargestSites(2)],
            "sites that are all drawn with known prob.*LargestSites",
        ),
        ([FedAvg(unbiased=True), DropSlow()], "which DropSlow withholds"),
        ([FedAvg(unbiased=True), PoissonBySize(0.9, 0)], "which PoissonBySize withholds"),
        ([FedAvg(unbiased=True), BufferedTraining], "which BufferedTraining withholds"),
        (
            [FedAvg(), PoissonBySize(fewer="iterations"), DPSGD],
            "DPSGD needs every training case in each local epoch, which PoissonBySize withholds",
        ),
        ([PoissonBySize(fewer="iterations"), SplitTraining], "SplitTraining needs every training case"),
        ([FedAvg(unbiased=True), EncryptedTraining], "updates that the server can scale one by one"),
        ([FedAvg(), SitesBySize(2)], "SitesBySize needs a rule that counts a site as often as it was drawn"),
        ([FedCostWAvg(), SitesBySize(2)], "which no part of the job provides"),
        ([CyclicTraining(1, selection=SitesBySize(2)), SitesBySize(2)], "which no part of the job provides"),
    ],
)
def test_a_selection_and_a_rule_that_give_sites_other_weights_than_they_say_are_refused(parts, said):
    assert re.search(said, conflict(parts) or "")


@pytest.mark.parametrize(
    "parts",
    [
        [FedAvg("uniform"), SitesBySize(2)],
        [FedAvg(unbiased=True), SitesBySize(2)],
        [NormClipped(weight_by="uniform"), SitesBySize(2)],
        [FedAvg("uniform"), SitesBySize(2), EncryptedTraining],
        [FedAvg(unbiased=True), PoissonBySize(0.9, 0.1)],
        [FedAvg(), RandomSites(2)],
        [FedAvg(), PoissonBySize(fewer="iterations"), EncryptedTraining],
    ],
)
def test_what_goes_together(parts):
    assert conflict(parts) is None


def test_an_unbiased_rule_outside_of_a_workflow_of_fedseg_says_what_it_lacks():
    with pytest.raises(AggregationError, match="needs to know how often each site is drawn"):
        aggregate(FedAvg(unbiased=True), [make_update("a", {"w": np.ones(1)}, 2)])


def test_an_unbiased_rule_refuses_arrays_that_only_some_sites_share(monkeypatch):
    for arguments in ({"sites": ["a"]}, {"from_round": 2}):
        plan = parse_plan(declare(monkeypatch, **arguments))
        if arguments.get("sites"):
            with pytest.raises(ConfigurationError, match="unbiased is True"):
                FedAvg(unbiased=True).check_plan(plan)
        FedAvg().check_plan(plan)
    FedAvg(unbiased=True).check_plan(parse_plan(declare(monkeypatch, private=True)))


# ------------------------------------------------------------------ the optimizers of sites that were away


@pytest.mark.parametrize(
    ("selection", "setting", "sent"),
    [
        (RandomSites(2), None, {"reset_optimizer": True}),
        (PoissonBySize(), None, {"reset_optimizer": True}),
        (PoissonBySize(fewer="iterations"), None, {}),
        (None, None, {}),
        (RandomSites(2), False, {}),
        (RandomSites(2), True, {}),
    ],
)
def test_sites_start_with_fresh_optimizers_where_rounds_ask_only_some(tmp_path, selection, setting, sent):
    seen = []

    def script(task, site, message):
        if task == "prepare":
            return accepted(training=2)
        seen.append(message.meta.get(ROUND_SETTINGS, {}))
        return None

    training = {} if setting is None else {"reset_optimizer": setting}
    plan = parse_plan({**PLAN, "training": {**PLAN["training"], **training}})
    run = start(FederatedTraining(1, FedAvg(), selection=selection, run_id="run"), script, tmp_path, plan)
    run.prepare()
    run.state.record.round = 0
    with pytest.raises(FedsegError):
        run.run_round()
    assert seen
    assert all(each == sent for each in seen)

"""OpenFL's side is imitated as its aggregator fills the frame: no installation of OpenFL is needed."""

from collections import namedtuple

import numpy as np
import pandas as pd
import pytest

from aggregators.test_fedavg import aggregate, make_update
from aggregators.test_properties import RULES, close
from fedseg.aggregators.base import AggregationError
from fedseg.aggregators.fedavg import FedAvg
from fedseg.aggregators.fedcostwavg import FedCostWAvg
from fedseg.aggregators.fedpidavg import FedPIDAvg
from fedseg.aggregators.fedpod import FedPOD
from fedseg.aggregators.fets import CASES, MetricNames, as_openfl_function
from fedseg.aggregators.norm_clipping import NormClipped
from fedseg.aggregators.robust import CoordinateMedian
from fedseg.networks.weights import apply_difference, difference

LocalTensor = namedtuple("LocalTensor", ["col_name", "tensor", "weight"])
COLUMNS = ["tensor_name", "origin", "round", "report", "tags", "nparray"]
SIZES = {"col1": 511, "col2": 382, "col3": 47, "col4": 35, "col5": 6}
SHAPES = {"conv.weight": (4, 3), "conv.bias": (4,), "norm.running_mean": (4,)}
COUNTER, OPTIMIZER = "norm.num_batches_tracked", "__opt_state_0_0_istensor_exp_avg"


class Challenge:
    """The aggregator's frame and the order of its calls: every tensor of a round, after all results have come."""

    def __init__(self, function, store_rounds=5, store_model=True):
        self.function, self.store_rounds, self.store_model = function, store_rounds, store_model
        self.frame = pd.DataFrame([], columns=COLUMNS)
        generator = np.random.default_rng(99)
        self.model = {name: generator.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
        self.model[COUNTER] = np.array(0.0, np.float32)
        self.chosen = {}

    def add(self, name, number, report, tags, value):
        self.frame.loc[len(self.frame)] = [name, "aggregator", number, report, tags, value]

    def round(self, number, trained, metrics):
        """One round; ``metrics`` are (name, tags) to value per collaborator. Returns the next global model."""
        self.chosen[number] = list(trained)
        if self.store_model:
            for name, value in self.model.items():
                self.add(name, number, False, ("model",), value)
        for collaborator, tensors in trained.items():
            for name, value in tensors.items():
                self.add(name, number, False, ("trained", collaborator), value)
                self.add(name, number, False, ("trained", "delta", "lossy_decompressed", collaborator), value * 0 + 77)
            for (name, tags), value in metrics[collaborator].items():
                self.add(name, number, True, (*tags, collaborator), np.array(value))
        total = sum(SIZES[c] for c in trained)
        names = next(iter(trained.values()))
        following = {}
        for name in names:
            tensors = [LocalTensor(c, trained[c][name], SIZES[c] / total) for c in trained]
            following[name] = self.function(tensors, self.frame, name, number, self.chosen, {})
            self.add(name, number + 1, False, ("aggregated",), following[name])
            self.add(name, number, False, ("trained",), following[name])
        self.model = following
        kept = (self.frame["round"] > number + 1 - self.store_rounds) | self.frame["report"]
        self.frame = self.frame[kept].reset_index(drop=True)
        return following


def reported(generator):
    """Metrics of one collaborator as the challenge's task runner names and tags them."""
    return {
        ("loss", ("metric",)): generator.uniform(0.1, 2),
        ("train_dice", ("metric",)): 0.5,
        ("valid_loss", ("metric", "validate_agg")): generator.uniform(0.1, 2),
        ("valid_loss", ("metric", "validate_local")): generator.uniform(0.1, 2),
        ("valid_dice", ("metric", "validate_agg")): generator.uniform(0.1, 0.9),
        ("valid_dice", ("metric", "validate_local")): generator.uniform(0.1, 0.9),
    }


def as_update(collaborator, total, trained, base, metrics):
    """The same round of the same collaborator as this package's sites would report it."""
    cases = round(SIZES[collaborator] / total * CASES)
    return make_update(
        collaborator,
        difference({name: trained[name] for name in base}, base),
        cases,
        cases,
        train_loss=metrics["loss", ("metric",)],
        val_loss=metrics["valid_loss", ("metric", "validate_agg")],
        val_scores={"mean": metrics["valid_dice", ("metric", "validate_agg")]},
        val_loss_after=metrics["valid_loss", ("metric", "validate_local")],
        val_score_after=metrics["valid_dice", ("metric", "validate_local")],
    )


def tensors(generator, *extra):
    drawn = {name: generator.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    return drawn | {name: np.array([generator.integers(9)], np.float32) for name in extra}


@pytest.mark.parametrize("name", RULES)
def test_every_rule_gives_the_model_that_it_gives_here(name):
    generator, rule = np.random.default_rng(0), RULES[name]()
    challenge = Challenge(as_openfl_function(RULES[name]()), store_rounds=2)
    base = {n: challenge.model[n] for n in SHAPES}
    # Eight rounds, so that FedPIDAvg looks back further than the frame, with changing collaborators.
    for number in range(8):
        chosen = [c for c in SIZES if generator.random() > 0.3] or ["col1"]
        trained = {c: tensors(generator, COUNTER, OPTIMIZER) for c in chosen}
        metrics = {c: reported(generator) for c in chosen}
        following = challenge.round(number, trained, metrics)
        total = sum(SIZES[c] for c in chosen)
        update = aggregate(rule, [as_update(c, total, trained[c], base, metrics[c]) for c in chosen])
        base = apply_difference(base, update)
        close({n: following[n] for n in SHAPES}, base, 0)
        assert all(following[n].dtype == np.float32 for n in SHAPES)
    assert challenge.function.rule.last_weights == rule.last_weights


def test_shares_stand_for_cases():
    generator = np.random.default_rng(1)
    challenge = Challenge(as_openfl_function(FedAvg()))
    trained = {c: tensors(generator) for c in SIZES}
    following = challenge.round(0, trained, {c: reported(generator) for c in SIZES})
    for name in SHAPES:
        expected = sum(SIZES[c] * trained[c][name].astype(float) for c in SIZES) / sum(SIZES.values())
        np.testing.assert_allclose(following[name], expected, rtol=1e-5, atol=1e-6)


def test_the_published_weights_of_fedcostwavg():
    # As in test_fedcostwavg: .3604 .2947 .1290 .1158 .1001 for the ratios 1, 1, 1.05, 0.98, 0.97.
    generator, rule = np.random.default_rng(2), FedCostWAvg()
    challenge = Challenge(as_openfl_function(rule))
    for number, losses in enumerate(([1.0, 1.0, 1.05, 0.98, 0.97], [1.0] * 5)):
        metrics = {c: {("loss", ("metric",)): loss} for c, loss in zip(SIZES, losses, strict=True)}
        challenge.round(number, {c: tensors(generator) for c in SIZES}, metrics)
    assert [round(w, 4) for w in rule.last_weights.values()] == [0.3604, 0.2947, 0.1290, 0.1158, 0.1001]


def test_the_median_of_models_not_of_anything_else():
    generator = np.random.default_rng(3)
    challenge = Challenge(as_openfl_function(CoordinateMedian()))
    for number in range(2):
        trained = {c: tensors(generator) for c in SIZES}
        following = challenge.round(number, trained, {c: reported(generator) for c in SIZES})
        for name in SHAPES:
            expected = np.median([trained[c][name] for c in SIZES], axis=0)
            np.testing.assert_allclose(following[name], expected, rtol=1e-5, atol=1e-6)


def test_counters_and_optimizer_states_are_not_the_rules_business():
    generator, seen = np.random.default_rng(4), []

    class Spy(FedAvg):
        def combine(self, reports):
            seen.append(self._spool.names())
            return super().combine(reports)

    challenge = Challenge(as_openfl_function(Spy("uniform")))
    for number in range(2):
        trained = {c: tensors(generator, COUNTER, OPTIMIZER) for c in SIZES}
        following = challenge.round(number, trained, {c: reported(generator) for c in SIZES})
        assert following[COUNTER] == trained["col1"][COUNTER]
        # The weighted mean by cases: sum n_j x_j / 981.
        expected = sum(SIZES[c] * trained[c][OPTIMIZER] for c in SIZES) / 981
        np.testing.assert_allclose(following[OPTIMIZER], expected, rtol=1e-6)
    assert seen == [sorted(SHAPES)] * 2


def test_integer_tensors_are_those_of_the_largest_collaborator():
    challenge = Challenge(as_openfl_function(FedAvg()))
    generator = np.random.default_rng(5)
    trained = {c: {**tensors(generator), "steps": np.array([i])} for i, c in enumerate(reversed(SIZES))}
    following = challenge.round(0, trained, {c: reported(generator) for c in SIZES})
    assert following["steps"].tolist() == [4]
    assert following["steps"].dtype == np.array([1]).dtype


def test_the_rule_is_asked_once_a_round():
    generator, calls = np.random.default_rng(6), []

    class Counting(FedAvg):
        def site_weights(self, reports):
            calls.append(sorted(reports))
            return super().site_weights(reports)

    challenge = Challenge(as_openfl_function(Counting()))
    for number, chosen in enumerate((["col1", "col2"], ["col5"])):
        challenge.round(number, {c: tensors(generator) for c in chosen}, {c: reported(generator) for c in chosen})
    assert calls == [["col1", "col2"], ["col5"]]


def test_a_collaborator_without_scores_is_a_site_without_validation_cases():
    generator, rule = np.random.default_rng(7), FedPOD()
    challenge = Challenge(as_openfl_function(rule))
    challenge.round(0, {c: tensors(generator) for c in SIZES}, {c: reported(generator) for c in SIZES})
    metrics = {c: reported(generator) for c in SIZES}
    metrics["col2"] = {("loss", ("metric",)): 0.5}
    metrics["col3"]["valid_loss", ("metric", "validate_local")] = float("nan")
    challenge.round(1, {c: tensors(generator) for c in SIZES}, metrics)
    assert rule.last_notes["neutral"] == ["col2", "col3"]


def test_a_collaborator_whose_training_loss_is_not_finite_is_left_out(caplog):
    generator, rule = np.random.default_rng(8), FedAvg()
    challenge = Challenge(as_openfl_function(rule))
    metrics = {c: reported(generator) for c in SIZES}
    metrics["col4"]["loss", ("metric",)] = float("nan")
    challenge.round(0, {c: tensors(generator) for c in SIZES}, metrics)
    assert sorted(rule.last_weights) == ["col1", "col2", "col3", "col5"]
    assert "Update of col4 left out of round 0" in caplog.text


def test_without_a_training_loss_the_remedy_is_named():
    generator = np.random.default_rng(9)
    trained, metrics = {"col1": tensors(generator)}, {"col1": {("my_loss", ("metric",)): 0.5}}
    with pytest.raises(AggregationError, match="col1 reported no loss: give as_openfl_function the name"):
        Challenge(as_openfl_function(FedAvg())).round(0, trained, metrics)
    for name in ("my_loss", None):
        function = as_openfl_function(FedAvg(), MetricNames(train_loss=name))
        close(Challenge(function).round(0, trained, metrics), trained["col1"], 1e-6)


def test_a_frame_without_the_global_model():
    generator = np.random.default_rng(10)
    chosen = list(SIZES)
    rounds = [({c: tensors(generator) for c in chosen}, {c: reported(generator) for c in chosen}) for _ in range(3)]
    # Clipping depends on where updates start.
    stored = Challenge(as_openfl_function(NormClipped(bound=1.0)))
    absent = Challenge(as_openfl_function(NormClipped(bound=1.0), initial=stored.model), store_model=False)
    for number, (trained, metrics) in enumerate(rounds):
        close(absent.round(number, trained, metrics), stored.round(number, trained, metrics), 0)
    message = r"holds no global model of round 0 \(.*\): give as_openfl_function the initial model"
    with pytest.raises(AggregationError, match=message):
        Challenge(as_openfl_function(FedAvg()), store_model=False).round(0, *rounds[0])


def test_an_experiment_that_starts_again_needs_a_new_function():
    generator, function = np.random.default_rng(11), as_openfl_function(FedPIDAvg())
    challenge = Challenge(function)
    for number in range(2):
        challenge.round(number, {"col1": tensors(generator)}, {"col1": reported(generator)})
    with pytest.raises(AggregationError, match="Round 0 came after round 1: make a new rule and function"):
        Challenge(function).round(0, {"col1": tensors(generator)}, {"col1": reported(generator)})

"""What holds for every aggregation rule, or is exempted here by name and reason."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregators.test_fedavg import aggregate, make_report, make_update
from fedseg.aggregators.amplitude_phase import AmplitudePhaseAvg
from fedseg.aggregators.dos import DOS
from fedseg.aggregators.fedavg import FedAvg
from fedseg.aggregators.fedcostwavg import FedCostWAvg
from fedseg.aggregators.fedmix import FedMix
from fedseg.aggregators.fednova import FedNova
from fedseg.aggregators.fedpidavg import FedPID, FedPIDAvg
from fedseg.aggregators.fedpod import FedPOD
from fedseg.aggregators.krum import Krum
from fedseg.aggregators.loss_focused import LossFocused
from fedseg.aggregators.norm_clipping import NormClipped
from fedseg.aggregators.robust import CoordinateMedian, GeometricMedian, TrimmedMean
from fedseg.aggregators.similarity import RegAgg, SimAgg
from fedseg.aggregators.staleness import Staleness
from fedseg.networks.weights import apply_difference, difference

RULES = {
    "FedAvg": FedAvg,
    "FedAvg, steps": lambda: FedAvg("steps"),
    "half FedAvg, half uniform": lambda: FedAvg(uniform_share=0.5),
    "FedCostWAvg": FedCostWAvg,
    "FedCostWAvg, val_loss": lambda: FedCostWAvg(cost="val_loss"),
    "FedCostWAvg, val_dice": lambda: FedCostWAvg(cost="val_dice"),
    "FedPIDAvg": FedPIDAvg,
    "FedPIDAvg, abs": lambda: FedPIDAvg(negative_drop="abs", window=3),
    "FedPID": FedPID,
    "FedPOD": FedPOD,
    "SimAgg": SimAgg,
    "SimAgg, sum": lambda: SimAgg("sum"),
    "RegAgg": RegAgg,
    "LossFocused": lambda: LossFocused(ramp_rounds=4),
    "FedMix": FedMix,
    "Staleness": Staleness,
    "DOS": DOS,
    "CoordinateMedian": CoordinateMedian,
    "TrimmedMean": lambda: TrimmedMean(trim=0.2),
    "GeometricMedian": GeometricMedian,
    "Krum": lambda: Krum(byzantine=1, select=1),
    "multi-Krum": lambda: Krum(byzantine=1, select=3),
    "NormClipped": NormClipped,
    "FedNova": FedNova,
    "AmplitudePhaseAvg": AmplitudePhaseAvg,  # kernels of convolutions have tests of their own
}
# Rules whose result is no weighted mean of whole updates.
NO_SITE_WEIGHTS = {
    "CoordinateMedian": "each coordinate has its own middle sites",
    "TrimmedMean": "each coordinate has its own middle sites",
}
WEIGHTS_PER_ARRAY = {
    "SimAgg": "each array has weights of its own",
    "SimAgg, sum": "each array has weights of its own",
    "RegAgg": "each array has weights of its own",
}
# Rules that look at updates as vectors from the global model, whose origin full weights do not have.
NEED_UPDATES = {
    "DOS": "angles between updates are not those between models",
    "NormClipped": "it limits the length of an update; of a whole model it would shrink the model",
    "FedNova": "it stretches updates by their steps; a whole model would be stretched too",
}
IGNORES_EQUALITY = {"FedNova": "equal updates after different steps are different directions"}


def every_rule(*exempted):
    """All rules but those of the exemptions, which give a reason for each."""
    return pytest.mark.parametrize("name", [name for name in RULES if not any(name in group for group in exempted)])


EVERY = every_rule()
NAMES = [f"s{i:02d}" for i in range(10)]


def reports(generator, sites):
    """Random reports; some sites have no validation cases."""
    fields = {}
    for site in sites:
        validated = generator.random() > 0.2
        fields[site] = {
            "samples": int(generator.integers(1, 300)),
            "steps": int(generator.integers(1, 40)),
            "train_loss": generator.uniform(0.05, 2),
            "val_loss": generator.uniform(0.05, 2) if validated else None,
            "val_loss_after": generator.uniform(0.05, 2) if validated else None,
            "val_score_after": generator.uniform(0.1, 0.95) if validated else None,
        }
    return fields


def model(generator, kind=np.float32):
    """A global model of three arrays, one without axes."""
    return {
        "a": generator.normal(size=(3, 4)).astype(kind),
        "b": generator.normal(size=7).astype(kind),
        "c": np.asarray(generator.normal(), kind),
    }


def updates_of(arrays, fields):
    return [make_update(site, arrays[site], **fields[site]) for site in arrays]


def warmed(name, generator, rounds=2):
    """A rule that has seen some rounds, so that former costs and absences count."""
    rule = RULES[name]()
    for number in range(rounds):
        sites = NAMES if number == 0 else NAMES[::2]
        aggregate(rule, updates_of({site: model(generator) for site in sites}, reports(generator, sites)))
    return rule


def close(one, other, tolerance=1e-9):
    assert sorted(one) == sorted(other)
    for array in one:
        np.testing.assert_allclose(one[array], other[array], rtol=tolerance, atol=tolerance)


# ------------------------------------------------- P0: updates and full weights


@every_rule(NO_SITE_WEIGHTS, WEIGHTS_PER_ARRAY)
def test_the_model_is_the_weighted_mean_of_models(name):
    generator = np.random.default_rng(1)
    rule, fields = warmed(name, generator), reports(generator, NAMES)
    base = model(generator, np.float64)
    trained = {site: model(generator, np.float64) for site in NAMES}
    update = aggregate(rule, updates_of({s: difference(after, base) for s, after in trained.items()}, fields))
    # By definition a scale pulls a site's model towards the global one (clipping) or away from it (FedNova).
    scaled = {
        site: {a: base[a] + rule.last_scales.get(site, 1.0) * (after[a] - base[a]) for a in base}
        for site, after in trained.items()
    }
    expected = {a: sum(rule.last_weights[site] * scaled[site][a] for site in NAMES) for a in base}
    close(apply_difference(base, update), expected)


@every_rule(NEED_UPDATES)
def test_full_weights_give_the_same_model(name):
    base = model(np.random.default_rng(2), np.float64)
    results = []
    for full in (False, True):
        generator = np.random.default_rng(3)
        rule, fields = warmed(name, generator), reports(generator, NAMES)
        trained = {site: model(generator, np.float64) for site in NAMES}
        sent = trained if full else {site: difference(after, base) for site, after in trained.items()}
        results.append(aggregate(rule, updates_of(sent, fields)))
    close(results[1], apply_difference(base, results[0]), 1e-6)


@pytest.mark.parametrize("name", NEED_UPDATES)
def test_the_exempted_rules_do_need_updates(name):
    generator = np.random.default_rng(4)
    base = {"a": np.full(20, 30.0)}
    trained = {site: {"a": base["a"] + generator.normal(size=20) * (1 + 9 * (site == "s00"))} for site in NAMES}
    fields = reports(generator, NAMES)
    by_updates = aggregate(RULES[name](), updates_of({s: difference(t, base) for s, t in trained.items()}, fields))
    by_models = aggregate(RULES[name](), updates_of(trained, fields))
    assert not np.allclose(by_models["a"], base["a"] + by_updates["a"], rtol=1e-6)


# ------------------------------------------------------------ P1: permutations


@EVERY
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=15)
def test_the_order_of_arrival_changes_no_bit(name, seed):
    results = []
    for shuffled in (False, True):
        generator = np.random.default_rng(seed)
        rule = warmed(name, generator)
        updates = updates_of({site: model(generator) for site in NAMES}, reports(generator, NAMES))
        if shuffled:
            generator.shuffle(updates)
        results.append((aggregate(rule, updates), rule.last_weights, rule.last_scales, rule.last_notes))
    for array in results[0][0]:
        np.testing.assert_array_equal(results[0][0][array], results[1][0][array])
    assert results[0][1:] == results[1][1:]


@EVERY
def test_names_of_sites_do_not_matter(name):
    order = np.random.default_rng(5).permutation(len(NAMES))
    renamed = dict(zip(NAMES, np.array(NAMES)[order].tolist(), strict=True))
    results = []
    for new_name in (dict(zip(NAMES, NAMES, strict=True)), renamed):
        generator, rule = np.random.default_rng(6), RULES[name]()
        for sites in (NAMES, NAMES[:5], NAMES):
            fields, arrays = reports(generator, sites), {site: model(generator) for site in sites}
            result = aggregate(
                rule, updates_of({new_name[s]: arrays[s] for s in sites}, {new_name[s]: fields[s] for s in sites})
            )
        results.append((result, {s: rule.last_weights.get(new_name[s]) for s in NAMES}))
    close(results[0][0], results[1][0], 1e-5)
    if name not in NO_SITE_WEIGHTS:
        assert results[0][1] == pytest.approx(results[1][1], rel=1e-9, abs=1e-12)


# ---------------------------------------- P2, P3: identical clients, one client


@EVERY
def test_identical_clients_are_a_fixed_point(name):
    generator = np.random.default_rng(7)
    rule, array = warmed(name, generator), model(generator)
    (fields,) = reports(generator, ["any"]).values()
    result = aggregate(rule, [make_update(site, array, **fields) for site in NAMES])
    close(result, array, 1e-6)


@every_rule(IGNORES_EQUALITY)
def test_identical_updates_are_a_fixed_point_whatever_the_reports(name):
    generator = np.random.default_rng(8)
    rule, array = warmed(name, generator), model(generator)
    close(aggregate(rule, updates_of(dict.fromkeys(NAMES, array), reports(generator, NAMES))), array, 1e-6)


@EVERY
def test_one_client_is_that_client_to_the_last_bit(name):
    generator = np.random.default_rng(9)
    rule, array = warmed(name, generator), model(generator)
    result = aggregate(rule, updates_of({"s03": array}, reports(generator, ["s03"])))
    for key, value in array.items():
        np.testing.assert_array_equal(result[key], value)
        assert result[key].dtype == value.dtype
    assert rule.last_weights == ({} if name in NO_SITE_WEIGHTS else {"s03": 1.0})


# ------------------------------------------------------------------ P4: weights

EXTREME = st.sampled_from([0.0, 1e-12, 1e-300, 5e-324, 0.3, 1.0, 1e11, 9e11])
LOSS = st.one_of(EXTREME, st.floats(-1e11, 1e11), st.floats(0, 2))
DICE = st.one_of(st.none(), st.floats(0, 1))
REPORT = st.fixed_dictionaries(
    {
        "samples": st.one_of(st.just(1), st.integers(1, 1000), st.just(10**12)),
        "steps": st.integers(1, 10**6),
        "train_loss": LOSS,
        "val_loss": st.one_of(st.none(), LOSS),
        "val_loss_after": st.one_of(st.none(), LOSS),
        "val_score_after": DICE,
        "value": st.floats(-1e3, 1e3, width=32),
    }
)
ROUND = st.dictionaries(st.sampled_from(NAMES), REPORT, min_size=1, max_size=10)


@EVERY
@given(rounds=st.lists(ROUND, min_size=1, max_size=3))
@settings(max_examples=40)
def test_weights_are_shares_for_every_finite_input(name, rounds):
    rule = RULES[name]()
    for fields in rounds:
        updates = []
        for site, values in fields.items():
            array = np.array([values["value"], 1.0], np.float32)
            updates.append(make_update(site, {"w": array}, **{k: v for k, v in values.items() if k != "value"}))
        assert np.isfinite(aggregate(rule, updates)["w"]).all()
        json.dumps(rule.last_notes, allow_nan=False)
        weights = rule.last_weights
        if name in NO_SITE_WEIGHTS:
            assert weights == {}
            continue
        assert list(weights) == sorted(fields)
        assert all(math.isfinite(w) and w >= 0 for w in weights.values())
        assert math.fsum(weights.values()) == pytest.approx(1, abs=1e-9)


@every_rule(NO_SITE_WEIGHTS)
def test_weights_are_logged(name, caplog):
    generator = np.random.default_rng(12)
    rule = RULES[name]()
    with caplog.at_level("INFO"):
        aggregate(rule, updates_of({site: model(generator) for site in NAMES}, reports(generator, NAMES)))
    assert str({site: round(weight, 6) for site, weight in rule.last_weights.items()}) in caplog.text


@EVERY
def test_costs_are_numbers_of_the_reports(name):
    report = make_report(train_loss=1 / 3, val_loss=1 / 7, val_loss_after=1 / 9, val_score_after=0.3)
    assert RULES[name]().costs({"a": report})["a"] in (1 / 3, 1 / 9, 1 - 0.3)


@EVERY
def test_descriptions_are_plain_json_and_complete(name):
    rule = RULES[name]()
    description = rule.describe()
    assert description["name"] == type(rule).__name__
    assert json.loads(json.dumps(description)) == description
    again = type(rule)(**{key: value for key, value in description.items() if key != "name"})
    assert again.describe() == description


# ------------------------------------------------------------------- P5: resume


@EVERY
@pytest.mark.parametrize("cut", [1, 3, 5])
def test_a_resumed_run_is_the_uninterrupted_one(name, cut):
    generator = np.random.default_rng(10)
    rounds = []
    for _ in range(6):
        sites = [site for site in NAMES if generator.random() > 0.3] or NAMES[:1]
        rounds.append(updates_of({site: model(generator) for site in sites}, reports(generator, sites)))

    def run(rule, updates):
        for update in updates:
            result = {array: value.tobytes() for array, value in aggregate(rule, update).items()}
            yield result, rule.last_weights, rule.last_scales, rule.last_notes

    expected = list(run(RULES[name](), rounds))
    first, second = RULES[name](), RULES[name]()
    before = list(run(first, rounds[:cut]))
    second.restore(json.loads(json.dumps(first.history(), allow_nan=False)))
    assert [*before, *run(second, rounds[cut:])] == expected


# ------------------------------------------------------------- integer buffers


@EVERY
def test_integer_buffers_stay_as_they_are(name):
    generator = np.random.default_rng(11)
    base = {**model(generator), "norm.num_batches_tracked": np.array(40)}
    trained = {site: {**model(generator), "norm.num_batches_tracked": np.array(41 + i)} for i, site in enumerate(NAMES)}
    sent = {site: difference(after, base) for site, after in trained.items()}
    assert all(set(update) == {"a", "b", "c"} for update in sent.values())
    result = apply_difference(base, aggregate(RULES[name](), updates_of(sent, reports(generator, NAMES))))
    assert result["norm.num_batches_tracked"] == 40
    assert result["norm.num_batches_tracked"].dtype == base["norm.num_batches_tracked"].dtype

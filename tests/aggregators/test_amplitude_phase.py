import cmath
import itertools
import math
import tracemalloc

import numpy as np
import pytest

from aggregators.test_fedavg import aggregate, make_report, make_update
from fedseg.aggregators.amplitude_phase import AmplitudePhaseAvg
from fedseg.aggregators.base import AggregationError, Draw
from fedseg.aggregators.fedavg import FedAvg
from fedseg.contract.combinations import check_parts
from fedseg.contract.update import Update
from fedseg.errors import ConfigurationError
from fedseg.filters.dp_sgd import DPSGD
from fedseg.filters.encrypt import EncryptUpdate
from fedseg.filters.layers import PrivateLayers
from fedseg.filters.noise import GaussianNoise, LaplaceNoise
from fedseg.filters.norm_clip import NormClip
from fedseg.filters.quantize import QuantizeUpdate
from fedseg.filters.share_fraction import ShareFraction
from fedseg.filters.sparse_vector import SparseVector
from fedseg.networks.weights import difference
from fedseg.training.methods.prr_fl import PRRFL
from fedseg.workflows.buffered_training import BufferedTraining
from fedseg.workflows.encrypted_training import EncryptedTraining
from fedseg.workflows.run.weighted_model import WeightedModel
from fedseg.workflows.swarm_training import SwarmTraining
from networks.test_frequencies import as_matrix, slow_spectrum

SHAPE = (3, 2, 2, 2, 2)
NAMES = "abcd"


def models(seed, count=3, shape=SHAPE, kind=np.float64):
    """The global model, and those of the sites after training."""
    draw = np.random.default_rng(seed)

    def one():
        return {"conv": draw.normal(size=shape).astype(kind), "bias": draw.normal(size=shape[0]).astype(kind)}

    return one(), {site: one() for site in NAMES[:count]}


def averaged(rule, received, trained, samples=None):
    """The next model of a rule."""
    rule.received = received
    updates = [make_update(s, difference(t, received), (samples or {}).get(s, 1)) for s, t in trained.items()]
    change = aggregate(rule, updates)
    return {name: received[name] + change[name] for name in received}


def from_slow(found):
    """The real part of the inverse transform, from its definition."""
    rows, columns = found.shape
    matrix = np.zeros(found.shape)
    for y, x in itertools.product(range(rows), range(columns)):
        terms = (
            found[u, v] * cmath.exp(2j * math.pi * (u * y / rows + v * x / columns))
            for u in range(rows)
            for v in range(columns)
        )
        matrix[y, x] = (sum(terms) / found.size).real
    return matrix


def slow(kernels, weights, width):
    """The published mean, frequency by frequency over the whole plane, as a matrix."""
    spectra = [slow_spectrum(as_matrix(kernel)) for kernel in kernels]
    rows, columns = spectra[0].shape
    found = np.zeros((rows, columns), complex)
    for u, v in itertools.product(range(rows), range(columns)):
        values = [each[u, v] for each in spectra]
        if 2 * u % rows == 0 and 2 * v % columns == 0:
            values = [complex(value.real, 0.0) for value in values]  # rounding would choose between pi and -pi
        inside = min(u, rows - u) / rows < width / 2 and min(v, columns - v) / columns < width / 2
        if inside or width == 1:
            size = sum(w * abs(value) for w, value in zip(weights, values, strict=True))
            angle = sum(w * cmath.phase(value) for w, value in zip(weights, values, strict=True))
            found[u, v] = cmath.rect(size, angle)
        else:
            found[u, v] = sum(w * value for w, value in zip(weights, values, strict=True))
    return from_slow(found)


@pytest.mark.parametrize("shape", [SHAPE, (2, 3, 3, 3, 3), (5, 1, 1, 1, 1)])
@pytest.mark.parametrize("width", [0.3, 0.7, 1.0])
@pytest.mark.parametrize(("weight_by", "shares"), [("uniform", [1 / 3] * 3), ("samples", [0.5, 0.25, 0.25])])
def test_it_is_the_slow_loop_over_frequencies(shape, width, weight_by, shares):
    received, trained = models(0, shape=shape)
    found = averaged(AmplitudePhaseAvg(width, weight_by), received, trained, {"a": 2})
    expected = slow([each["conv"] for each in trained.values()], shares, width)
    np.testing.assert_allclose(as_matrix(found["conv"]), expected, atol=1e-10)
    mean = sum(share * each["bias"] for share, each in zip(shares, trained.values(), strict=True))
    np.testing.assert_allclose(found["bias"], mean, atol=1e-12)
    assert (
        width < 0.5 or np.abs(as_matrix(averaged(FedAvg(weight_by), received, trained)["conv"]) - expected).max() > 0.05
    )


def test_without_frequencies_it_is_fedavg_to_the_last_bit():
    received, trained = models(1, kind=np.float32)
    ours, plain = (averaged(rule, received, trained) for rule in (AmplitudePhaseAvg(0.0), FedAvg("uniform")))
    for name in received:
        np.testing.assert_array_equal(ours[name], plain[name])


@pytest.mark.parametrize("width", [0.2, 0.7, 1.0])
def test_equal_phases_give_the_mean_of_the_models(width):
    """Which is that of complex spectra; amplitudes differ at every frequency and site."""
    draw = np.random.default_rng(2)
    received, _ = models(2)
    matrix = as_matrix(draw.normal(size=SHAPE))
    angles = np.angle(np.fft.fft2(matrix))
    trained = {}
    for site in NAMES[:3]:
        sizes = np.abs(np.fft.fft2(draw.normal(size=matrix.shape)))
        kernel = np.fft.ifft2(sizes * np.exp(1j * angles)).real.reshape((*SHAPE[1:], SHAPE[0]))
        trained[site] = {**received, "conv": np.moveaxis(kernel, -1, 0)}
    ours, plain = (averaged(rule, received, trained) for rule in (AmplitudePhaseAvg(width), FedAvg("uniform")))
    np.testing.assert_allclose(ours["conv"], plain["conv"], atol=1e-12)
    assert len({tuple(np.abs(each["conv"]).ravel()) for each in trained.values()}) == 3


@pytest.mark.parametrize("width", [0.4, 1.0])
@pytest.mark.parametrize("shape", [SHAPE, (4, 4, 3, 3, 3), (6, 4, 1, 1, 1)])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_one_site_and_equal_sites_are_that_model(width, shape, kind):
    received, trained = models(3, 1, shape, kind)
    tolerance = 1e-6 if kind == np.float32 else 1e-13
    for sites in ("a", NAMES):
        found = averaged(AmplitudePhaseAvg(width), received, dict.fromkeys(sites, trained["a"]))
        for name in received:
            assert found[name].dtype == kind
            np.testing.assert_allclose(found[name], trained["a"][name], atol=tolerance)


def test_by_hand_two_kernels_whose_means_have_the_same_size():
    # Kernels of two numbers: spectra (sum, difference) = (3, 1) and (1, -3). Amplitudes 2, 2; angles 0 and pi / 2, so
    # the real parts are 2 and 0. Back: (2 + 0) / 2, (2 - 0) / 2. The mean of the kernels is (1.5, .5).
    trained = {"a": {"conv": np.array([2.0, 1.0])}, "b": {"conv": np.array([-1.0, 2.0])}}
    trained = {site: {"conv": each["conv"].reshape(2, 1, 1, 1, 1)} for site, each in trained.items()}
    received = {"conv": np.full((2, 1, 1, 1, 1), 7.0)}
    found = averaged(AmplitudePhaseAvg(1.0), received, trained)["conv"]
    np.testing.assert_allclose(found.ravel(), [1.0, 1.0], atol=1e-12)
    # Below half a cycle is the mean alone: amplitude 2, angle 0; the difference stays the mean one, -1.
    found = averaged(AmplitudePhaseAvg(0.9), received, trained)["conv"]
    np.testing.assert_allclose(found.ravel(), [0.5, 1.5], atol=1e-12)


def test_a_kernel_that_some_sites_sent_is_averaged_over_those():
    received, trained = models(5)
    rule = AmplitudePhaseAvg(0.7)
    rule.received = received
    updates = [make_update(s, difference(t, received)) for s, t in trained.items()]
    del updates[2].params["conv"]
    found = received["conv"] + aggregate(rule, updates)["conv"]
    two = averaged(AmplitudePhaseAvg(0.7), received, {site: trained[site] for site in "ab"})["conv"]
    np.testing.assert_allclose(found, two, atol=1e-13)


def test_a_site_counts_as_often_as_it_was_drawn():
    received, trained = models(6)
    rule = AmplitudePhaseAvg(1.0)
    rule.draw = Draw(counts={"a": 2})
    found = averaged(rule, received, trained)
    expected = averaged(AmplitudePhaseAvg(1.0, "samples"), received, trained, {"a": 2})
    np.testing.assert_allclose(found["conv"], expected["conv"], atol=1e-13)


def test_sites_whose_mean_is_negative_keep_its_sign():
    """Rounding must not choose between the angles pi and -pi, whose mean is that of a positive number."""
    draw = np.random.default_rng(7)
    received = {"conv": np.zeros((4, 4, 3, 3, 3), np.float32)}
    trained = {site: {"conv": draw.normal(-1, 0.1, (4, 4, 3, 3, 3)).astype(np.float32)} for site in NAMES}
    found = averaged(AmplitudePhaseAvg(0.01), received, trained)["conv"]
    assert found.mean() == pytest.approx(np.mean([each["conv"].mean() for each in trained.values()]), rel=1e-5)


def test_a_round_gives_it_the_model_that_sites_received():
    """In its second round that is another model than in its first."""
    received, trained = models(8, kind=np.float32)
    model = WeightedModel(AmplitudePhaseAvg(1.0))
    model.weights = received
    for _ in range(2):
        start = dict(model.weights)
        model.begin_round()
        for site, each in trained.items():
            model.accept_update(site, Update(difference(each, start), make_report()))
        model.finish_round()
        for name, value in averaged(AmplitudePhaseAvg(1.0), start, trained).items():
            np.testing.assert_array_equal(model.weights[name], value)
        assert not np.allclose(model.weights["conv"], start["conv"])
        trained = {site: {n: 2 * v for n, v in each.items()} for site, each in trained.items()}


@pytest.mark.parametrize(
    ("part", "what"),
    [
        (EncryptUpdate, "the values of each update"), (EncryptedTraining, "the values of each update"),
        (ShareFraction, "every coordinate of each update"), (SparseVector, "every coordinate of each update"),
        (BufferedTraining, "updates that all start from the model of the round before"),
        (GaussianNoise, "a model of each site that may leave as it is"),
        (LaplaceNoise, "a model of each site that may leave as it is"),
        (DPSGD, "a model of each site that may leave as it is"),
        (SwarmTraining, "a model of each site that may leave as it is"),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)  # fmt: skip
def test_it_is_refused_where_the_models_of_the_sites_are_not_known(part, what):
    with pytest.raises(ConfigurationError, match=f"AmplitudePhaseAvg needs {what}, which {part.__name__} withholds"):
        check_parts([AmplitudePhaseAvg(), part])
    check_parts([FedAvg("uniform"), PRRFL, QuantizeUpdate, NormClip, PrivateLayers, AmplitudePhaseAvg()])


def test_memory_does_not_grow_with_the_sites():
    """Beside what the sum takes: one kernel and its frequencies, of one site at a time."""
    shape = (64, 64, 3, 3, 3)
    received = {"conv": np.zeros(shape, np.float32)}
    most = []
    for count in (2, 12):
        rule, draw = AmplitudePhaseAvg(1.0), np.random.default_rng(9)
        rule.received = received
        rule.reset_stats()
        for number in range(count):
            arrays = {"conv": draw.normal(size=shape).astype(np.float32)}
            rule.accept_model(make_update(f"s{number:02d}", arrays))
        tracemalloc.start()
        rule.aggregate_model()
        most.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    kernel = 8 * math.prod(shape)
    assert most[1] < most[0] + kernel / 2


def test_without_the_global_model_it_says_what_is_missing():
    with pytest.raises(AggregationError, match="needs the global model that sites received"):
        aggregate(AmplitudePhaseAvg(), [make_update("a", {"conv": np.ones(SHAPE)})])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"share": -0.1}, "share"), ({"share": 1.5}, "share"), ({"weight_by": "loss"}, "weight_by")],
)
def test_wrong_arguments_are_refused(arguments, named):
    with pytest.raises(ConfigurationError, match=f"{named} is "):
        AmplitudePhaseAvg(**arguments)

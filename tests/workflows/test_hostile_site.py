"""One site answers nonsense, drawn at random: it ends the run for nobody, and what it says reaches no number."""

import copy
import json
import math

import numpy as np
import pytest
from nvflare.app_common.abstract.fl_model import FLModel

from fedseg.aggregators.fedavg import FedAvg
from fedseg.aggregators.fedcostwavg import FedCostWAvg
from fedseg.aggregators.krum import Krum
from fedseg.aggregators.robust import CoordinateMedian
from fedseg.aggregators.server_optimizers import FedAdam
from fedseg.errors import RefusalError
from fedseg.workflows.buffered_training import BufferedTraining
from fedseg.workflows.federated_training import FederatedTraining
from fedseg.workflows.run.record import RESULTS_FILE
from fedseg.workflows.selection import LargestSites, PoissonBySize
from scripted_sites import accepted, start
from workflows.test_federated_training import update

HOSTILE, ROUNDS, SEEDS = "b", 2, 2
NONSENSE = [
    math.nan, math.inf, -math.inf, 1e308, -1e308, 2**53 + 1, 2**63, -1, 0, True, None, "", "x" * 5000, "\x1b[2J", b"x",
    [], [1, [2]], {}, {"a": {"b": 1}}, 1e-320, np.float32("nan"), np.int64(-5), np.zeros(3), 10**300, ("t",), {1: 2},
]  # fmt: skip
ARRAYS = [
    lambda a: a.astype(object), lambda a: a.astype("U3"), lambda a: a[..., None], lambda a: a.ravel()[:0],
    lambda a: np.full_like(a, np.nan), lambda a: np.full_like(a, np.inf), lambda a: np.full_like(a, 1e9),
    lambda a: a.astype(np.complex64), lambda a: a.astype(np.float16), lambda a: a.astype(np.int64), lambda a: a > 0,
    lambda a: a.tolist(), lambda a: None, lambda a: "x", lambda a: 1.0, lambda a: np.broadcast_to(a, (2, *a.shape)),
]  # fmt: skip


def scores():
    empty = {output: {"both": 0, "reference": 0, "prediction": 0} for output in ("inner", "whole")}
    part = {"split": "validation", "loss": 1.0, "cases": 2, "hd95": {"inner": 1.0, "whole": 2.0}, "empty": empty}
    part |= {"dice": {"inner": 0.4, "whole": 0.6, "mean": 0.5}, "defined": {"inner": 2, "whole": 2}}
    return FLModel(metrics={"final": part, "validation": copy.deepcopy(part)})


def honest(task, model):
    return accepted() if task == "prepare" else scores() if task == "validate" else update(model)


def places(value, path=()):
    """Every place in nested dictionaries and lists, the whole included."""
    yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in pairs:
        yield from places(inner, (*path, name))


def spoil(value, generator):
    """A copy with nonsense at a random place, with a name too many or too few, or all of it nonsense."""
    value = copy.deepcopy(value)
    found = [place for place in places(value) if place]
    nonsense = NONSENSE[generator.integers(len(NONSENSE))]
    if not found or generator.random() < 0.05:
        return nonsense
    *way, last = found[generator.integers(len(found))]
    inner = value
    for name in way:
        inner = inner[name]
    what = generator.integers(6)
    if what == 0 and isinstance(inner, dict):
        del inner[last]
    elif what == 1 and isinstance(inner, dict):
        inner[f"{last}_more" if generator.integers(2) else 7] = nonsense
    else:
        inner[last] = nonsense
    return value


def answer(task, model, generator):
    """What the hostile site answers: an honest answer, spoilt; what FLARE itself could not read arrives as that."""
    given = honest(task, model)
    for attribute in ("metrics", "meta"):
        content = getattr(given, attribute)
        for _ in range(int(generator.integers(3)) if content else 0):
            setattr(given, attribute, spoil(getattr(given, attribute), generator))
    if given.params and generator.random() < 0.5:
        name = sorted(given.params)[generator.integers(len(given.params))]
        given.params[name] = ARRAYS[generator.integers(len(ARRAYS))](given.params[name])
        if generator.random() < 0.2:
            given.params = {**given.params, ("x", 7)[generator.integers(2)]: given.params.pop(name)}
    try:
        return FLModel(given.params_type, given.params, metrics=given.metrics, meta=given.meta)
    except (TypeError, ValueError):
        return RefusalError("failed", "The answer cannot be read.")


KINDS = {
    "FedAvg": lambda: FederatedTraining(ROUNDS, FedAvg(), run_id="run"),
    "costs": lambda: FederatedTraining(ROUNDS, FedCostWAvg(), run_id="run", patience=1),
    "median": lambda: FederatedTraining(ROUNDS, CoordinateMedian(), run_id="run", keep_updates=True),
    "Krum": lambda: FederatedTraining(ROUNDS, Krum(), run_id="run", selection=LargestSites(5)),
    "optimizer": lambda: FederatedTraining(ROUNDS, FedAvg(), run_id="run", server_optimizer=FedAdam()),
    "Poisson": lambda: FederatedTraining(ROUNDS, FedAvg(), run_id="run", selection=PoissonBySize()),
    "buffered": lambda: BufferedTraining(ROUNDS, FedAvg(), run_id="run", buffer=3),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", ["prepare", "train", "validate", "all"])
def test_nonsense_of_one_site_ends_the_run_for_nobody(tmp_path, kind, task):
    for seed in range(SEEDS):
        generator = np.random.default_rng([seed, *kind.encode(), *task.encode()])

        def script(asked, site, model, generator=generator):
            spoilt = site == HOSTILE and task in (asked, "all")
            return answer(asked, model, generator) if spoilt else honest(asked, model)

        folder = tmp_path / str(seed)
        run = start(KINDS[kind](), script, folder)
        run.state.sites.names = "abcde"
        run.train()
        assert len(run.state.rounds) == ROUNDS
        for name, value in run.state.model.weights.items():
            assert np.isfinite(value).all(), name
        # JSON that every reader takes: neither NaN nor Infinity.
        results = json.loads((folder / RESULTS_FILE).read_text("utf-8"), parse_constant=pytest.fail)
        assert set("acde") <= set(results["final"]["sites"])

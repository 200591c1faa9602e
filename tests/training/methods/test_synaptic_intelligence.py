"""The importance by closed forms on quadratics, by a slow loop on the tiny problem, and over hand-overs of a job."""

import copy
import gc
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from torch import nn

from fedseg.aggregators.importance import Importance
from fedseg.contract.report import SiteReport
from fedseg.data.datalist import read_datalist
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.jobs.job import read_job
from fedseg.simulation.in_process import InProcessFederation
from fedseg.training.methods.synaptic_intelligence import SynapticIntelligence
from fedseg.workflows.cyclic_training import CyclicTraining
from hooked import assert_differ, assert_same, make_trainer, start_of
from in_process_runs import tiny_job
from scripted_sites import accepted, start, train
from tiny import make_sites

JOBS = Path(__file__).parents[3] / "jobs"
CURVATURE, OPTIMUM, RATE = 2.0, 3.0, 0.1


class Quadratic(nn.Module):
    """curvature / 2 * (w - optimum)^2 in one parameter."""

    def __init__(self, curvature=CURVATURE, optimum=OPTIMUM):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.curvature, self.optimum = curvature, optimum

    def forward(self):
        return (self.curvature / 2 * (self.w - self.optimum) ** 2).sum()


def visit(network, hook, received=0.0, importance=0.0, steps=5, rate=RATE):
    """Steps of gradient descent on loss and term; the weight at the end and the importance that was added."""
    with torch.no_grad():
        network.w.fill_(received)
    training = SimpleNamespace(network=network, received_shared_arrays={"importance/w": np.array([importance])})
    optimizer = torch.optim.SGD(network.parameters(), lr=rate)
    hook.before_round(training, {"w": np.array([received])}, 0)
    for _ in range(steps):
        optimizer.zero_grad()
        term = hook.loss(training, None, None, None)
        (network() if term is None else network() + term).backward()
        hook.after_backward(training)
        optimizer.step()
        hook.after_step(training)
    hook.after_round(training, {}, 0)
    return network.w.item(), float(hook.shared_arrays(training)["importance/w"][0])


@pytest.mark.parametrize("damping", [1e-3, 0.5])
def test_the_importance_on_a_quadratic_is_the_closed_form(damping):
    """w_k - o = -o r^k with r = 1 - rate * a: omega = sum of rate * g_k^2 = rate (a o)^2 (1 - r^2K) / (1 - r^2)."""
    steps, r = 5, 1 - RATE * CURVATURE
    end, added = visit(Quadratic(), SynapticIntelligence(0.1, damping), steps=steps)
    assert end == pytest.approx(OPTIMUM * (1 - r**steps), rel=1e-12)
    omega = RATE * (CURVATURE * OPTIMUM) ** 2 * (1 - r ** (2 * steps)) / (1 - r**2)
    assert added == pytest.approx(omega / (end**2 + damping), rel=1e-12)


def test_with_small_steps_to_the_optimum_it_is_half_the_curvature():
    """omega is then the whole fall of the loss, a / 2 * o^2, and D^2 = o^2."""
    end, added = visit(Quadratic(), SynapticIntelligence(0.1, 1e-9), steps=40_000, rate=1e-3)
    assert end == pytest.approx(OPTIMUM, rel=1e-9)
    assert added == pytest.approx(CURVATURE / 2, rel=2e-3)


def test_the_next_site_ends_between_its_own_optimum_and_what_was_learned():
    """Of b / 2 (w - p)^2 + c Omega (w - theta*)^2 the minimum is (b p + 2 c Omega theta*) / (b + 2 c Omega)."""
    strength, importance, received, b, p = 0.7, 1.9, 3.0, 4.0, -1.0
    end, _ = visit(Quadratic(b, p), SynapticIntelligence(strength), received, importance, steps=400)
    pull = 2 * strength * importance
    assert end == pytest.approx((b * p + pull * received) / (b + pull), rel=1e-9)


def test_the_gradient_of_the_importance_is_that_of_the_loss_without_the_term():
    """omega = -sum of g * change with g = b (w - p) alone, written out as a loop."""
    strength, importance, received, b, p = 0.7, 1.9, 3.0, 4.0, -1.0
    w, omega = received, 0.0
    for _ in range(5):
        g = b * (w - p)
        after = w - RATE * (g + 2 * strength * importance * (w - received))
        omega -= g * (after - w)
        w = after
    end, added = visit(Quadratic(b, p), SynapticIntelligence(strength, 0.01), received, importance)
    assert end == pytest.approx(w, rel=1e-12)
    assert added == pytest.approx(omega / ((w - received) ** 2 + 0.01), rel=1e-9)


def test_a_way_that_did_harm_has_no_importance():
    """A step against the direction of descent, whose omega is negative."""
    network, hook = Quadratic(), SynapticIntelligence(0.0)
    training = SimpleNamespace(network=network, received_shared_arrays={"importance/w": np.array([0.0])})
    hook.before_round(training, {}, 0)
    network().backward()
    hook.after_backward(training)
    with torch.no_grad():
        network.w += 0.5 * network.w.grad
    hook.after_step(training)
    hook.after_round(training, {}, 0)
    assert float(hook.shared_arrays(training)["importance/w"][0]) == 0.0


def test_the_server_adds_what_visits_bring_and_never_falls_below_zero():
    importance = Importance()
    importance.set_plan(None, {"w": np.zeros(2, np.float32)})
    importance.start(2)
    for site, added in (("a", [1.0, 2.0]), ("b", [0.5, -3.0])):
        importance.accept(site, {"importance/w": np.array(added, np.float32)})
        importance.finish_round({site: 3})
    np.testing.assert_array_equal(importance.outgoing("a")["importance/w"], [1.5, 0.0])


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    data = make_sites(tmp_path_factory.mktemp("data"), {"alpha": (4, 1), "beta": (2, 1)})
    return {site: read_datalist(data / site) for site in ("alpha", "beta")}


def zeros(trainer):
    return {f"importance/{name}": np.zeros_like(value) for name, value in start_of(trainer).items()}


def test_every_weight_that_was_trained_has_an_importance_that_is_not_negative(lists):
    trainer = make_trainer(lists["alpha"], [SynapticIntelligence()], changes={"local_epochs": 3})
    frozen, *rest = dict(trainer.network.named_parameters())
    shared = trainer.train_round(start_of(trainer), 0, 1, zeros(trainer)).shared
    assert set(shared) == set(zeros(trainer))
    assert all((value >= 0).all() and np.isfinite(value).all() for value in shared.values())
    assert all((shared[f"importance/{name}"] > 0).any() for name in (frozen, *rest))


def test_without_the_servers_half_a_site_refuses(lists):
    trainer = make_trainer(lists["alpha"], [SynapticIntelligence()])
    with pytest.raises(RefusalError, match="its job lacks Importance"):
        trainer.train_round(start_of(trainer), 0, 1)


def continual(strength=0.1, rounds=2, kind="continual"):
    job = tiny_job(JOBS / f"hippocampus_{kind}", rounds)
    if kind == "continual":
        (hook,) = (each for each in job.client["components"] if each["path"].endswith("SynapticIntelligence"))
        hook["args"] = {"strength": strength}
    return job


def run(job, lists, **arguments):
    federation = InProcessFederation(job, lists, **arguments)
    federation.run()
    assert federation.events == []
    return federation


def test_strength_zero_is_the_cyclic_job_to_the_last_bit(lists):
    without = run(continual(kind="ciil"), lists)
    other = continual(strength=0.0)
    other.set("training", without.plan.training.to_dict())
    other.set("workflow.order", "largest_first")
    silent, strong = run(other, lists), copy.deepcopy(other)
    assert_same(silent.model.weights, without.model.weights)
    assert any((value > 0).any() for value in silent.model.shared_arrays.outgoing("").values())
    strong.client["components"][0]["args"] = {"strength": 10.0}
    assert_differ(run(strong, lists).model.weights, without.model.weights)


def test_the_importance_goes_from_site_to_site_with_the_model(lists):
    """Sum by hand of what each visit has sent; each site receives what the visits before it have left."""
    visits = []

    def note(site, number, arrays):
        came = {name: value.copy() for name, value in federation.trainers[site].received_shared_arrays.items()}
        left = {n.removeprefix("shared:"): v.copy() for n, v in arrays.items() if n.startswith("shared:")}
        visits.append((came, left))
        return arrays

    federation = InProcessFederation(continual(), lists, tamper=note)
    federation.run()
    assert federation.events == []
    assert len(visits) == 4
    total = {name: np.zeros_like(value) for name, value in visits[0][1].items()}
    for came, left in visits:
        assert sorted(came) == sorted(total)
        for name, value in left.items():
            np.testing.assert_array_equal(came[name], total[name])
            total[name] = (total[name] + value).astype(value.dtype)
        assert any((value > 0).any() for value in left.values())
    held = federation.model.shared_arrays.outgoing("")
    assert sorted(held) == sorted(total)
    for name, value in held.items():
        np.testing.assert_array_equal(value, total[name])


def test_the_importance_survives_a_restart_of_the_server(tmp_path):
    workflow = {"num_rounds": 3, "run_id": "run"}

    def script(task, site, message):
        if task == "prepare":
            return accepted()
        if task == "validate":
            return RefusalError("data", "None.")
        seen.append((message.current_round, site, shared_of(message)))
        return update(message)

    def shared_of(message):
        return {n: v.copy() for n, v in message.params.items() if n.startswith("shared:")}

    def begin(folder, **more):
        return start(CyclicTraining(shared_arrays=Importance(), **workflow, **more), script, folder)

    seen: list = []
    through = train(begin(tmp_path / "through"))
    expected, seen = seen, []
    stopped = begin(tmp_path / "run")
    stopped.prepare()
    stopped.state.record.round = 0
    stopped.run_round()
    stopped.state.save_checkpoint()
    del stopped
    gc.collect()
    again = train(begin(tmp_path / "run", resume=True))
    assert [each[:2] for each in seen] == [each[:2] for each in expected]
    for (_, _, one), (_, _, other) in zip(seen, expected, strict=True):
        assert_same(one, other)
    assert any((value != 0).any() for value in expected[1][2].values())
    assert_same(through.state.model.shared_arrays.outgoing(""), again.state.model.shared_arrays.outgoing(""))


def update(message):
    """Adds 0.1 everywhere, to weights and importance."""
    report = SiteReport(2, 1, 0.9, 0.8, {"mean": 0.5}, 2)
    arrays = {name: np.full_like(value, 0.1) for name, value in message.params.items()}
    return FLModel(params_type=ParamsType.DIFF, params=arrays, meta=report.to_meta())


def test_outside_of_a_job_that_carries_its_model_it_is_refused():
    job = continual()
    averaging = read_job(JOBS / "hippocampus_fedavg").workflow
    job.server["workflows"][0] = {
        "path": "fedseg.workflows.federated_training.FederatedTraining",
        "args": {**averaging, "shared_arrays": job.workflow["shared_arrays"]},
    }
    with pytest.raises(
        ConfigurationError, match="SynapticIntelligence needs a model that is carried from site to site"
    ):
        job.check()


def test_with_local_patience_it_is_refused():
    job = continual()
    arguments = {"num_rounds": 9, "local_patience": 2, "shared_arrays": job.workflow["shared_arrays"]}
    job.server["workflows"][0] = {
        "path": "fedseg.workflows.incremental_training.IncrementalTraining", "args": arguments
    }  # fmt: skip
    with pytest.raises(ConfigurationError, match=r"which workflow\.local_patience withholds"):
        job.check()


@pytest.mark.parametrize("half", ["hook", "server"])
def test_one_half_without_the_other_is_refused(half):
    job = continual()
    if half == "hook":
        job.workflow.pop("shared_arrays")
    else:
        job.client["executors"][0]["executor"].pop("args")
    with pytest.raises(ConfigurationError, match=r"workflow\.shared_arrays|executor\.hooks"):
        job.check()


def test_a_filter_that_is_not_made_for_such_arrays_is_refused():
    job = continual(rounds=1)
    part = {"path": "fedseg.filters.share_fraction.ShareFraction", "args": {"fraction": 0.5}}
    job.client["task_result_filters"] = [{"tasks": ["train"], "filters": [part]}]
    with pytest.raises(ConfigurationError, match="must be a filter that protects shared arrays"):
        job.check()


def test_gaussian_noise_covers_the_importance_too(lists):
    """Both are scaled together to the clipping norm, and the noise on both is of one size."""
    job, clip = continual(rounds=1), 0.5
    noise = {"clip": clip, "noise_multiplier": 8.0}
    job.client["task_result_filters"] = [
        {"tasks": ["train"], "filters": [{"path": "fedseg.filters.noise.GaussianNoise", "args": noise}]}
    ]
    made, left = {}, {}

    def note(site, number, arrays):
        made[site] = {name: value.astype(np.float64) for name, value in arrays.items()}
        return arrays

    federation = InProcessFederation(job, lists, tamper=note)
    federation.model.keep_arrays = lambda name, arrays: left.setdefault(name, arrays)
    federation.run_round()
    assert sorted(made) == ["alpha", "beta"]
    for site, arrays in made.items():
        norm = math.sqrt(sum(float(np.square(value).sum()) for value in arrays.values()))
        added = {name: left[site][name] - min(1.0, clip / norm) * value for name, value in arrays.items()}
        of_both = [
            np.std(np.concatenate([np.ravel(v) for n, v in added.items() if n.startswith("shared:") is shared]))
            for shared in (False, True)
        ]
        assert of_both[0] == pytest.approx(of_both[1], rel=0.1)
        assert of_both[0] > 1

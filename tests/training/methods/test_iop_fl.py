import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.fl_constant import ReturnCode

from executors.test_training import Site
from fedseg.contract.plan import parse_plan
from fedseg.contract.protocol import MODEL_NAME, RUN_ID, SPLITS
from fedseg.contract.scores import FEWEST
from fedseg.data.datalist import read_datalist
from fedseg.errors import ConfigurationError
from fedseg.evaluation.case_intervals import summarise_cases
from fedseg.executors.training import SegmentationExecutor
from fedseg.filters.guard.guard import Guard
from fedseg.jobs.job import read_job
from fedseg.models.model_file import read_model
from fedseg.networks.weights import get_weights
from fedseg.simulation.in_process import InProcessFederation, simulate_in_process
from fedseg.simulation.results import build_summary
from fedseg.simulation.run_folder import prepare_output
from fedseg.site.state import SiteState
from fedseg.training.companions import Companion
from fedseg.training.methods.iop_fl import IOPFL
from fedseg.training.methods.personal_model import PERSONAL_MODEL
from fedseg.workflows.run.scores import readable
from hooked import (
    ROUNDS,
    assert_differ,
    assert_same,
    check_seeded_and_restarted,
    make_trainer,
    plain_rounds,
    run_rounds,
    start_of,
)
from tiny import PLAN, make_sites

JOB = Path(__file__).parents[3] / "jobs" / "hippocampus_iop_fl"
SITES = {"a": (4, 2), "b": (2, 1)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_sites(tmp_path_factory.mktemp("data"), SITES)


@pytest.fixture(scope="module")
def datalist(data):
    return read_datalist(data / "a")


class Network(torch.nn.Module):
    """One weight of two values and a counter."""

    def __init__(self, weight=(0.0, 0.0), count=0):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight, dtype=torch.float32))
        self.register_buffer("count", torch.tensor(count))


class Averaged:
    """As much of a site's training as the method sees, with own models that a test says."""

    folder, plan = None, parse_plan(PLAN)

    def __init__(self, hook):
        self.hook, self.companions = hook, {"personal": Companion(Network())}
        self.network = Network()

    def rounds(self, models):
        """The personal model after each round whose own model has these values."""
        found = []
        for number, values in enumerate(models):
            received = get_weights(Network((100.0, -100.0), 100))
            self.hook.before_round(self, received, number)
            self.network = Network(values, number + 1)
            self.hook.after_round(self, received, number)
            self.companions["personal"].started = True
            found.append(self.companions["personal"].weights())
        return found


VALUE = st.floats(-100, 100, width=32)


@given(st.lists(st.tuples(VALUE, VALUE), min_size=1, max_size=8), st.floats(0, 0.99))
def test_the_personal_model_is_the_exponential_average_of_the_own_models(models, alpha):
    """Against the closed form: the own model of round j counts (1 - alpha) alpha^(k - j), the first one alpha^k."""
    for k, found in enumerate(Averaged(IOPFL(alpha)).rounds(models)):
        for place in range(2):
            expected = alpha**k * models[0][place]
            for j in range(1, k + 1):
                expected += (1 - alpha) * alpha ** (k - j) * models[j][place]
            assert found["weight"][place] == pytest.approx(expected, rel=1e-5, abs=1e-4)


def test_a_model_of_two_rounds_by_hand():
    _, second, third = Averaged(IOPFL()).rounds([(1.0, 2.0), (11.0, 2.0), (0.0, -8.0)])
    np.testing.assert_allclose(second["weight"], [10.0, 2.0], rtol=1e-6)
    np.testing.assert_allclose(third["weight"], [1.0, -7.0], rtol=1e-6)


def test_counters_are_those_of_the_latest_own_model():
    found = Averaged(IOPFL(0.5)).rounds([(1.0, 1.0)] * 3)
    assert [int(weights["count"]) for weights in found] == [1, 2, 3]
    assert found[0]["count"].dtype == np.int64


@given(st.lists(st.tuples(VALUE, VALUE), min_size=2, max_size=5))
def test_with_alpha_near_one_the_first_own_model_stays(models):
    for found in Averaged(IOPFL(1 - 1e-9)).rounds(models):
        np.testing.assert_allclose(found["weight"], np.float32(models[0]), atol=1e-4, rtol=1e-6)


def test_the_first_personal_model_shares_no_tensor_with_the_own_one():
    site = Averaged(IOPFL(0.9))
    (before,) = site.rounds([(1.0, 2.0)])
    with torch.no_grad():
        site.network.weight += 1
        site.network.count += 1
    assert_same(site.companions["personal"].weights(), before)


# ------------------------------------------------------------------- with a trainer


def personal(trainer):
    return trainer.companions["personal"].weights()


def rounds_of(datalist, hook, state=None):
    """Personal model and own model after each round of a federation of one site, and its trainer."""
    trainer, found = make_trainer(datalist, [hook], state), []
    weights = start_of(trainer)
    for number in range(ROUNDS):
        result = trainer.train_round(weights, number, ROUNDS)
        found.append((personal(trainer), result.weights))
        weights = {n: v + 0.9 * result.update[n] if n in result.update else v for n, v in weights.items()}
    return trainer, found


def test_with_alpha_zero_the_personal_model_is_the_latest_own_model(datalist):
    for own_average, own in rounds_of(datalist, IOPFL(0.0))[1]:
        assert_same(own_average, own)


def test_the_trainers_personal_model_is_the_average_of_its_own_models(datalist):
    """A slow loop over single values; the batch norm's counters are integers."""
    found = rounds_of(datalist, IOPFL(0.4))[1]
    expected = {name: value.astype(np.float64) for name, value in found[0][1].items()}
    for own_average, own in found:
        for name, value in own.items():
            flat = expected[name].reshape(-1)
            for place, latest in enumerate(value.reshape(-1)):
                flat[place] = 0.4 * flat[place] + 0.6 * latest if value.dtype.kind == "f" else latest
            expected[name] = flat.reshape(value.shape)
            np.testing.assert_allclose(own_average[name], expected[name], rtol=1e-4, atol=1e-6)
    assert_differ(found[-1][0], found[-1][1])


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.9])
def test_the_federation_is_untouched_to_the_last_bit(datalist, tmp_path, alpha):
    assert_same(check_seeded_and_restarted(datalist, lambda: IOPFL(alpha), tmp_path), plain_rounds(datalist))


def test_the_personal_model_survives_a_restart(datalist, tmp_path):
    living, found = rounds_of(datalist, IOPFL(0.5), SiteState(tmp_path / "living", "run"))
    trainers = []

    def reborn():
        trainers.append(make_trainer(datalist, [IOPFL(0.5)], SiteState(tmp_path / "reborn", "run")))
        return trainers[-1]

    weights = run_rounds(reborn)
    assert_same(weights, run_rounds(lambda: make_trainer(datalist, [], SiteState(tmp_path / "plain", "run"))))
    again = make_trainer(datalist, [IOPFL(0.5)], SiteState(tmp_path / "living", "run"))
    for trainer in (living, again, make_trainer(datalist, [IOPFL(0.5)], SiteState(tmp_path / "reborn", "run"))):
        assert_same(trainer.personal_model(), found[-1][0])


def test_no_optimizer_is_kept_for_what_no_step_trains(datalist, tmp_path):
    state = SiteState(tmp_path, "run")
    trainer, _ = rounds_of(datalist, IOPFL(), state)
    assert trainer.companions["personal"].optimizer is None
    assert state.load(ROUNDS)["companions"]["personal"]["optimizer"] is None


def test_the_personal_model_is_a_file_that_explains_itself(datalist, tmp_path):
    state = SiteState(tmp_path, "run")
    trainer, _ = rounds_of(datalist, IOPFL(), state)
    model = read_model(state.folder / PERSONAL_MODEL)
    assert_same(model.weights, personal(trainer))
    assert (model.task.name, model.notes["round"]) == ("tiny", ROUNDS - 1)


def test_before_the_first_round_there_is_no_personal_model(datalist, tmp_path):
    for state in (None, SiteState(tmp_path, "run")):
        assert make_trainer(datalist, [IOPFL()], state).personal_model() is None
    assert make_trainer(datalist).personal_model() is None


@pytest.mark.parametrize("alpha", [1, 1.0, -0.1, 2, float("nan"), "0.1", None, True])
def test_an_alpha_outside_the_range_is_refused_by_name(alpha):
    with pytest.raises(ConfigurationError, match=r"alpha is .*, but must be a number from 0 to below 1"):
        IOPFL(alpha)


# ------------------------------------------------------------------------ whole runs


def tiny_job(**arguments):
    job = read_job(JOB)
    for key in ("task", "network", "training"):
        job.set(key, PLAN[key])
    job.set("workflow.num_rounds", 2)
    job.client["components"][0]["args"] = arguments
    return job


def test_the_last_evaluation_scores_the_personal_model_beside_the_global_one(data, tmp_path):
    datalists = {site: read_datalist(data / site) for site in SITES}
    federation = InProcessFederation(tiny_job(alpha=0.3), datalists, state=tmp_path)
    federation.run()
    for entry in federation.rounds:
        assert all(0 <= values["personal_dice"] <= 1 for values in entry["sites"].values())
    final = federation.evaluate()
    for site, trainer in federation.trainers.items():
        folder = tmp_path / site / federation.run_id
        weights = read_model(folder / PERSONAL_MODEL).weights
        kind, split = trainer.objective, datalists[site].final_split
        alone = make_trainer(datalists[site])
        scored = alone.validate(weights, split, distances=True)
        assert json.dumps(final["sites"][site]["personal"]) == json.dumps(summarise_cases(kind, scored, FEWEST))
    means = [values["personal"]["dice"]["mean"] for values in final["sites"].values()]
    assert final["mean_personal_dice"] == pytest.approx(sum(means) / len(means))


@pytest.fixture
def site(tmp_path, monkeypatch):
    """The executor of a site that has trained a round of the method."""
    monkeypatch.setenv("FEDSEG_DATA", str(make_sites(tmp_path / "data", {"a": (3, 2)}, with_test=True)))
    monkeypatch.setenv("FEDSEG_STATE", str(tmp_path / "state"))
    site = Site(tmp_path / "site", monkeypatch)
    restart(site)
    assert site.train().get_return_code() == ReturnCode.OK
    return site


def restart(site):
    site.executor = SegmentationExecutor(hooks=["iop_fl"])
    site.context.get_engine().get_component = {"iop_fl": IOPFL()}.get


def scored(site, name="last"):
    meta = {RUN_ID: "run", SPLITS: ["final", "validation"], MODEL_NAME: name}
    return from_shareable(site.ask("validate", DXO(DataKind.WEIGHTS, data=site.weights(), meta=meta))).data


def test_a_restarted_site_scores_its_personal_model_on_the_same_cases(site, tmp_path):
    """The test cases here, and only beside the last model; the scores of single cases stay."""
    folder = tmp_path / "state" / "a" / "run"
    before = scored(site)
    restart(site)
    assert scored(site, "best")["final"].keys() == before["final"].keys() - {"personal"}
    restart(site)
    answer = scored(site)
    assert answer == before
    assert answer["final"]["personal"].keys() == answer["validation"].keys() - {"split"}
    trainer = make_trainer(read_datalist(tmp_path / "data" / "a"))
    alone = trainer.validate(read_model(folder / PERSONAL_MODEL).weights, "test", distances=True)
    assert answer["final"]["personal"]["dice"] == trainer.objective.summarise([c.score for c in alone])["dice"]
    kept = json.loads((folder / "evaluation-personal.json").read_text("utf-8"))
    assert {split: [case["id"] for case in cases] for split, cases in kept.items()} == {"test": ["a-5"]}
    assert "a-5" not in json.dumps(answer)
    assert readable(answer, trainer.objective)


def test_a_policy_that_withholds_scores_withholds_those_of_the_personal_model(site, tmp_path):
    site.context.get_engine().get_all_components = lambda: {"guard": Guard(), "iop_fl": IOPFL()}
    policy = tmp_path / "data" / "a" / "policy.json"
    policy.write_text(json.dumps({"scores": True}))
    assert 0 <= scored(site)["final"]["personal"]["dice"]["mean"] <= 1
    policy.write_text(json.dumps({"scores": False}))
    assert scored(site) == {"final": {"split": "test", "cases": 1, "withheld": True}}
    assert (tmp_path / "state" / "a" / "run" / "evaluation-personal.json").is_file()


def test_a_simulation_reads_personal_scores_that_sites_keep_from_their_disks(data, tmp_path):
    """A job with a guarantee: the server gets no score at all; figures and page have those of the simulated disks."""
    job = tiny_job(alpha=0.3)
    noise = {"path": "fedseg.filters.noise.GaussianNoise", "args": {"clip": 0.5, "noise_multiplier": 10.0}}
    job.client["task_result_filters"] = [{"tasks": ["train"], "filters": [noise]}]
    prepare_output(tmp_path, False)
    run = simulate_in_process(job, data, tmp_path, sorted(SITES), lambda event: None)
    assert run.results["final"]["sites"] == {}
    assert "mean_personal_dice" not in run.results["final"]
    summary = build_summary(job, run, tmp_path / "state")
    final = summary["final"]
    assert final["withheld"] == sorted(SITES)
    for entry in summary["rounds"]:
        assert [values["personal_dice"] for values in entry["sites"].values()] == [None, None]
    for site, values in final["sites"].items():
        path = tmp_path / "state" / site / summary["run_id"] / "evaluation-personal.json"
        cases = json.loads(path.read_text("utf-8"))["validation"]
        for region in ("inner", "whole"):
            known = [case["dice"][region] for case in cases if case["dice"][region] is not None]
            assert values["personal"]["dice"][region] == pytest.approx(sum(known) / len(known))

"""The average of the global models over the rounds, which the server keeps beside them: ``workflow.model_average``."""

import json
from pathlib import Path

import numpy as np
import pytest
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from safetensors.numpy import load_file

from fedseg.aggregators.fedavg import FedAvg
from fedseg.cli import main
from fedseg.contract.protocol import MODEL_NAME
from fedseg.contract.report import SiteReport
from fedseg.errors import AbortedError, ConfigurationError
from fedseg.files.digest import model_digest
from fedseg.jobs.job import read_job
from fedseg.models.model_file import read_model
from fedseg.provenance.reading import named_models, read_record, server_starts
from fedseg.workflows.cyclic_training import CyclicTraining
from fedseg.workflows.encrypted_training import EncryptedTraining
from fedseg.workflows.federated_training import FederatedTraining
from fedseg.workflows.run.checkpoint import CheckpointError
from fedseg.workflows.run.model_average import ModelAverage
from fedseg.workflows.run.record import RESULTS_FILE
from fedseg.workflows.split_training import SplitTraining
from fedseg.workflows.swarm_training import SwarmTraining
from scripted_sites import accepted, start, train
from tiny import PLAN, make_sites
from workflows.run.test_cross_site import told

JOBS = Path(__file__).parents[3] / "jobs"


def site_answer(task, site, message):
    """An update of the round's number plus one, and scores that tell models apart."""
    if task == "prepare":
        return accepted()
    if task == "train":
        report = SiteReport(2, 1, 0.9, 0.8, {"inner": 0.6, "whole": 0.6, "mean": 0.6}, 2)
        step = message.current_round + 1
        arrays = {name: np.full_like(value, step) for name, value in message.params.items()}
        return FLModel(params_type=ParamsType.DIFF, params=arrays, meta=report.to_meta())
    level = {"average": 0.7, "best": 0.6}.get(message.meta[MODEL_NAME], 0.5)
    return FLModel(metrics={"final": told(level), "validation": told(level)})


def federated(folder, script=site_answer, **arguments):
    settings = {"num_rounds": 3, "aggregator": FedAvg(), "run_id": "run", "model_average": 0.5, **arguments}
    return start(FederatedTraining(**settings), script, folder)


def same(one, other):
    assert sorted(one) == sorted(other)
    for name, value in one.items():
        assert value.dtype == other[name].dtype
        np.testing.assert_array_equal(value, other[name])


# ---------------------------------------------------------------- the numbers


def test_three_rounds_by_hand():
    """From 0 through 11, 22 and 33 with decays 2/11, 3/12 and .3 (not 4/13): 9, then 18.75, then 28.725."""
    average = ModelAverage(0.3)
    average.begin({"w": np.zeros(2, np.float32), "count": np.array(4)})
    seen = []
    for number in (1, 2, 3):
        average.take({"w": np.full(2, 11.0 * number, np.float32), "count": np.array(4 + number)}, number)
        seen.append(average.weights["w"][0])
    assert seen == pytest.approx([9, 18.75, 28.725])
    assert average.weights["w"].dtype == np.float32
    assert int(average.weights["count"]) == 7


@pytest.mark.parametrize("kind", [FederatedTraining, CyclicTraining])
def test_a_run_keeps_it_beside_the_model_and_trains_as_without(tmp_path, kind):
    rule = {"aggregator": FedAvg()} if kind is FederatedTraining else {}
    models = []
    for decay in (None, 0.0, 0.999):
        workflow = kind(num_rounds=3, run_id="run", model_average=decay, **rule)
        models.append(train(start(workflow, site_answer, tmp_path / str(decay))).state.model)
    plain, last, slow = models
    assert plain.average is None
    for model in (last, slow):
        same(model.weights, plain.weights)
    same(last.average.weights, plain.weights)
    # From w0 through steps of 1, 2 and 3 (thrice in turn at three sites), with decays 2/11, 3/12 and 4/13.
    moved, expected = 0.0, 0.0
    for decay, step in zip((2 / 11, 3 / 12, 4 / 13), (1, 2, 3), strict=True):
        moved += step * (1 if rule else 3)
        expected = decay * expected + (1 - decay) * moved
    for name, value in slow.average.weights.items():
        np.testing.assert_allclose(slow.weights[name] - value, moved - expected, rtol=1e-4)


@pytest.mark.parametrize("decay", [0.0, 0.1, 0.9])
def test_after_one_round_the_start_has_the_decay_as_its_share(tmp_path, decay):
    run = federated(tmp_path, num_rounds=1, model_average=decay)
    before = {name: np.array(value) for name, value in run.state.model.weights.items()}
    train(run)
    share = min(decay, 2 / 11)
    for name, value in run.state.model.average.weights.items():
        expected = share * before[name].astype(float) + (1 - share) * run.state.model.weights[name].astype(float)
        np.testing.assert_array_equal(value, expected.astype(value.dtype))


# ---------------------------------------------------------------- stored, resumed, scored


@pytest.mark.parametrize("stopped_after", [0, 1])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, stopped_after):
    whole = train(federated(tmp_path / "whole"))

    def dies(task, site, message):
        if task == "train" and message.current_round > stopped_after:
            raise AbortedError("stopped")
        return site_answer(task, site, message)

    with pytest.raises(AbortedError):
        train(federated(tmp_path / "stopped", dies))
    again = train(federated(tmp_path / "stopped", resume=True))
    same(again.state.model.average.weights, whole.state.model.average.weights)
    same(again.state.model.weights, whole.state.model.weights)
    files = [load_file(tmp_path / place / "average.safetensors") for place in ("stopped", "whole")]
    assert all(np.array_equal(files[0][name], files[1][name]) for name in files[1])
    del again  # it holds the lock of the run
    for other in (None, 0.25):
        with pytest.raises(CheckpointError, match="another model_average"):
            federated(tmp_path / "stopped", resume=True, model_average=other)


def test_an_average_that_the_record_does_not_name_is_not_gone_on_with(tmp_path):
    run = train(federated(tmp_path))
    arrays, values = run.state.checkpoints.load(2)
    changed = {name: value + 1 if name.startswith("average/") else value for name, value in arrays.items()}
    run.state.checkpoints.save(2, changed, values)
    del run
    with pytest.raises(CheckpointError, match="another model than the run's record names"):
        federated(tmp_path, resume=True)


def results(folder, **arguments):
    run = federated(folder, **arguments)
    run.train()
    return run, json.loads((folder / RESULTS_FILE).read_text("utf-8"))


def test_it_is_scored_on_held_out_and_on_validation_cases_and_named_in_the_record(tmp_path):
    run, found = results(tmp_path)
    assert (found["average"]["model"], found["average"]["after_round"]) == ("average.safetensors", 2)
    assert [found[which]["mean_dice"] for which in ("average", "final")] == pytest.approx([0.7, 0.5])
    assert set(found["average"]["validation"]) == set("abc")
    average = run.state.model.average.weights
    same(read_model(tmp_path / "average.safetensors").weights, average)
    record = read_record(run.state.checkpoints.folder / "record.jsonl")
    assert model_digest(average) in named_models(record)
    assert [entry["round"] for entry in record.of_kind("average")] == [0, 1, 2]
    assert len(server_starts(record)) == 1


def test_where_it_is_the_last_model_nobody_scores_it_again(tmp_path):
    run, found = results(tmp_path, model_average=0.0)
    assert [task for task, _ in run.state.sites.tasks].count("validate") == 2  # the last and the best model
    assert found["average"]["mean_dice"] == found["final"]["mean_dice"] == pytest.approx(0.5)
    same(load_file(tmp_path / "average.safetensors"), load_file(tmp_path / "last.safetensors"))


def test_without_it_nothing_is_left_or_said_of_one(tmp_path):
    _, found = results(tmp_path, model_average=None)
    assert "average" not in found
    assert not (tmp_path / "average.safetensors").exists()


# ---------------------------------------------------------------- what goes together


@pytest.mark.parametrize(
    ("build", "value"),
    [
        (lambda value: EncryptedTraining(3, FedAvg(), model_average=value), 0.5),
        (lambda value: EncryptedTraining(3, FedAvg(), model_average=value), 0.0),
        (lambda value: SplitTraining(3, model_average=value), 0.5),
        (lambda value: SplitTraining(3, model_average=value), 0.0),
        (lambda value: SwarmTraining(3, FedAvg(), model_average=value), 0.5),
    ],
)
def test_a_server_without_a_whole_model_refuses_it(build, value):
    said = rf"model_average is {value}, but must be null in encrypted and in split training and where sites merge"
    with pytest.raises(ConfigurationError, match=said):
        build(value)
    assert build(None).model.average is None


@pytest.mark.parametrize("value", [1, 1.5, -0.1, True, "0.9"])
def test_other_values_are_refused(value):
    with pytest.raises(ConfigurationError, match=r"workflow\.model_average is .*, but must be a number from 0 to"):
        FederatedTraining(3, FedAvg(), model_average=value)


def simulated(name, data, out, *settings):
    job = read_job(JOBS / name)
    for key in ("task", "network"):
        job.set(key, PLAN[key])
    folder = job.write(out.parent / f"job-{out.name}")
    options = ["--data", str(data), "--out", str(out), "--in-process", "--no-probe", "--rounds", "2"]
    assert main(["simulate", str(folder), *options, *(part for s in settings for part in ("--set", s))]) == 0
    return json.loads((out / "report" / "summary.json").read_text("utf-8"))


@pytest.mark.parametrize(
    "name", [pytest.param("hippocampus_fedavg", marks=pytest.mark.full), "brats_fedbn", "hippocampus_ditto"]
)
def test_a_run_leaves_it_as_a_model_that_is_evaluated_like_any(name, tmp_path, capsys):
    """FedBN: the layers that stay at the sites are in it as the run began, and each site scores it with its own."""
    data = make_sites(tmp_path / "data", {"alpha": (3, 1), "beta": (2, 1)})
    asked = ["workflow.model_average=0.9", "workflow.cross_site=true"]
    summary = simulated(name, data, tmp_path / "run", *asked)
    average, last = (load_file(tmp_path / "run" / "models" / f"{which}.safetensors") for which in ("average", "last"))
    plain = simulated(name, data, tmp_path / "plain", "workflow.cross_site=true")
    same(last, load_file(tmp_path / "plain" / "models" / "last.safetensors"))
    assert {k: v for k, v in summary["final"].items() if k != "after_round"} == {
        k: v for k, v in plain["final"].items() if k != "after_round"
    }
    assert summary["average"]["model"] == "models/average.safetensors"
    assert set(summary["average"]["sites"]) == {"alpha", "beta"}
    own = read_model(tmp_path / "run" / "models" / "last.safetensors").notes.get("own_arrays") or []
    moved = {name for name, value in average.items() if not np.array_equal(value, last[name])}
    assert moved == set(average) - set(own)
    assert any("average" in model["name"] for model in summary["cross_site_evaluation"]["models"])
    assert "Average of the global models of all rounds" in (tmp_path / "run/report/report.html").read_text("utf-8")
    # The copies of the sites' own models have no provenance in any run.
    assert own or main(["audit-log", "verify", str(tmp_path / "run")]) == 0
    assert main(["audit-log", "verify", str(tmp_path / "run" / "models" / "average.safetensors")]) == 0
    if name == "hippocampus_fedavg":
        task = tmp_path / "task.json"
        task.write_text(json.dumps(PLAN["task"]))
        file, options = tmp_path / "run" / "models" / "average.safetensors", ["--task", str(task), "--data"]
        assert main(["evaluate", str(file), *options, str(data / "alpha"), "--out", str(tmp_path / "scored")]) == 0
        scored = json.loads((tmp_path / "scored" / "evaluation.json").read_text())["mean"]["dice"]
        assert scored == pytest.approx(summary["average"]["sites"]["alpha"]["dice"])
        assert main(["predict", str(file), *options, str(data / "alpha"), "--out", str(tmp_path / "masks")]) == 0
        assert list((tmp_path / "masks").rglob("*.nii.gz"))
    capsys.readouterr()

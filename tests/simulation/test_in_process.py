"""A whole federation in one process: its models, what may leave a site, where it starts, and the command."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

from fedseg.cli import main
from fedseg.data.datalist import read_datalist
from fedseg.errors import DataError, FedsegError
from fedseg.jobs.job import read_job
from fedseg.models.model_file import write_model
from fedseg.privacy.accounting.epsilon import Release
from fedseg.privacy.accounting.ledger import Ledger
from fedseg.simulation.in_process import InProcessFederation
from fedseg.site.profile import DATA_VARIABLE
from fedseg.workflows.encrypted.model import EncryptedRunModel
from fedseg.workflows.run.training_run import TrainingRun
from in_process_runs import SITES, last_models, simulated, tiny_job
from tiny import PLAN, make_sites

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_sites(tmp_path_factory.mktemp("data"), SITES)


@pytest.fixture(scope="module")
def datalists(data):
    return {site: read_datalist(data / site) for site in SITES}


@pytest.mark.parametrize(("job", "kind"), [("brats_fedbn", "own"), ("hippocampus_ditto", "personal")])
def test_each_sites_own_model_is_a_file_that_scores_as_the_site_scored_it(job, kind, data, tmp_path, capsys):
    task = tmp_path / "task.json"
    task.write_text(json.dumps(PLAN["task"]))
    summary, _ = simulated(tiny_job(ROOT / "jobs" / job), data, tmp_path / "run")
    final, models = summary["final"]["sites"], tmp_path / "run" / "models"
    assert summary["final"]["site_models"] == {site: {kind: f"models/{site}-{kind}.safetensors"} for site in SITES}
    for site in ("alpha", "gamma"):
        out = tmp_path / site
        options = ["--task", str(task), "--data", str(data / site), "--out", str(out)]
        assert main(["evaluate", str(models / f"{site}-{kind}.safetensors"), *options]) == 0
        assert "as the run began" not in " ".join(capsys.readouterr().err.split())
        scored = final[site] if kind == "own" else final[site]["personal"]
        assert json.loads((out / "evaluation.json").read_text())["mean"]["dice"] == pytest.approx(scored["dice"])
    others = [load_file(models / f"{site}-{kind}.safetensors") for site in ("alpha", "gamma")]
    assert any(not np.array_equal(value, others[1][name]) for name, value in others[0].items())
    assert main(["evaluate", str(models / "last.safetensors"), *options]) == 0
    warned = "is the global model of a job in which each site keeps" in " ".join(capsys.readouterr().err.split())
    assert warned is (kind == "own")


def test_a_bad_update_is_left_out_and_named(datalists):
    def tamper(site, number, update):
        return {name: value * np.nan for name, value in update.items()} if (site, number) == ("beta", 1) else update

    federation = InProcessFederation(tiny_job(ROOT / "jobs" / "hippocampus_fedavg"), datalists, tamper=tamper)
    federation.run()
    assert [(e["round"], e["site"]) for e in federation.events] == [(1, "beta")]
    assert sorted(federation.rounds[1]["weights"]) == ["alpha", "gamma"]


def test_a_round_without_any_update_is_an_error(datalists):
    federation = InProcessFederation(
        tiny_job(ROOT / "jobs" / "hippocampus_fedavg"), datalists, tamper=lambda site, number, update: {}
    )
    with pytest.raises(FedsegError, match=r"0 site\(s\) answered in round 1, but 1 must"):
        federation.run_round()
    assert {event["site"] for event in federation.events} == set(SITES)


def test_one_attacker_ruins_the_mean_and_not_the_median(datalists):
    """The same bad update, ten thousand times too long, under both rules."""

    def tamper(site, number, update):
        return {n: v * np.float32(-1e4) for n, v in update.items()} if site == "gamma" else update

    moved = {}
    for name, path in (("mean", "fedavg.FedAvg"), ("median", "robust.CoordinateMedian")):
        job = tiny_job(ROOT / "jobs" / "hippocampus_fedavg", rounds=1)
        job.set("workflow.aggregator", {"path": f"fedseg.aggregators.{path}", "args": {}})
        federation = InProcessFederation(job, datalists, tamper=tamper)
        start = federation.model.weights
        federation.run()
        moved[name] = max(float(np.abs(federation.model.weights[n] - start[n]).max()) for n in start)
    assert moved["median"] < 1
    assert moved["mean"] > 100 * moved["median"]


# ----------------------------------------------------------------- what may leave

NOISE = {"path": "fedseg.filters.noise.GaussianNoise", "args": {"clip": 0.5, "noise_multiplier": 10.0}}


def private_job(*filters, rounds=2):
    job = tiny_job(ROOT / "jobs" / "hippocampus_fedavg", rounds)
    job.set("training", PLAN["training"])
    job.client["task_result_filters"] = [{"tasks": ["train"], "filters": list(filters)}]
    return job


def ledger_of(state, site):
    return Ledger(state / site / "ledger", simulated=True)


def test_a_private_job_tells_its_epsilon_and_no_scores(datalists, tmp_path):
    """Each site has a ledger of its own, with all rounds."""
    federation = InProcessFederation(private_job(NOISE), datalists, state=tmp_path)
    federation.run()
    assert federation.events == []
    for number, entry in enumerate(federation.rounds):
        assert set(entry["sites"]) == set(SITES)
        for site, values in entry["sites"].items():
            withheld = ("train_loss", "val_loss", "val_loss_after", "val_dice_after", "personal_dice")
            assert [values[name] for name in withheld] == [None] * len(withheld)
            assert (values["val_dice"], entry["val_dice"], values["num_samples"]) == ({}, None, SITES[site][0])
            (step,) = values["privacy"]
            assert (step["filter"], step["releases"]) == ("GaussianNoise", number + 1)
            assert values["epsilon"] == step["epsilon"] > 0
    for site in SITES:
        history = ledger_of(tmp_path, site).history()
        assert [entry["round"] for entry in history] == [0, 1]
        assert {entry["run_id"] for entry in history} == {federation.run_id}
        spent = ledger_of(tmp_path, site).spent(1e-5)
        assert spent.epsilon == federation.rounds[-1]["sites"][site]["epsilon"]


def test_a_second_federation_on_the_same_ledgers_goes_on_where_the_first_ended(datalists, tmp_path):
    """And one with ledgers of its own starts anew."""
    for releases in (1, 2):
        federation = InProcessFederation(private_job(NOISE, rounds=1), datalists, state=tmp_path)
        federation.run()
        assert federation.rounds[0]["sites"]["beta"]["privacy"][0]["releases"] == releases
    federation = InProcessFederation(private_job(NOISE, rounds=1), datalists)
    federation.run()
    assert federation.rounds[0]["sites"]["beta"]["privacy"][0]["releases"] == 1


def test_a_site_that_has_spent_its_privacy_is_left_out_and_named(datalists, tmp_path):
    """The limit is 50, of which an earlier job on one of beta's patients has spent 49.5."""
    place = {"job": "earlier", "run_id": "earlier", "round_number": 0, "delta": 1e-5, "budget": None}
    ledger_of(tmp_path, "beta").charge("tiny", ["beta-0"], Release("pure", epsilon=49.5), **place)
    federation = InProcessFederation(private_job(NOISE), datalists, state=tmp_path)
    federation.run()
    assert [(e["round"], e["site"]) for e in federation.events] == [(0, "beta"), (1, "beta")]
    assert all("the site allows 50" in event["what"] for event in federation.events)
    assert all(set(entry["sites"]) == set(entry["weights"]) == {"alpha", "gamma"} for entry in federation.rounds)
    assert len(ledger_of(tmp_path, "beta").history()) == 1


# ------------------------------------------------------------------ where it starts


def test_a_federation_starts_from_the_jobs_model(datalists, tmp_path):
    """Else from the plan's seeded network."""
    job = tiny_job(ROOT / "jobs" / "hippocampus_fedavg", rounds=1)
    seeded = InProcessFederation(job, datalists).model.weights
    moved = {name: value + 1 if value.dtype.kind == "f" else value for name, value in seeded.items()}
    job.initial = write_model(tmp_path / "model.safetensors", job.plan, moved, 5)
    federation = InProcessFederation(job, datalists)
    for name, value in moved.items():
        np.testing.assert_array_equal(federation.model.weights[name], value)
        assert np.array_equal(value, seeded[name]) == (value.dtype.kind != "f")
    federation.run()
    assert federation.events == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"network": {**PLAN["network"], "channels": [4, 8, 12]}}, "is of another network than the job's"),
        ({"task": {**PLAN["task"], "regions": {"inner": ["inner"]}}}, r"was made for a to inner \(inner\); the job"),
        ({"task": {**PLAN["task"], "channels": ["b"]}}, "was made for b to .* the job needs one for a to"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_before_the_start(datalists, tmp_path, changes, said):
    job = tiny_job(ROOT / "jobs" / "hippocampus_fedavg", rounds=1)
    for key, value in changes.items():
        job.set(key, value)
    other = InProcessFederation(job, datalists).model.weights
    model = write_model(tmp_path / "model.safetensors", job.plan, other, 0)
    job = tiny_job(ROOT / "jobs" / "hippocampus_fedavg", rounds=1)
    job.initial = model
    with pytest.raises(DataError, match=said):
        InProcessFederation(job, datalists)


# ------------------------------------------------------------------ the command


def simulate(data, out, *more):
    arguments = [f"--set={key}={json.dumps(PLAN[key])}" for key in ("task", "network", "training")]
    job = ROOT / "jobs" / "hippocampus_fedavg"
    return main(["simulate", str(job), "--data", str(data), "--out", str(out), "--in-process", *arguments, *more])


def test_the_command_leaves_the_folder_of_every_run(data, tmp_path, capsys):
    assert simulate(data, tmp_path / "run", "--rounds", "1", "--keep-updates") == 0
    assert "report.html" in capsys.readouterr().out
    for path in (
        "job/app/config/fedseg.json", "report/report.html", "report/summary.json", "report/record.jsonl",
        "report/gallery.json", "models/last.safetensors", "models/last.safetensors.provenance.json", "simulator.log",
        "updates/round-000/alpha.safetensors", "updates/round-000/global.safetensors",
        "workspace/server/simulate_job/tb_events/beta",
    ):  # fmt: skip
        assert (tmp_path / "run" / path).exists(), path
    assert DATA_VARIABLE not in os.environ
    # What `tensorboard --logdir` with the run's folder reads.
    found = EventMultiplexer().AddRunsFromDirectory(str(tmp_path / "run"))
    found.Reload()
    assert {Path(name).name for name in found.Runs()} == {path.name for path in data.iterdir()}
    regions = [region.name for region in read_job(tmp_path / "run" / "job").plan.task.regions]
    for content in found.Runs().values():
        expected = {"train_loss", "val_loss", "val_dice/mean", *(f"val_dice/{region}" for region in regions)}
        assert set(content["tensors"]) == expected


def test_a_stopped_run_goes_on_to_the_same_model(data, tmp_path):
    assert simulate(data, tmp_path / "whole", "--rounds", "3") == 0
    assert simulate(data, tmp_path / "stopped", "--rounds", "3", "--set=workflow.target_dice=1e-6") == 0
    stopped = json.loads((tmp_path / "stopped" / "report" / "summary.json").read_text())
    assert len(stopped["rounds"]) == 1
    job = ROOT / "jobs" / "hippocampus_fedavg"
    arguments = ["simulate", str(job), "--data", str(data), "--out", str(tmp_path / "stopped"), "--in-process"]
    assert main([*arguments, "--resume", "--set=workflow.target_dice=null"]) == 0
    for name, models in last_models(tmp_path / "whole").items():
        for array, value in models.items():
            np.testing.assert_array_equal(last_models(tmp_path / "stopped")[name][array], value)


def test_a_run_that_fails_says_why_and_where_its_log_is(data, tmp_path, capsys):
    data = Path(shutil.copytree(data, tmp_path / "data"))
    site = sorted(path.parent.name for path in data.glob("*/datalist.json"))[0]
    (data / site / "policy.json").write_text(json.dumps({"min_cases": 99}))
    assert simulate(data, tmp_path / "run", "--rounds", "1", "--set=workflow.min_sites=3") == 1
    said = " ".join(capsys.readouterr().err.split())
    assert f"2 site(s) accepted the job, but 3 must. {site}: policy" in said
    assert "simulator.log" in said


def test_too_few_sites_are_told_before_anything_starts(data, tmp_path, capsys):
    assert simulate(data, tmp_path / "run", "--set=workflow.min_sites=4") == 2
    assert "the job needs 4 sites (workflow.min_sites), but there are 3." in " ".join(capsys.readouterr().err.split())
    data = Path(shutil.copytree(data, tmp_path / "data"))
    first = sorted(data.glob("*/datalist.json"))[0]
    first.write_text(json.dumps({**json.loads(first.read_text()), "validation": []}))
    assert simulate(data, tmp_path / "run", "--set=workflow.min_sites=3") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"there are 2, and {first.parent.name} without training or validation cases." in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("accepted", "said"), [((), "No site answered."), (("b", "a"), "No site but a, b answered.")])
def test_a_server_without_enough_sites_says_who_answered(accepted, said):
    state = SimpleNamespace(
        settings=SimpleNamespace(prepare_seconds=1, min_sites=3, num_rounds=1, evaluate_only=None),
        participants=SimpleNamespace(evaluators=(), prepare=lambda *arguments: dict.fromkeys(accepted)),
        plan=SimpleNamespace(digest=""),
        events=[],
    )
    run = object.__new__(TrainingRun)
    run.state = state
    with pytest.raises(FedsegError, match=f"but 3 must. {said}"):
        run.prepare()


def test_a_gpu_for_each_site_is_refused(data, tmp_path, capsys):
    assert simulate(data, tmp_path / "run", "--gpu", "0") == 2
    assert "--in-process" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("mechanism", ["dp_sgd.DPSGD", "noise.GaussianNoise"])
def test_noise_and_encryption_give_the_model_of_noise_alone_and_tell_no_largest_value(
    mechanism, data, tmp_path, monkeypatch
):
    """With a scale that the job fixes. The noise of a simulation follows from the seed, so both runs draw the same."""
    told, accept = [], EncryptedRunModel.accept_update
    monkeypatch.setattr(EncryptedRunModel, "accept_update", lambda *a: (told.append(a[2].report.told()), accept(*a))[1])
    private = {"path": f"fedseg.filters.{mechanism}", "args": {"clip": 0.5, "noise_multiplier": 4.0}}
    encrypted, plain = (tiny_job(ROOT / "jobs" / name, 1) for name in ("hippocampus_he", "hippocampus_fedavg"))
    encrypted.client["task_result_filters"][0]["filters"].insert(0, private)
    with pytest.raises(FedsegError, match=r"without a fixed workflow\.scale"):
        encrypted.check()
    encrypted.set("workflow.scale", 20.0)
    encrypted.set("workflow.mode", "exact")
    plain.client["task_result_filters"] = [{"tasks": ["train"], "filters": [private]}]
    plain.declaration = encrypted.declaration
    summary, _ = simulated(encrypted, data, tmp_path / "encrypted")
    expected, models = simulated(plain, data, tmp_path / "plain")
    assert [event for event in summary["events"] if event["site"] != "server"] == []
    assert told == [{"num_samples", "num_steps", "val_cases"}] * len(SITES)
    assert summary["rounds"][0]["notes"]["scale"] == 20.0
    assert summary["privacy"]["total"] | {"mechanism": "gaussian"} == expected["privacy"]["total"]
    model = tmp_path / "encrypted" / "models" / "last.encrypted"
    key = next((tmp_path / "encrypted" / "state").rglob("client_context.tenseal"))
    out = tmp_path / "decrypted.safetensors"
    assert main(["decrypt-model", str(model), "--context", str(key), "--out", str(out)]) == 0
    found = load_file(out)
    for name, value in models["last.safetensors"].items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-6 * 20 + 1e-6, err_msg=name)


def test_an_outlier_trains_on_a_part_of_its_cases_in_each_round(tmp_path):
    sizes = {"large": (9, 1), "small": (2, 1), "tiny": (1, 1)}
    data = make_sites(tmp_path / "data", sizes)
    lists = {site: read_datalist(data / site) for site in sizes}
    chosen = {"path": "fedseg.workflows.selection.PoissonBySize"}
    job = tiny_job(ROOT / "jobs" / "hippocampus_fedavg")
    job.set("training.local_epochs", 1)
    job.set("workflow.selection", {**chosen, "args": {"outlier_probability": 0.3, "fewer": "iterations"}})
    federation = InProcessFederation(job, lists)
    federation.run()
    assert federation.events == []
    for entry in federation.rounds:
        # Mean 4, quantile 8: of its nine cases the large site has three in an epoch, so two batches instead of five.
        assert {site: part["num_steps"] for site, part in entry["sites"].items()} == {"large": 2, "small": 1, "tiny": 1}
        assert entry["weights"] == pytest.approx({"large": 9 / 12, "small": 2 / 12, "tiny": 1 / 12})


def test_prepared_cases_are_kept_in_a_folder_that_is_not_there_yet(datalists, tmp_path):
    job = tiny_job(ROOT / "jobs" / "hippocampus_fedavg", rounds=1)
    job.set("training.cache", "disk")
    federation = InProcessFederation(job, datalists, cache=tmp_path / "new" / "cache")
    federation.run()
    assert federation.events == []
    assert len([path for path in (tmp_path / "new" / "cache").rglob("*") if path.is_file()]) >= sum(
        map(sum, SITES.values())
    )

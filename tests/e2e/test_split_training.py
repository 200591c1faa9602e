"""Split training through FLARE's real simulator: tiny images, small network, real processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedseg.data.datalist import read_datalist
from fedseg.jobs import allowed_components as component_policy
from fedseg.jobs.job import read_job
from fedseg.networks.split.stages import cut_names
from fedseg.provenance.reading import read_record
from fedseg.simulation.run_folder import prepare_output
from fedseg.simulation.simulator import simulate
from fedseg.training.split.halves import plan_cost
from split_bytes import step_bytes, turn_bytes
from split_in_process import CYCLIC, SPLIT, SplitInProcess
from tiny import PLAN, make_sites

ROOT = Path(__file__).parents[2]
JOB = ROOT / "jobs" / "hippocampus_splitavg"
TURNS, VISITS = ROOT / "jobs" / "hippocampus_splitnn", ROOT / "jobs" / "hippocampus_cyclic"
SITES = {"alpha": (4, 2), "beta": (3, 1), "gamma": (2, 1)}
ROUNDS, STEPS = 2, 2
TRAINING = {**PLAN["training"], "batch_dice": False}
# One pass over each site's own cases.
PASS = {"alpha": 2, "beta": 2, "gamma": 1}
STILL, INTRUDING = "split_parts.StandingStill", "split_parts.Intruding"


def fedseg(*arguments):
    command = [sys.executable, "-m", "fedseg", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300, cwd=ROOT)


def settings(**split):
    values = {"task": PLAN["task"], "network": PLAN["network"], "training": TRAINING}
    values |= {f"split.{name}": value for name, value in {"message": "float32", **split}.items()}
    return [f"--set={key}={json.dumps(value)}" for key, value in values.items()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("split")


@pytest.fixture(scope="module")
def data(folder):
    """Three sites, and one with a policy that does not let features out."""
    make_sites(folder / "data", {**SITES, "closed": (2, 1)})
    (folder / "data" / "closed" / "policy.json").write_text("{}")
    return folder / "data"


@pytest.fixture(scope="module")
def published(folder, data):
    """The method as published: labels at the server, each site a part of its own; what the command printed."""
    out = folder / "published"
    result = fedseg("simulate", JOB, "--data", data, "--out", out, "--rounds", ROUNDS, "--seed", 3, *settings())
    assert result.returncode == 0, result.stderr
    return out, result


@pytest.fixture(scope="module")
def summed(folder, data):
    out = folder / "summed"
    split = settings(site_update="summed", labels="private")
    options = ["--rounds", ROUNDS, "--seed", 3, *split, "--no-probe"]
    result = fedseg("simulate", JOB, "--data", data, "--out", out, *options)
    assert result.returncode == 0, result.stderr
    return out, result


def simulated_with(executor, arguments, job, data, out, monkeypatch, **workflow):
    """A run in which the sites have an executor of these tests; its results."""
    monkeypatch.setattr(component_policy, "FLARE_CLASSES", (*component_policy.FLARE_CLASSES, executor))
    monkeypatch.setattr("fedseg.workflows.split.rounds._EXECUTOR", executor)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    job = read_job(job)
    for key, value in (("task", PLAN["task"]), ("network", PLAN["network"]), ("training", TRAINING), ("seed", 3)):
        job.set(key, value)
    job.set("split.message", "float32")
    job.workflow.update(workflow)
    job.client["executors"][0]["executor"] = {"path": executor, "args": arguments}
    prepare_output(out, False)
    return simulate(job, data, out, list(SITES), lambda event: None).results


def summary_of(run):
    return json.loads((run[0] / "report" / "summary.json").read_text("utf-8"))


def plain(run, data):
    """The same run in one process: weights of each site's whole network."""
    plan = read_job(run[0] / "job").plan
    loop = SplitInProcess(plan, {s: read_datalist(data / s) for s in SITES}, SPLIT if plan.split else CYCLIC)
    for _ in range(ROUNDS):
        loop.run_round(ROUNDS)
    return {site: loop.weights(site) for site in SITES}


def assert_equal(file, weights):
    found = load_file(file)
    assert set(found) == set(weights)
    for name, value in weights.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_with_parts_of_their_own_every_sites_model_is_that_of_the_plain_loop_to_the_bit(published, data):
    for site, weights in plain(published, data).items():
        assert_equal(published[0] / "models" / f"last.{site}.safetensors", weights)


@pytest.mark.full
def test_with_summed_gradients_and_private_labels_the_one_model_is_that_of_the_plain_loop_to_the_bit(summed, data):
    weights = plain(summed, data)
    assert_equal(summed[0] / "models" / "last.safetensors", weights["alpha"])
    assert_equal(summed[0] / "models" / "last.safetensors", weights["gamma"])


def test_a_site_whose_policy_does_not_let_features_out_refuses(published):
    summary = summary_of(published)
    assert summary["sites"] == sorted(SITES)
    (note,) = [event for event in summary["events"] if event["site"] == "closed"]
    assert note["what"].startswith("policy: The site's policy, rule features: ")


def test_the_summary_tells_of_rounds_weights_and_bytes(published):
    summary = summary_of(published)
    plan = read_job(published[0] / "job").check()
    assert summary["split"]["cut"] == "encoder1"
    assert [entry["cut"] for entry in summary["inversion"]["cuts"]] == list(cut_names(plan.network))
    for entry in summary["rounds"]:
        assert entry["iterations"] == STEPS
        assert entry["rule"]["name"] == "SplitAVG"
        # 4, 3 and 2 cases in batches of 2: 4, 3 and 4 samples in two iterations.
        assert entry["weights"] == pytest.approx({"alpha": 4 / 11, "beta": 3 / 11, "gamma": 4 / 11})
        foretold = step_bytes(plan_cost(plan, plan.split), plan.split, 2)
        up, down = entry["bytes_in_iterations"]["alpha"]
        # Headers included, which are many on a patch as small as this.
        assert STEPS * foretold.up < up < 1.05 * STEPS * foretold.up
        assert STEPS * foretold.down < down < 1.05 * STEPS * foretold.down
        for site, part in entry["sites"].items():
            assert part["num_samples"] == SITES[site][0]
            assert part["num_steps"] == STEPS
            assert part["cost"] == part["train_loss"] > 0
            assert part["bytes_up"] > entry["bytes_in_iterations"][site][0]
    final = summary["final"]
    assert final["model"] is None
    assert set(final["models"]) == set(SITES)
    assert all((published[0] / file).is_file() for file in final["models"].values())
    assert {site: part["cases"] for site, part in final["sites"].items()} == {s: n[1] for s, n in SITES.items()}
    assert (published[0] / "report" / "report.html").is_file()


@pytest.mark.full
def test_evaluate_takes_a_sites_model_and_gives_the_scores_of_the_run(published, data, folder):
    out = folder / "evaluated"
    model = published[0] / "models" / "last.alpha.safetensors"
    options = ["--task", published[0] / "job", "--data", data / "alpha", "--out", out, "--threads", 1]
    result = fedseg("evaluate", model, *options)
    assert result.returncode == 0, result.stderr
    content = json.loads((out / "evaluation.json").read_text("utf-8"))
    assert content["mean"]["dice"] == pytest.approx(summary_of(published)["final"]["sites"]["alpha"]["dice"])


@pytest.mark.full
@pytest.mark.parametrize("kind", ["published", "summed"])
def test_a_run_goes_on_from_its_checkpoint_to_the_bit(kind, request, data):
    """Server and sites go back to the state after the first round together."""
    out = request.getfixturevalue(kind)[0]
    before = {path.name: path.read_bytes() for path in (out / "models").glob("*.safetensors")}
    assert before
    result = fedseg("simulate", JOB, "--data", data, "--out", out, "--resume", "--from-round", 1, "--no-probe")
    assert result.returncode == 0, result.stderr
    assert {path.name: path.read_bytes() for path in (out / "models").glob("*.safetensors")} == before


@pytest.mark.full
def test_a_site_that_stands_still_is_left_out_within_the_time_limit_and_comes_back(folder, data, monkeypatch):
    out = folder / "still"
    stands = {"site": "beta", "seconds": 20}
    results = simulated_with(STILL, stands, JOB, data, out, monkeypatch, num_rounds=5, message_timeout=8)
    first, *_, last = results["rounds"]
    assert {event["site"] for event in results["events"]} == {"beta"}
    note = results["events"][0]
    assert note["round"] == 0
    assert note["what"] == "left out of the rest of the round: it did not answer within 8 s"
    assert sorted(first["sites"]) == ["alpha", "gamma"]
    assert first["iterations"] == STEPS
    assert first["seconds"] < 20, "nobody waits until the site moves again"
    assert set(last["sites"]) == set(SITES), "it has come back"
    assert last["sites"]["beta"]["num_steps"] == STEPS
    assert {path.name for path in (out / "models").iterdir() if path.suffix == ".safetensors"} == {
        f"last.{site}.safetensors" for site in SITES
    }


# --------------------------------------------------------------------- site after site, and the whole network


@pytest.fixture(scope="module")
def turns(folder, data):
    """Sequential split learning, in which a site tries to have another one's part and to give it its own."""
    out, heard = folder / "turns", folder / "turns.jsonl"
    tries = {"site": "alpha", "victim": "gamma", "file": str(heard)}
    with pytest.MonkeyPatch.context() as monkeypatch:
        results = simulated_with(INTRUDING, tries, TURNS, data, out, monkeypatch, num_rounds=ROUNDS, message_timeout=20)
    return out, results, [json.loads(line) for line in heard.read_text("utf-8").splitlines()]


@pytest.mark.full
def test_in_turns_the_one_model_is_that_of_the_plain_loop_to_the_bit(turns, data):
    assert turns[1]["events"] == []
    assert_equal(turns[0] / "models" / "last.safetensors", plain(turns, data)["gamma"])


@pytest.mark.full
def test_a_call_from_another_site_is_refused(turns):
    """By FLARE's own connections; that nothing of it was done is the test before."""
    said = ["BAD_REQUEST_DATA", "Calls are taken from this job's server only."]
    assert turns[2] == [[ask, *said] for _ in range(ROUNDS) for ask in ("receive", "send")]


@pytest.mark.full
def test_in_turns_iterations_weights_and_bytes_are_those_of_each_sites_own_cases(turns):
    plan = read_job(turns[0] / "job").plan
    cost = plan_cost(plan, plan.split)
    for entry in turns[1]["rounds"]:
        assert entry["rule"]["name"] == "SplitNN"
        assert entry["iterations"] == sum(PASS.values())
        assert entry["weights"] == pytest.approx({"alpha": 4 / 9, "beta": 3 / 9, "gamma": 2 / 9})
        foretold, once = step_bytes(cost, plan.split, 2), turn_bytes(cost, plan.split)
        up, down = entry["bytes_in_iterations"]["alpha"]
        assert PASS["alpha"] * foretold.up + once.up < up < 1.05 * (PASS["alpha"] * foretold.up + once.up)
        assert PASS["alpha"] * foretold.down + once.down < down < 1.05 * (PASS["alpha"] * foretold.down + once.down)
        assert {site: part["num_steps"] for site, part in entry["sites"].items()} == PASS
    assert turns[1]["best"]["model"] is not None, "every site scores one whole network"


@pytest.mark.full
def test_a_sites_record_tells_of_the_calls_of_each_round(turns):
    record = read_record(next((turns[0] / "state" / "alpha").glob("*/record.jsonl")))
    lines = list(record.of_kind("called"))
    assert [line["round"] for line in lines] == list(range(ROUNDS))
    assert {tuple(line["left"]) for line in lines} == {("features", "labels", "part")}
    sent = [entry["bytes_in_iterations"]["alpha"] for entry in turns[1]["rounds"]]
    for line, (up, down) in zip(lines, sent, strict=True):
        assert 0 <= line["bytes_out"] - up < 2000, "ready and end beside"
        assert 0 <= line["bytes_in"] - down < 2000


@pytest.mark.full
def test_a_site_that_stands_still_in_its_turn_is_passed_over_and_comes_back(folder, data, monkeypatch):
    """The site behind it has its turn meanwhile, with the part that the site before it has left."""
    stands, limits = {"site": "beta", "seconds": 12}, {"num_rounds": 4, "message_timeout": 5}
    results = simulated_with(STILL, stands, TURNS, data, folder / "still-turns", monkeypatch, **limits)
    first, *_, last = results["rounds"]
    assert {event["site"] for event in results["events"]} == {"beta"}
    assert results["events"][0]["what"] == "left out of the rest of the round: it did not answer within 5 s"
    assert sorted(first["sites"]) == ["alpha", "gamma"]
    assert first["sites"]["gamma"]["num_steps"] == PASS["gamma"], "the turn after the lost one"
    assert {site: part["num_steps"] for site, part in last["sites"].items()} == PASS


@pytest.fixture(scope="module")
def open_data(folder, data):
    """The three sites alone: the fourth one has nothing against a whole network's updates."""
    (folder / "open").mkdir()
    for site in SITES:
        (folder / "open" / site).symlink_to(data / site)
    return folder / "open"


@pytest.fixture(scope="module")
def cyclic(folder, open_data):
    out = folder / "cyclic"
    whole = [
        f"--set={key}={json.dumps(PLAN[key] if key != 'training' else TRAINING)}"
        for key in ("task", "network", "training")
    ]
    result = fedseg("simulate", VISITS, "--data", open_data, "--out", out, "--rounds", ROUNDS, "--seed", 3, *whole)
    assert result.returncode == 0, result.stderr
    return out, result


@pytest.mark.full
def test_cyclic_weight_transfer_is_the_plain_loop_to_the_bit(cyclic, open_data):
    assert_equal(cyclic[0] / "models" / "last.safetensors", plain(cyclic, open_data)["gamma"])


@pytest.mark.full
def test_the_rounds_of_cyclic_weight_transfer_have_comparable_scores(cyclic):
    summary = summary_of(cyclic)
    assert summary["events"] == []
    # Best is the model after the first or the second round: the one whose scores at all sites are higher.
    before, after = (entry["val_dice"] for entry in summary["rounds"])
    assert None not in (before, after)
    assert summary["best"]["round"] in (0, 1)
    for entry in summary["rounds"]:
        assert {site: part["val_cases"] for site, part in entry["sites"].items()} == {s: n[1] for s, n in SITES.items()}
        assert {site: part["num_steps"] for site, part in entry["sites"].items()} == PASS
        for part in entry["sites"].values():
            assert part["bytes_down"] > 2 * part["bytes_up"] * 0.9, "the model comes to be scored and to be trained"


@pytest.mark.full
def test_the_records_of_cyclic_weight_transfer_tell_one_story(cyclic):
    checked = fedseg("audit-log", "verify", cyclic[0])
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.full
def test_cyclic_weight_transfer_goes_on_from_its_checkpoint_to_the_bit(cyclic, open_data):
    before = {path.name: path.read_bytes() for path in (cyclic[0] / "models").glob("*.safetensors")}
    assert before
    result = fedseg("simulate", VISITS, "--data", open_data, "--out", cyclic[0], "--resume", "--from-round", 1)
    assert result.returncode == 0, result.stderr
    assert {path.name: path.read_bytes() for path in (cyclic[0] / "models").glob("*.safetensors")} == before

"""Private training through FLARE's simulator: what the run says, what it keeps, and what its ledgers remember."""

import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from federation_parts import fedseg
from safetensors.numpy import load_file

from fedseg.data.datalist import read_datalist
from fedseg.jobs.job import read_job
from fedseg.models.model_file import write_model
from fedseg.networks.weights import get_weights
from fedseg.privacy.accounting.epsilon import Release, epsilon
from fedseg.privacy.accounting.ledger import Ledger
from fedseg.simulation.in_process import InProcessFederation
from tiny import PLAN, make_sites

ROOT = Path(__file__).parents[2]
SITES = {"alpha": (3, 1), "beta": (2, 1)}
ROUNDS, EPOCHS, CLIP, NOISE, DELTA = 3, 2, 0.1, 8.0, 1e-6


def command(folder, out, *options):
    start = [sys.executable, "-m", "fedseg", "simulate", folder / "job", "--data", folder / "data", "--out", out]
    return [*map(str, (*start, *options))]


def simulate(folder, out, *options):
    result = subprocess.run(
        command(folder, out, *options), capture_output=True, encoding="utf-8", timeout=300, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr
    return result


def simulate_here(folder, out, *options):
    """In this very process."""
    done = fedseg(*command(folder, out, "--in-process", *options)[3:])
    assert done.code == 0, done.err


def history(folder):
    """The releases in a ledger; its chain is verified on the way."""
    return Ledger(folder, simulated=True).history()


def spent(releases):
    """What so many rounds cost: each epoch a release with noise of NOISE / 2 sensitivities."""
    return epsilon([Release("gaussian", NOISE / 2, unit="patient", count=EPOCHS)] * releases, DELTA)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data, a model to start from, and a job: the last layer alone, trained privately."""
    folder = tmp_path_factory.mktemp("privacy")
    make_sites(folder / "data", SITES)
    job = read_job(ROOT / "jobs" / "hippocampus_gaussian_dp")
    for key in ("task", "network"):
        job.set(key, PLAN[key])
    job.set("training", {**PLAN["training"], "local_epochs": EPOCHS})
    for key, value in (("clip", CLIP), ("noise_multiplier", NOISE), ("delta", DELTA)):
        job.set(f"filter.DPSGD.{key}", value)
    job.set("workflow.num_rounds", ROUNDS)
    job.set("workflow.keep_checkpoints", 0)
    job.write(folder / "job")
    plan = job.check()
    weights = get_weights(plan.network.build(len(plan.task.channels), plan.task.output_channels, seed=99))
    write_model(folder / "initial.safetensors", plan, weights, 7)
    return folder


@pytest.fixture(scope="module")
def whole(folder):
    """The uninterrupted run, with a ledger of its own."""
    out = folder / "whole"
    simulate(folder, out, "--initial", folder / "initial.safetensors", "--keep-updates")
    return out


def summary_of(out):
    return json.loads((out / "report" / "summary.json").read_text("utf-8"))


def test_the_simulator_equals_the_loop_in_one_process(whole, folder):
    """Weights, epsilon and final scores, from the same start."""
    job = read_job(folder / "job")
    job.initial = folder / "initial.safetensors"
    federation = InProcessFederation(job, {site: read_datalist(folder / "data" / site) for site in SITES})
    start = {name: value.copy() for name, value in federation.model.weights.items()}
    federation.run()
    assert federation.events == []
    last = load_file(whole / "models" / "last.safetensors")
    assert set(last) == set(federation.model.weights)
    for name, value in federation.model.weights.items():
        np.testing.assert_array_equal(last[name], value, err_msg=name)
    assert any(not np.array_equal(last[name], start[name]) for name in last)
    summary = summary_of(whole)
    for mine, its in zip(federation.rounds, summary["rounds"], strict=True):
        assert {s: v["epsilon"] for s, v in mine["sites"].items()} == {s: v["epsilon"] for s, v in its["sites"].items()}
    final = federation.evaluate()
    for site in SITES:
        assert summary["final"]["sites"][site]["dice"] == pytest.approx(final["sites"][site]["dice"], rel=1e-12)


def test_it_started_from_the_given_model_and_moved_the_shared_part_only(whole, folder):
    initial = load_file(folder / "initial.safetensors")
    first, last = whole / "updates" / "round-000" / "global.safetensors", whole / "models" / "last.safetensors"
    job = read_job(folder / "job")
    frozen = job.build_filters()[0].frozen_names(job.plan)
    assert frozen
    assert frozen < set(initial)
    for name, value in load_file(first).items():
        np.testing.assert_array_equal(value, initial[name])
    for name, value in load_file(last).items():
        assert np.array_equal(value, initial[name]) == (name in frozen or value.dtype.kind != "f"), name


def test_the_summary_states_the_mechanism_and_what_was_spent(whole):
    privacy = summary_of(whole)["privacy"]
    expected = {"mechanism": "gaussian", "unit": "patient", "delta": DELTA, "noise_multiplier": NOISE, "clip": CLIP}
    expected |= {"rounds": ROUNDS, "steps": ROUNDS * EPOCHS, "secure_noise": False}
    assert set(privacy["sites"]) == set(SITES)
    for values in privacy["sites"].values():
        assert {name: values[name] for name in expected} == expected
        assert values["epsilon"] == pytest.approx(spent(ROUNDS))
    assert privacy["total"] == {
        "mechanism": "gaussian",
        "unit": "patient",
        "delta": DELTA,
        "epsilon": values["epsilon"],
        "without_guarantee": 0,
    }
    assert [entry["filter"] for entry in privacy["filters"]] == ["SharedLayers", "DPSGD"]
    page = (whole / "report" / "report.html").read_text("utf-8")
    assert "DPSGD" in page
    assert (whole / "report" / "figures" / "epsilon.png").is_file()


def test_scores_stay_at_the_sites_and_the_simulation_reads_them_there(whole):
    """The server's own record has neither losses nor scores; the summary has those of the final model."""
    server = whole / "workspace" / "server" / "simulate_job" / "fedseg"
    record = json.loads((server / "results.json").read_text("utf-8"))
    summary = summary_of(whole)
    assert record["final"]["sites"] == {}
    assert record["final"]["mean_dice"] is None
    assert record["final"]["withheld"] == summary["final"]["withheld"] == sorted(SITES)
    for entry in (*record["rounds"], *summary["rounds"]):
        for values in entry["sites"].values():
            assert [values[name] for name in ("train_loss", "val_loss", "val_dice")] == [None, None, {}]
    assert set(summary["final"]["sites"]) == set(SITES)
    assert 0 <= summary["final"]["mean_dice"] <= 1
    scores = [values["dice"]["mean"] for values in summary["final"]["sites"].values()]
    assert summary["final"]["mean_dice"] == pytest.approx(sum(scores) / len(scores))


def test_each_site_has_a_ledger_of_the_whole_run(whole):
    for site, (training, validation) in SITES.items():
        entries = history(whole / "state" / site / "ledger")
        assert [(entry["round"], entry["count"]) for entry in entries] == [(n, EPOCHS) for n in range(ROUNDS)]
        assert {entry["run_id"] for entry in entries} == {summary_of(whole)["run_id"]}
        assert {entry["patient_count"] for entry in entries} == {training + validation}
        found = Ledger(whole / "state" / site / "ledger", simulated=True).spent(DELTA)
        assert (found.epsilon, found.releases, found.unit) == (pytest.approx(spent(ROUNDS)), ROUNDS * EPOCHS, "patient")


def test_a_stopped_run_goes_on_and_nothing_that_left_is_forgotten(whole, folder):
    """Stopped in round 3, continued after round 1: round 2 happens twice and is paid twice, for the same model.

    It runs in one process, whose model is that of the whole run in FLARE's simulator.

    A further job with the same ledgers then pays for what this one spent; the whole run above had ledgers of its own.
    """
    out, ledgers = folder / "stopped", folder / "ledgers"
    options = ("--in-process", "--initial", folder / "initial.safetensors", "--ledger", ledgers)
    process = subprocess.Popen(
        command(folder, out, *options), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, encoding="utf-8", cwd=ROOT
    )
    try:
        for line in process.stderr:
            if line.startswith("round 3/"):
                break
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)
    finally:
        process.kill()
    before = {site: history(ledgers / site) for site in SITES}
    for entries in before.values():
        # Round 3 may have been entered already, and may have left.
        assert [entry["round"] for entry in entries] in ([0, 1], [0, 1, 2])
    simulate_here(folder, out, "--resume", "--from-round", 1, "--ledger", ledgers)
    assert (out / "models" / "last.safetensors").read_bytes() == (whole / "models" / "last.safetensors").read_bytes()
    last = summary_of(out)["rounds"][-1]
    for site, entries in before.items():
        after = history(ledgers / site)
        assert after[: len(entries)] == entries
        assert [entry["round"] for entry in after[len(entries) :]] == [1, 2]
        assert last["sites"][site]["epsilon"] == pytest.approx(spent(len(after)))
        assert not (out / "state" / site / "ledger").exists()

    further = folder / "further"
    simulate_here(folder, further, "--rounds", 1, "--ledger", ledgers)
    (entry,) = summary_of(further)["rounds"]
    for site, entries in before.items():
        assert len({e["run_id"] for e in history(ledgers / site)}) == 2
        assert entry["sites"][site]["epsilon"] == pytest.approx(spent(len(entries) + 3))
        assert entry["sites"][site]["privacy"][-1]["releases"] == EPOCHS * (len(entries) + 3)
    assert math.isclose(summary_of(whole)["privacy"]["total"]["epsilon"], spent(ROUNDS), rel_tol=1e-6)

"""Whole jobs through FLARE's real simulator: tiny images, small network, real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from federation_parts import fedseg as typed
from safetensors.numpy import load_file

from fedseg.contract.plan import parse_plan
from fedseg.data.datalist import read_datalist
from fedseg.jobs.job import read_job
from fedseg.jobs.packaging import package_job
from fedseg.models.note import read_note
from fedseg.networks.weights import get_weights
from fedseg.provenance.reading import read_record
from fedseg.simulation.in_process import InProcessFederation
from fedseg.training.trainer import SiteTrainer
from tiny import PLAN, make_sites

ROOT = Path(__file__).parents[2]
JOB = ROOT / "jobs" / "hippocampus_fedavg"
SITES = {"alpha": (4, 2), "beta": (3, 1), "gamma": (2, 1)}
ROUNDS = 2
SETTINGS = [f"--set={key}={json.dumps(PLAN[key])}" for key in ("task", "network", "training")]


def fedseg(*arguments, **options):
    command = [sys.executable, "-m", "fedseg", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300, cwd=ROOT, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("simulation")


@pytest.fixture(scope="module")
def data(folder):
    """Three good sites, and one whose image is damaged: the others go on without it."""
    make_sites(folder / "data", {**SITES, "broken": (2, 1)})
    next((folder / "data" / "broken" / "images").glob("broken-0_image.nii.gz")).write_bytes(b"damaged")
    return folder / "data"


@pytest.fixture(scope="module")
def run(folder, data):
    """One simulated federation through the command line; its folder and what it printed."""
    out = folder / "run"
    result = fedseg(
        "simulate", JOB, "--data", data, "--out", out, "--rounds", ROUNDS, "--seed", 3, "--keep-updates", *SETTINGS
    )
    assert result.returncode == 0, result.stderr
    return out, result


@pytest.fixture(scope="module")
def summary(run):
    return json.loads((run[0] / "report" / "summary.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def plan(run):
    return read_job(run[0] / "job").check()


def test_the_federation_equals_a_plain_loop_over_the_same_seeds(run, data, plan):
    """Independent of the workflow, the executor and the aggregator: sites one after the other, averaged by hand."""
    trainers = {site: SiteTrainer(plan, site, read_datalist(data / site)) for site in SITES}
    weights = get_weights(trainers["alpha"].network)
    for number in range(ROUNDS):
        updates = {site: trainer.train_round(weights, number, ROUNDS).update for site, trainer in trainers.items()}
        cases = {site: counts[0] for site, counts in SITES.items()}
        weights = {
            name: (value + sum(updates[s][name] * (cases[s] / 9) for s in SITES)).astype(np.float32)
            for name, value in weights.items()
        }
    federated = load_file(run[0] / "models" / "last.safetensors")
    assert set(federated) == set(weights)
    for name in weights:
        np.testing.assert_allclose(federated[name], weights[name], rtol=0, atol=1e-6, err_msg=name)


def test_the_loop_in_one_process_equals_the_federation(run, data, plan, summary):
    federation = InProcessFederation(read_job(run[0] / "job"), {site: read_datalist(data / site) for site in SITES})
    federation.run()
    federated = load_file(run[0] / "models" / "last.safetensors")
    for name, value in federation.model.weights.items():
        np.testing.assert_allclose(federated[name], value, rtol=0, atol=1e-6, err_msg=name)
    for mine, theirs in zip(federation.rounds, summary["rounds"], strict=True):
        assert mine["weights"] == pytest.approx(theirs["weights"])
        assert mine["val_dice"] == pytest.approx(theirs["val_dice"], abs=1e-6)
    assert federation.evaluate()["pooled_dice"] == pytest.approx(summary["final"]["pooled_dice"], abs=1e-6)


def test_every_round_can_be_recomputed_from_the_stored_updates(run, summary):
    for entry in summary["rounds"]:
        folder = run[0] / "updates" / f"round-{entry['round']:03d}"
        before = load_file(folder / "global.safetensors")
        last = entry["round"] == ROUNDS - 1
        after = load_file(
            run[0] / "models" / "last.safetensors"
            if last
            else run[0] / "updates" / f"round-{entry['round'] + 1:03d}" / "global.safetensors"
        )
        updates = {site: load_file(folder / f"{site}.safetensors") for site in entry["weights"]}
        for name in before:
            mean = sum(weight * updates[site][name] for site, weight in entry["weights"].items())
            np.testing.assert_allclose(after[name], before[name] + mean, atol=1e-6)


def test_the_summary_holds_what_the_contract_names(run, summary):
    assert summary["schema"]
    assert (summary["task"], summary["method"], summary["seed"]) == ("tiny", "fedavg", 3)
    assert summary["threads_per_site"] == 1
    assert summary["sites"] == sorted(SITES)
    assert [entry["round"] for entry in summary["rounds"]] == list(range(ROUNDS))
    for entry in summary["rounds"]:
        assert entry["rule"]["name"] == "FedAvg"
        assert entry["weights"] == pytest.approx({"alpha": 4 / 9, "beta": 3 / 9, "gamma": 2 / 9})
        for site, scalars in entry["sites"].items():
            assert scalars["num_samples"] == SITES[site][0]
            assert scalars["num_steps"] == -(-SITES[site][0] // 2)
            assert scalars["cost"] == scalars["train_loss"]
            assert set(scalars["val_dice"]) == {"inner", "whole", "mean"}
            assert 0 < scalars["seconds"] <= entry["seconds"]
    for part in (summary["final"], summary["best"]):
        assert (run[0] / part["model"]).is_file()
        assert part["split"] == "validation"
        assert {site: s["cases"] for site, s in part["sites"].items()} == {s: n[1] for s, n in SITES.items()}
        means = {site: s["dice"]["mean"] for site, s in part["sites"].items()}
        assert part["mean_dice"] == pytest.approx(sum(means.values()) / 3)
        assert part["pooled_dice"] == pytest.approx(sum(means[s] * SITES[s][1] for s in SITES) / 4)
    assert summary["privacy"] == {}
    assert {"server", *SITES} <= set(summary["cost"]["peak_rss_mb"])


def test_bytes_are_those_of_the_arrays_and_little_more(run, summary):
    arrays = sum(a.nbytes for a in load_file(run[0] / "models" / "last.safetensors").values())
    for entry in summary["rounds"]:
        for scalars in entry["sites"].values():
            assert arrays < scalars["bytes_up"] < arrays + 16384
            assert arrays < scalars["bytes_down"] < arrays + 16384


def test_a_damaged_site_is_named_and_the_others_go_on(run, summary, folder):
    assert "broken" not in summary["sites"]
    notes = [event for event in summary["events"] if event["site"] == "broken"]
    assert len(notes) == 1
    assert notes[0]["what"].startswith("data:")
    assert "broken-0" not in json.dumps(summary["events"]), "no file name reaches the server"
    assert str(folder) not in json.dumps(summary["events"])
    assert "broken" in run[1].stderr


def test_the_run_leaves_the_same_folder_as_every_run(run, summary):
    out = run[0]
    for name in ("workspace", "state", "report/summary.json", "report/report.html", "report/figures", "job"):
        assert (out / name).exists(), name
    assert {p.name for p in (out / "report" / "figures").iterdir()} >= {"learning_curves.png", "dice_by_site.png"}
    assert all((out / "state" / site / summary["run_id"]).is_dir() for site in SITES)
    assert "whole" in run[1].stdout
    assert "alpha" in run[1].stdout


def test_records_of_server_and_sites_tell_the_same_story(run):
    verified = typed("audit-log", "verify", run[0])
    assert verified.code == 0, verified.out
    for words in (f"{ROUNDS} finished round(s) follow", f"alpha: all {ROUNDS} round(s)", "gamma: 2 model(s) received"):
        assert words in verified.out
    record = read_record(run[0] / "report" / "record.jsonl")
    note = read_note(run[0] / "models" / "last.safetensors")
    assert record.entries[note.line - 1]["model"] == note.model
    assert note.sites == tuple(SITES)
    assert next(record.of_kind("start"))["job"] == "hippocampus_fedavg"
    kinds = {e["kind"] for path in run[0].rglob("record.jsonl") for e in read_record(path).entries}
    assert {"start", "round", "received", "sent", "scored", "finished"} <= kinds


def test_curves_of_every_site_arrive_at_the_server(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run[0] / "workspace" / "server" / "simulate_job" / "tb_events"
    for site in SITES:
        events = EventAccumulator(str(folder / site))
        events.Reload()
        assert len(events.Scalars("train_loss")) == ROUNDS
        assert events.Scalars("val_dice/mean")


def test_a_former_run_is_not_overwritten_by_mistake(run, data):
    before = (run[0] / "report" / "summary.json").read_bytes()
    result = typed("simulate", JOB, "--data", data, "--out", run[0])
    assert result.code == 2
    assert "--overwrite" in result.err
    assert (run[0] / "report" / "summary.json").read_bytes() == before


def test_evaluate_gives_the_scores_of_the_run(run, summary, data, folder):
    out = folder / "evaluated"
    result = typed(
        "evaluate", run[0] / "models" / "last.safetensors", "--task", run[0] / "job", "--data", data / "alpha",
        "--out", out, "--threads", 1,
    )  # fmt: skip
    assert result.code == 0, result.err
    content = json.loads((out / "evaluation.json").read_text("utf-8"))
    assert [case["id"] for case in content["cases"]] == ["alpha-4", "alpha-5"]
    expected = summary["final"]["sites"]["alpha"]
    assert content["mean"]["dice"] == pytest.approx(expected["dice"])
    assert content["mean"]["hd95"] == pytest.approx(expected["hd95"])


def test_predicted_masks_score_what_evaluate_says(run, data, folder, plan):
    import nibabel as nib

    out = folder / "masks"
    model = run[0] / "models" / "last.safetensors"
    common = ["--task", run[0] / "job", "--data", data / "beta", "--out"]
    assert typed("predict", model, *common, out).code == 0
    assert typed("evaluate", model, *common, folder / "beta").code == 0
    scored = json.loads((folder / "beta" / "evaluation.json").read_text("utf-8"))["cases"][0]
    assert sorted(p.name for p in out.iterdir()) == [f"beta-{i}.nii.gz" for i in range(4)]
    mask = nib.load(out / f"{scored['id']}.nii.gz")
    label = nib.load(data / "beta" / "images" / f"{scored['id']}.nii.gz")
    np.testing.assert_allclose(mask.affine, label.affine)
    p, r = np.asarray(mask.dataobj) > 0, np.asarray(label.dataobj) > 0
    total = p.sum() + r.sum()
    assert scored["dice"]["whole"] == pytest.approx(2 * (p & r).sum() / total if total else 1)


def start_plain_simulator(job, workspace, data, out, python=sys.executable, extra=None):
    environment = {**os.environ, "FEDSEG_DATA": str(data), "HOME": str(out), **(extra or {})}
    command = [python, "-m", "nvflare.cli", "simulator", str(job), "-w", str(workspace)]
    command += ["-c", ",".join(SITES), "-t", str(len(SITES))]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300, env=environment, cwd=out)


def plain_model(workspace):
    return (workspace / "server" / "simulate_job" / "fedseg" / "last.safetensors").read_bytes()


@pytest.mark.full
def test_flares_own_simulator_with_our_workspace_gives_the_same_bytes(run, data, folder):
    """Also: the same seed twice gives identical bytes, and the template's allow-list suffices."""
    import shutil

    home = folder / "plain"
    home.mkdir()
    workspace = Path(shutil.copytree(ROOT / "workspace_templates" / "simulator", home / "workspace"))
    result = start_plain_simulator(run[0] / "job", workspace, data, home)
    assert result.returncode == 0, result.stdout[-3000:]
    assert plain_model(workspace) == (run[0] / "models" / "last.safetensors").read_bytes()


def test_a_packed_job_runs_where_fedseg_is_not_installed(run, data, folder):
    """A new environment that sees the same packages, but not the editable installation of fedseg."""
    import nvflare

    home = folder / "packed"
    home.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home / "env"], check=True, timeout=120)
    packages = Path(nvflare.__file__).parents[1]
    target = next((home / "env" / "lib").glob("python3*/site-packages"))
    (target / "borrowed.pth").write_text(f"{packages}\n")
    python = home / "env" / "bin" / "python"
    missing = subprocess.run([python, "-c", "import torch, fedseg"], capture_output=True, text=True, cwd=home)
    assert "No module named 'fedseg'" in missing.stderr
    packed = package_job(read_job(run[0] / "job"), home / "job")
    result = start_plain_simulator(packed, home / "workspace", data, home, str(python), {"PYTHONPATH": ""})
    assert result.returncode == 0, result.stdout[-3000:]
    assert plain_model(home / "workspace") == (run[0] / "models" / "last.safetensors").read_bytes()


@pytest.mark.full
def test_ctrl_c_ends_every_process(data, folder):
    """Every day test_resume.py ends a run by SIGTERM, which goes the same way."""
    out = folder / "interrupted"
    command = [sys.executable, "-m", "fedseg", "simulate", str(JOB), "--data", str(data), "--out", str(out)]
    command += ["--rounds", "500", *SETTINGS]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", cwd=ROOT)
    try:
        assert process.stderr is not None
        deadline = time.monotonic() + 120
        for line in process.stderr:
            if line.startswith("round 2/") or time.monotonic() > deadline:
                break
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 4
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []
    assert not (out / "report" / "summary.json").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "nowhere"], "nowhere is not a folder"),
        (["--data", "."], "holds no <site>/datalist.json"),
        (["--rounds", "0"], "--rounds 0"),
        (["--set", "training.local_epochs=zero"], "training.local_epochs"),
        (["--set", "whatever"], "key=value"),
        (["--compare", "magic"], "magic"),
        (["--threads", "0"], "training.threads"),
    ],
)
def test_wrong_usage_is_one_sentence_and_leaves_nothing(data, folder, arguments, said):
    out = folder / "never"
    options = ["--out", out] if "--data" in arguments else ["--data", data, "--out", out]
    result = typed("simulate", JOB, *options, *arguments)
    assert result.code in (1, 2)
    assert said in result.err
    assert "Traceback" not in result.err
    assert not out.exists()


def test_rounds_of_the_plan_are_those_of_the_tests(plan):
    assert parse_plan({**PLAN, "seed": 3}).training == plan.training

"""One federation in which almost everything goes wrong that can, through FLARE's simulator and real processes."""

import json
import os
from pathlib import Path

import psutil
import pytest

from fedseg.evaluation.report.page import write_report
from fedseg.evaluation.summary import write_summary
from fedseg.jobs import allowed_components as component_policy
from fedseg.jobs.job import read_job
from fedseg.models.model_file import read_model
from fedseg.simulation.results import build_summary
from fedseg.simulation.run_folder import SERVER_FOLDER, prepare_output
from fedseg.simulation.simulator import simulate
from fedseg.workflows.run.record import PROGRESS_FILE
from tiny import PLAN, make_sites

ROOT = Path(__file__).parents[2]
JOB = ROOT / "jobs" / "hippocampus_fedcostwavg"
SITES = ("alpha", "beta", "gamma", "delta")
# Four processes start at once, on few cores: all but the late one must answer in time.
PREPARE_TIMEOUT, TIMEOUT, ROUNDS = 45, 30, 6


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """alpha works; beta sends NaN in round 1, another shape in round 2, and raises in round 3; gamma does not answer
    before the first round has begun; delta hangs from round 4 on."""
    folder = tmp_path_factory.mktemp("faults")
    make_sites(folder / "data", dict.fromkeys(SITES, (2, 1)))
    with pytest.MonkeyPatch.context() as patch:
        classes = ("misbehaviour.Misbehaviour", "misbehaviour.BrokenUpdate")
        patch.setattr(component_policy, "FLARE_CLASSES", component_policy.FLARE_CLASSES + classes)
        patch.setattr("fedseg.simulation.simulator.PATIENCE", 5.0)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
        job = read_job(JOB)
        for key in ("task", "network", "training"):
            job.set(key, PLAN[key])
        for key, value in (("num_rounds", ROUNDS), ("round_timeout", TIMEOUT), ("prepare_timeout", PREPARE_TIMEOUT)):
            job.set(f"workflow.{key}", value)
        plan = job.check()
        out, events = folder / "run", []
        progress = out / SERVER_FOLDER / PROGRESS_FILE
        faults = {"gamma": {"late": str(progress)}, "beta": {"error": 3}, "delta": {"hang": 4}}
        job.client.setdefault("components", []).append({"id": "bad", "path": classes[0], "args": {"sites": faults}})
        job.client["executors"][0]["executor"]["args"] = {"hooks": ["bad"]}
        broken = {"beta": {"1": "nan", "2": "shape"}}
        job.client["task_result_filters"] = [
            {"tasks": ["train"], "filters": [{"path": classes[1], "args": {"sites": broken}}]}
        ]
        prepare_output(out, False)
        before = set(psutil.pids())
        result = simulate(job, folder / "data", out, list(SITES), events.append)
        left = [
            p for p in psutil.process_iter(["cmdline"]) if p.pid not in before and str(out) in str(p.info["cmdline"])
        ]
    job.declaration.setdefault("method", plan.method)
    summary = build_summary(job, result, out / "state")
    (out / "report").mkdir(exist_ok=True)
    write_summary(summary, out / "report")
    return out, summary, left


def entries(summary, site):
    return [(e["round"], e["what"]) for e in summary["events"] if e["site"] == site]


def answered(summary, site):
    return [entry["round"] for entry in summary["rounds"] if site in entry["sites"]]


def test_the_run_ends_with_a_model_that_the_others_made(run):
    out, summary, _ = run
    assert len(summary["rounds"]) == ROUNDS
    assert read_model(out / "models" / "last.safetensors").build() is not None
    assert set(summary["final"]["sites"]) == {"alpha", "beta", "gamma"}
    for entry in summary["rounds"]:
        assert sum(entry["weights"].values()) == pytest.approx(1)
        assert set(entry["weights"]) == set(entry["sites"])


def test_a_bad_round_is_named_left_out_and_asked_again(run):
    _, summary, _ = run
    assert answered(summary, "beta") == [0, 4, 5]
    notes = entries(summary, "beta")
    assert [number for number, _ in notes] == [1, 2, 3]
    for (_, what), said in zip(notes, ("not finite", "shape", "RuntimeError"), strict=True):
        assert said in what


def test_no_text_of_a_site_names_a_file_or_a_patient(run):
    assert "patient-7" not in json.dumps(run[1]["events"])


def test_a_site_that_is_late_joins_as_soon_as_it_answers(run):
    _, summary, _ = run
    notes = [what for _, what in entries(summary, "gamma")]
    assert f"did not answer the task prepare within {PREPARE_TIMEOUT} s" in notes[0]
    rounds = answered(summary, "gamma")
    assert rounds
    assert 0 not in rounds
    assert rounds == list(range(rounds[0], ROUNDS)), "from then on it is in every round"


def test_a_hanging_site_is_named_and_waited_for_no_longer_than_said(run):
    _, summary, _ = run
    assert answered(summary, "delta") == [0, 1, 2, 3]
    for position, number in enumerate((4, 5)):
        noted = entries(summary, "delta")[position]
        assert noted == (number, f"did not answer the task train within {TIMEOUT} s")
        assert summary["rounds"][number]["seconds"] < 5 * TIMEOUT


def test_nothing_is_left_running(run):
    assert run[2] == []


def test_the_report_says_what_happened(run):
    out, _, _ = run
    page = write_report(out).read_text("utf-8")
    for text in ("did not answer the task train", "not finite", "shape", "RuntimeError"):
        assert text in page

"""Personal models travel where a site's policy says so, and nowhere else: what really leaves each simulated site."""

import json
from pathlib import Path

import numpy as np
import pytest
from nvflare.apis.dxo import DataKind, from_shareable
from nvflare.apis.fl_constant import ReturnCode

from fedseg.cli import main
from fedseg.errors import ConfigurationError
from fedseg.files.digest import model_digest
from fedseg.jobs.job import read_job
from fedseg.models.model_file import read_model
from fedseg.models.note import check_against_note
from fedseg.privacy.accounting.ledger import Ledger
from fedseg.simulation.in_process import simulate_in_process
from fedseg.simulation.results import build_summary
from fedseg.simulation.run_folder import prepare_output
from in_process_runs import answers_of_sites, write_policies
from tiny import PLAN, make_sites

JOBS = Path(__file__).parents[2] / "jobs"
POLICIES = {
    "gives": {"give_personal_model": True},
    "scored": {"submit_model": True, "submit_personal_model": True},
    "watched": {},
    "open": None,
}


def tiny_job(name):
    job = read_job(JOBS / name)
    for key in ("task", "network", "training"):
        job.set(key, PLAN[key])
    job.set("workflow.num_rounds", 2)
    return job


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder, summary, and every answer that left a site, of one run with sites of all policies."""
    folder = tmp_path_factory.mktemp("given")
    data = make_sites(folder / "data", dict.fromkeys(POLICIES, (2, 1)))
    write_policies(data, POLICIES)
    job = tiny_job("hippocampus_iop_fl_outside")
    job.check()
    prepare_output(folder / "run", False)
    with pytest.MonkeyPatch.context() as patch:
        left = answers_of_sites(patch)
        finished = simulate_in_process(job, data, folder / "run", sorted(POLICIES), lambda event: None)
    given = {path.name: path.read_bytes() for path in (folder / "run" / "models").iterdir()}
    return folder, given, build_summary(job, finished, folder / "run" / "state"), left


def personal(run, site):
    folder, _, summary, _ = run
    return read_model(folder / "run" / "state" / site / summary["run_id"] / "personal.safetensors")


def arrays_that_left(run, site):
    for name, answer in run[3]:
        if name == site and answer.get_return_code(ReturnCode.OK) == ReturnCode.OK and "DXO" in answer:
            dxo = from_shareable(answer)
            if dxo.data_kind in (DataKind.WEIGHTS, DataKind.WEIGHT_DIFF):
                yield dxo


def holds(dxos, value):
    found = (np.asarray(array) for dxo in dxos for array in dxo.data.values())
    return any(array.shape == value.shape and np.array_equal(array, value) for array in found)


@pytest.mark.parametrize("site", [site for site in POLICIES if site != "gives"])
def test_without_permission_nothing_personal_leaves_and_the_refusal_names_the_rule(run, site):
    sent, model = list(arrays_that_left(run, site)), personal(run, site)
    assert [dxo.data_kind for dxo in sent] == [DataKind.WEIGHT_DIFF] * 2
    assert not any(holds(sent, value) for value in model.weights.values() if value.size > 1)
    (what,) = [event["what"] for event in run[2]["events"] if event["site"] == site]
    assert "policy: The site's policy, rule give_personal_model: the job asks for this site's personal model" in what


def test_with_permission_the_personal_model_leaves_and_nothing_else_does(run):
    sent, model = list(arrays_that_left(run, "gives")), personal(run, "gives")
    assert [dxo.data_kind for dxo in sent] == [DataKind.WEIGHT_DIFF] * 2 + [DataKind.WEIGHTS]
    assert set(sent[-1].data) == set(model.weights)
    assert all(np.array_equal(sent[-1].data[name], value) for name, value in model.weights.items())
    assert not [event for event in run[2]["events"] if event["site"] == "gives"]


def test_the_run_has_the_given_model_with_its_provenance(run):
    folder, given, summary, _ = run
    assert summary["personal_models"] == {"gives": "models/gives-personal.safetensors"}
    assert {name for name in given if "personal" in name} == {
        "gives-personal.safetensors", "gives-personal.safetensors.provenance.json"
    }  # fmt: skip
    file = folder / "run" / summary["personal_models"]["gives"]
    note = check_against_note(file, model_digest(personal(run, "gives").weights))
    assert (note.run_id, note.round) == (summary["run_id"], 1)


def test_an_audit_of_the_run_finds_nothing_wrong(run, capsys):
    places = run[0] / "run" / "report" / "record.jsonl", run[0] / "run" / run[2]["personal_models"]["gives"]
    assert main(["audit-log", "verify", *map(str, places)]) == 0, capsys.readouterr()
    assert "gives-personal.safetensorsisthemodelafterround2" in "".join(capsys.readouterr().out.split())


def test_the_site_has_entered_in_its_ledger_that_it_left(run):
    folder, _, _, _ = run
    told = {}
    for site in POLICIES:
        ledger = Ledger(folder / "run" / "state" / site / "ledger", simulated=True)
        told[site] = [entry["what"] for entry in ledger.history(guaranteed=False)]
    assert told["gives"].count("personal model") == 1
    assert all("personal model" not in told[site] for site in POLICIES if site != "gives")


def test_a_site_that_was_never_there_routes_among_what_was_given(run, tmp_path, capsys):
    folder, _, summary, _ = run
    outside = make_sites(tmp_path / "data", {"new": (2, 1)})
    (tmp_path / "task.json").write_text(json.dumps(PLAN["task"]))
    last, given = (
        str(folder / "run" / file) for file in (summary["final"]["model"], summary["personal_models"]["gives"])
    )
    options = ["--task", str(tmp_path / "task.json"), "--data", str(outside / "new"), "--out", str(tmp_path / "out")]
    assert main(["predict", last, "--route", given, "--route-epochs", "1", *options]) == 0
    routed = json.loads((tmp_path / "out" / "routing.json").read_text())
    assert [each["file"] for each in routed["models"]] == [last, given]
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 3


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hippocampus_fedavg", "needs a personal model at each site, which no part of the job provides"),
        ("hippocampus_he", "needs a model of each site that may leave as it is"),
        ("hippocampus_gaussian_dp", "needs a model of each site that may leave as it is"),
        ("hippocampus_splitavg", "needs a model of each site that may leave as it is"),
    ],
)
def test_a_job_without_personal_models_that_may_leave_is_refused(name, said):
    job = read_job(JOBS / name)
    job.set("workflow.personal_models", True)
    with pytest.raises(ConfigurationError, match=f"workflow.personal_models {said}"):
        job.check()

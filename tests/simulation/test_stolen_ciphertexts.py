"""A server that keeps the ciphertext of one site, and sends it to the others as the model of a job: nobody reads it.

Executors, filters and guard are those of real sites, and the attacks go through all of them; every day in one process,
and one of them with FLARE's own processes where time is no matter.
"""

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from cheating_server import Cheating, Reading
from fedseg.errors import FedsegError
from fedseg.jobs import allowed_components
from fedseg.jobs.job import read_job
from fedseg.simulation.in_process import simulate_in_process
from fedseg.simulation.run_folder import prepare_output
from fedseg.simulation.simulator import simulate
from fedseg.site.forged_sums import FILE
from tiny import PLAN, make_sites

ROOT = Path(__file__).parents[2]
SITES = {"alpha": (2, 1), "beta": (2, 1), "gamma": (2, 1)}
STOLEN = "stolen"


def encrypted_job(workflow, **arguments):
    job = read_job(ROOT / "jobs" / "hippocampus_he")
    for key in ("task", "network", "training"):
        job.set(key, PLAN[key])
    job.workflow.clear()
    job.server["workflows"][0] = {"path": f"{workflow.__module__}.{workflow.__name__}", "args": arguments}
    return job


def run(job, folder, name, start=simulate_in_process):
    """Run a job to its end, or until it fails; the keys are those of the run ``stolen`` where there is one."""
    prepare_output(folder / name, False)
    for key in (folder / STOLEN / "state").glob("*/*_context.tenseal"):
        place = folder / name / "state" / key.parent.name
        place.mkdir(parents=True)
        shutil.copy(key, place)
    events = []
    with suppress(FedsegError):  # the last event tells how the run ended
        start(job, folder / "data", folder / name, sorted(SITES), events.append)
    return events


def refusals(folder):
    """What each site refused, and how many results it sent of training and of ciphertexts."""
    found = {}
    for site in SITES:
        (path,) = (folder / "state" / site).glob("*/record.jsonl")
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        sent = sum(line["kind"] == "sent" and line["task"] != "prepare" for line in lines)
        found[site] = sent, {line["text"] for line in lines if line["kind"] == "refused"}
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An honest run, whose model is left in a file."""
    folder = tmp_path_factory.mktemp("stolen")
    make_sites(folder / "data", SITES)
    events = run(encrypted_job(Cheating, num_rounds=2, file=str(folder / "model")), folder, STOLEN)
    assert events[-1]["event"] == "finished"
    assert (folder / "model").is_file()
    return folder


def test_a_job_whose_updates_are_not_encrypted_gets_nothing_decrypted(folder):
    job = encrypted_job(Reading, num_rounds=1, file=str(folder / "model"))
    job.client["task_result_filters"] = []
    run(job, folder, "plain")
    for sent, texts in refusals(folder / "plain").values():
        assert (sent, len(texts)) == (0, 1)
        assert "lets updates out that are not encrypted" in texts.pop()


@pytest.mark.parametrize(
    ("how", "rounds", "forged", "said"),
    [
        ("lone", 1, True, "not what the sites of that round encrypted"),
        ("own", 1, False, "the updates of 1 site(s)"),
        ("earlier", 2, True, "not what the sites of that round encrypted"),
        ("model", 1, True, "not what the sites of that round encrypted"),
    ],
)
def test_a_job_that_encrypts_gets_nothing_decrypted_but_sums_of_its_own(folder, how, rounds, forged, said):
    given = str(folder / how) if how == "model" else how
    events = run(encrypted_job(Cheating, num_rounds=3, how=given), folder, how + "-cheated")
    assert events[-1]["event"] == "failed"
    for site, (sent, texts) in refusals(folder / f"{how}-cheated").items():
        # Of each honest round a report and a ciphertext.
        assert (sent, len(texts)) == (2 * rounds, 1)
        assert said in texts.pop()
        assert (folder / f"{how}-cheated" / "state" / site / FILE).exists() == forged


@pytest.mark.full
def test_with_flares_own_processes_as_well(folder, monkeypatch):
    monkeypatch.setattr(
        allowed_components, "FLARE_CLASSES", (*allowed_components.FLARE_CLASSES, "cheating_server.Cheating")
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]))
    run(encrypted_job(Cheating, num_rounds=2, how="lone"), folder, "processes", simulate)
    for sent, texts in refusals(folder / "processes").values():
        assert (sent, len(texts)) == (2, 1)
        assert "not what the sites of that round encrypted" in texts.pop()

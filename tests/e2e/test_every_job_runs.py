"""Every job of the repository for one round on provisioned federations of two sites; five of them every day.

Each site has three data sets: phantoms of brain tumours and of pancreas CT, and bright balls in place of hippocampi.
The task of a job stays what it is; patches and networks are made small.
"""

import json
from types import SimpleNamespace

import pytest
from federation_parts import COORDINATOR, POLICY, ROOT, fedseg

import job_kinds
from fedseg.data.datalist import FILE_NAME
from fedseg.data.phantoms.phantoms import make_phantoms
from fedseg.deployment.kits.project_file import HOST, read_project
from fedseg.deployment.kits.storage_folders import place_state
from fedseg.deployment.local.federation import STATE, running
from fedseg.files.digest import model_digest
from fedseg.jobs.job import read_job
from fedseg.models.model_file import read_model
from fedseg.networks.weights import get_weights
from fedseg.privacy.accounting.ledger import Ledger
from fedseg.site.profile import CONTEXT_FILE
from fedseg.training.methods.personal_model import PERSONAL_MODEL
from fedseg.training.split.halves import plan_cost
from split_bytes import step_bytes, turn_bytes
from tiny import PLAN, make_sites

SECONDS, CASES = 600, 3
SITES = ("site-1", "site-2")
PLAIN, ENCRYPTED = "three_hospitals", "three_hospitals_he"
JOBS = [path.name for path in job_kinds.TRAINING]
EVERY_DAY = {
    "hippocampus_gaussian_dp",
    "hippocampus_he",
    "hippocampus_splitavg",
}
PATCHES = {"brats": [32, 32, 32], "pancreas": [48, 48, 32], "hippocampus": [16, 16, 16]}


def is_encrypted(name):
    return read_job(ROOT / "jobs" / name).server["workflows"][0]["path"].endswith("EncryptedTraining")


def small(name, folder):
    """A job with its own task and method for one round, on small patches and with a small network."""
    job = read_job(ROOT / "jobs" / name)
    job.set("network", {**PLAN["network"], "parts": [part.to_dict() for part in job.plan.network.parts]})
    for key, value in (("local_epochs", 1), ("threads", 1), ("overlap", 0.25)):
        job.set(f"training.{key}", value)
    job.set("task.patch_size", PATCHES[job.plan.task.name])
    job.set("workflow.num_rounds", 1)
    job.check()
    return read_job(job.write(folder / name))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folder of each task's sites; those of phantoms are made when the first job asks for them."""
    folder = tmp_path_factory.mktemp("data")
    make_sites(folder / "hippocampus", dict.fromkeys(SITES, (CASES - 1, 1)))
    return folder


def make_data(task, folder):
    if not (folder / task).is_dir():
        make_phantoms(task, len(SITES), CASES, folder / task)


@pytest.fixture(scope="module")
def federation(request, data, tmp_path_factory):
    """A running federation of the template that the test names."""
    folder = tmp_path_factory.mktemp(request.param)
    out = folder / "out"
    for each in (out, folder / "jobs", folder / "runs"):
        each.mkdir()
    project = read_project(ROOT / "workspace_templates" / request.param)
    with running(project, POLICY, data / "hippocampus", SITES, out) as local:
        kits = {kit.name: kit.folder for kit in local.federation.kits}
        for site in SITES:
            lists = {task: str(data / task / site / FILE_NAME) for task in PATCHES}
            place_state(
                kits[site],
                out / STATE / site,
                datasets=lists,
                policy=dict.fromkeys(("features", "peers", "submit_model", "give_personal_model", "statistics"), True),
            )
        with local.coordinator(SECONDS) as coordinator:
            yield SimpleNamespace(folder=folder, out=out, kits=kits, local=local, coordinator=coordinator)


@pytest.fixture
def finished(federation, data, name):
    """A job that has run and was fetched: its summary, its folder, and the job itself."""
    job, out = small(name, federation.folder / "jobs"), federation.folder / "runs" / name
    make_data(job.plan.task.name, data)
    job_id = federation.coordinator.submit(job)
    status = federation.coordinator.wait(job_id, timeout=SECONDS)
    fetched = fedseg("fetch", job_id, "--kit", federation.kits[COORDINATOR], "--out", out, "--no-probe")
    assert status == "FINISHED:COMPLETED", f"{fetched.err}\n{federation.local.tails()}"
    assert fetched.code == 0, fetched.err
    return SimpleNamespace(job=job, out=out, summary=json.loads((out / "report" / "summary.json").read_text("utf-8")))


def bytes_of_weights(job):
    plan = job.plan
    network = plan.build_network()
    return sum(array.nbytes for array in get_weights(network).values())


def models_of(finished):
    """The file of the last model; of each site's own where the parts of a network stay apart."""
    final = finished.summary["final"]
    return [finished.out / file for file in final.get("models", {SITES[0]: final["model"]}).values()]


def is_whole(finished):
    """What holds for every job."""
    summary = finished.summary
    assert summary["events"] == []
    (entry,) = summary["rounds"]
    # A buffered round ends before all have answered.
    assert entry["sites"]
    waiting = [site for site, why in entry["selection"].items() if why == "waits for its turn"]
    assert sorted({*entry["sites"], *entry["notes"].get("in_flight", {}), *waiting}) == list(SITES)
    weights = entry["weights"]
    # A median or trimmed mean weighs nobody, and a model that is carried from site to site neither.
    weighs = entry["rule"]["name"] not in (
        "CoordinateMedian",
        "TrimmedMean",
        "CyclicWeightTransfer",
        "IncrementalLearning",
    )
    assert sum(weights.values()) == pytest.approx(1) if weighs else weights == {}
    assert sorted({*summary["final"]["sites"], *summary["final"].get("withheld", [])}) == list(SITES)
    assert all(file.is_file() for file in models_of(finished))
    assert (finished.out / "report" / "report.html").is_file()


def marked(encrypted):
    names = [name for name in JOBS if is_encrypted(name) == encrypted]
    return [pytest.param(name, marks=() if name in EVERY_DAY else pytest.mark.full) for name in names]


# The scope is said, since pytest would otherwise start a federation for each job.
@pytest.mark.parametrize("federation", [PLAIN], indirect=True, scope="module")
@pytest.mark.parametrize("name", marked(encrypted=False))
def test_a_job_runs_on_a_provisioned_federation(federation, finished, name):
    is_whole(finished)
    for file in models_of(finished):
        assert read_model(file).build() is not None
    (sites,) = (entry["sites"] for entry in finished.summary["rounds"])
    if name in KINDS:
        KINDS[name](federation, finished, sites)


@pytest.mark.parametrize("federation", [ENCRYPTED], indirect=True, scope="module")
@pytest.mark.parametrize("name", marked(encrypted=True))
def test_an_encrypted_job_runs_and_a_site_opens_its_model(federation, finished, name):
    is_whole(finished)
    model = finished.out / finished.summary["final"]["model"]
    assert model.suffix == ".encrypted"
    server = [path for place in (federation.out / "server", federation.kits[HOST]) for path in place.rglob("*")]
    assert not [path for path in server if path.name in (CONTEXT_FILE, "last.safetensors")]
    context = federation.kits[SITES[0]] / "startup" / CONTEXT_FILE
    opened = federation.folder / f"{name}.safetensors"
    assert fedseg("decrypt-model", model, "--context", context, "--out", opened).code == 0
    assert read_model(opened).notes["round"] == 0


def sends_two_models(federation, finished, sites):
    """SCAFFOLD's control variates travel both ways, one for each parameter (buffers have none)."""
    weights = bytes_of_weights(finished.job)
    for site in sites.values():
        for way in ("bytes_up", "bytes_down"):
            assert 1.9 * weights < site[way] < 2 * weights + 16384


def sends_a_tenth(federation, finished, sites):
    """A tenth of the values, each with its place."""
    for site in sites.values():
        assert site["bytes_up"] < 0.35 * site["bytes_down"]


def is_in_the_ledgers(federation, finished, sites):
    """What each site reports is what its ledger counts for the patients of this data set, and no others."""
    assert finished.summary["privacy"]["total"]["mechanism"] == "gaussian"
    assert all(told["epsilon"] > 0 for told in sites.values())
    for site, told in sites.items():
        ledger = Ledger(federation.out / STATE / site / "ledger")
        (release,) = ledger.history("hippocampus")
        assert (release["round"], release["run_id"]) == (0, finished.summary["run_id"])
        assert ledger.spent(1e-5, dataset="hippocampus").epsilon == pytest.approx(told["epsilon"])


def leaves_a_model_for_each_site(federation, finished, sites):
    """And as many bytes of features and gradients as were foretold."""
    assert sorted(finished.summary["final"]["models"]) == list(SITES)
    plan, (entry,) = finished.job.plan, finished.summary["rounds"]
    assert entry["iterations"] == 1
    foretold = step_bytes(plan_cost(plan, plan.split), plan.split, CASES - 1)
    for up, down in entry["bytes_in_iterations"].values():
        assert foretold.up < up < 1.05 * foretold.up + 1024
        assert foretold.down < down < 1.05 * foretold.down + 1024


def leaves_one_model_after_a_turn_of_each_site(federation, finished, sites):
    """And as many bytes as were foretold, the part of the network that is handed on included."""
    plan, (entry,) = finished.job.plan, finished.summary["rounds"]
    assert entry["iterations"] == len(SITES)
    cost = plan_cost(plan, plan.split)
    step, turn = step_bytes(cost, plan.split, CASES - 1), turn_bytes(cost, plan.split)
    for up, down in entry["bytes_in_iterations"].values():
        assert step.up + turn.up < up < 1.05 * (step.up + turn.up) + 4096
        assert step.down + turn.down < down < 1.05 * (step.down + turn.down) + 4096


def keeps_personal_models(federation, finished, sites):
    """Each site has its own on its disk, scored beside the global one; nothing more than of FedAvg leaves."""
    weights, final = bytes_of_weights(finished.job), finished.summary["final"]["sites"]
    for site, told in sites.items():
        personal = final[site]["personal"]
        assert personal["cases"] == final[site]["cases"] > 0
        assert told["bytes_up"] < 1.1 * weights + 16384
        folder = federation.out / STATE / site / finished.summary["run_id"]
        model = read_model(folder / PERSONAL_MODEL)
        assert model.notes["round"] == 0
    page = (finished.out / "report" / "report.html").read_text("utf-8")
    assert "Personal models" in page


def gives_personal_models(federation, finished, sites):
    """The run has those of both sites as files, which are the very ones that lie at the sites."""
    given = finished.summary["personal_models"]
    assert given == {site: f"models/{site}-personal.safetensors" for site in SITES}
    for site, file in given.items():
        kept = read_model(federation.out / STATE / site / finished.summary["run_id"] / PERSONAL_MODEL)
        assert model_digest(read_model(finished.out / file).weights) == model_digest(kept.weights)


KINDS = {
    "brats_iop_fl": keeps_personal_models,
    "brats_iop_fl_outside": gives_personal_models,
    "hippocampus_iop_fl_outside": gives_personal_models,
    "hippocampus_ditto": keeps_personal_models,
    "hippocampus_iop_fl": keeps_personal_models,
    "hippocampus_splitavg": leaves_a_model_for_each_site,
    "hippocampus_splitnn": leaves_one_model_after_a_turn_of_each_site,
    "brats_scaffold": sends_two_models,
    "hippocampus_partial": sends_a_tenth,
    "hippocampus_gaussian_dp": is_in_the_ledgers,
}

"""Models that a site has for itself, of every method that makes one: kept, scored, usable, and nowhere else."""

import json

import numpy as np
import pytest
from nvflare.apis.dxo import DataKind, from_shareable
from nvflare.apis.fl_constant import ReturnCode

import job_kinds
from fedseg.cli import main
from fedseg.contract.shapes import private_arrays
from fedseg.data.datalist import read_datalist
from fedseg.filters.layers import layers_of_sites
from fedseg.jobs.components import build_component
from fedseg.jobs.job import read_job
from fedseg.models.model_file import read_model
from fedseg.networks.parts.head_calibration import calibration_of
from fedseg.networks.weights import get_weights
from fedseg.simulation.in_process import simulate_in_process
from fedseg.simulation.results import build_summary
from fedseg.simulation.run_folder import prepare_output
from fedseg.site.state import SiteState
from fedseg.training.methods.lc_fed import LCFed
from fedseg.training.methods.personal_model import PersonalModel
from fedseg.training.trainer import SiteTrainer, TrainerSetup
from in_process_runs import answers_of_sites
from tiny import PLAN, make_sites

SIZES = {"alpha": (3, 1), "beta": (2, 1)}


def hooks_of(job):
    components = {part["id"]: part for part in job.client.get("components", [])}
    names = job.client["executors"][0]["executor"].get("args", {}).get("hooks", [])
    return [build_component({"path": components[n]["path"], "args": components[n].get("args", {})}) for n in names]


def own_arrays(job):
    """Names of the arrays that filters, or parts of the network, leave to each site."""
    return layers_of_sites(job.client, job.plan) | private_arrays(job.plan)


def handed_on(job):
    """Names of those of them that other sites get, since the method is about them."""
    if not any(isinstance(hook, LCFed) for hook in hooks_of(job)):
        return set()
    place = calibration_of(job.plan.build_network()).place
    return {f"{place}.weight", f"{place}.bias"}


def kinds_of(job):
    """Which models of its own each site of a job has."""
    found = {"own"} if own_arrays(job) else set()
    found |= {"personal"} if any(isinstance(hook, PersonalModel) for hook in hooks_of(job)) else set()
    return found | ({"fine_tuned"} if job.workflow.get("fine_tune") else set())


def one_of_each_method():
    """Jobs whose sites have models of their own; of a method with jobs for several tasks the smallest."""
    found = {}
    for folder in job_kinds.TRAINING:
        task, _, method = folder.name.partition("_")
        if kinds_of(read_job(folder)) and (method not in found or task == "hippocampus"):
            found[method] = folder
    return [found[method] for method in sorted(found)]


OWN = one_of_each_method()


def test_every_method_that_is_known_to_make_one_is_here():
    methods = {folder.name.partition("_")[2] for folder in OWN}
    known = {"ditto", "iop_fl", "iop_fl_outside", "apfl", "pfedme", "prrfl", "fedbn", "flop", "lg_fed", "fedper"}
    known |= {"fedrep", "fine_tune", "moe", "lcfed"}
    assert known <= methods


def run(folder, data, out, monkeypatch):
    """Run a job with an evaluation across sites; its job, its summary, and every answer that has left a site."""
    job = read_job(folder)
    parts = {key: value for key, value in job.declaration.get("network", {}).items() if key == "parts"}
    job.set("task", PLAN["task"])
    job.set("network", {**PLAN["network"], **parts})
    job.set("training.local_epochs", 1)
    job.set("workflow.num_rounds", 2)
    job.set("workflow.cross_site", True)
    left = answers_of_sites(monkeypatch)
    prepare_output(out, False)
    finished = simulate_in_process(job, data, out, sorted(SIZES), lambda event: None)
    return job, build_summary(job, finished, out / "state"), left


def arrays_that_left(left, site):
    for name, answer in left:
        if name == site and answer.get_return_code(ReturnCode.OK) == ReturnCode.OK and "DXO" in answer:
            dxo = from_shareable(answer)
            if dxo.data_kind in (DataKind.WEIGHTS, DataKind.WEIGHT_DIFF):
                yield from dxo.data.items()


def holds(arrays, name, value):
    """Whether an array is among those that left, whatever it was called there."""
    return any(np.shape(a) == value.shape and np.array_equal(np.asarray(a, value.dtype), value) for _, a in arrays)


@pytest.mark.parametrize("folder", OWN, ids=lambda folder: folder.name)
def test_it_is_kept_and_scored_at_home_and_leaves_only_a_site_that_gives_it(folder, tmp_path, monkeypatch, capsys):
    """Alpha gives everything; beta's policy keeps its personal model."""
    data = make_sites(tmp_path / "data", SIZES)
    (data / "beta" / "policy.json").write_text(json.dumps({"submit_model": True, "statistics": True}))
    job, summary, left = run(folder, data, tmp_path / "run", monkeypatch)
    kinds = kinds_of(job)
    final = summary["final"]
    assert {site: set(files) for site, files in final["site_models"].items()} == dict.fromkeys(SIZES, kinds)
    models = {
        (site, kind): read_model(tmp_path / "run" / file)
        for site, files in final["site_models"].items()
        for kind, file in files.items()
    }
    private, handed = own_arrays(job), handed_on(job)
    for kind in kinds:
        one, other = (models[site, kind].weights for site in SIZES)
        assert any(not np.array_equal(one[name], other[name]) for name in one)
    check_use(final, models, data, tmp_path, capsys)
    check_restart(job, summary, models, data, tmp_path / "run" / "state", private)
    check_wire(left, models, private, set(job.plan.build_network().state_dict()), handed)
    check_matrix(summary, kinds)


def check_use(final, models, data, tmp_path, capsys):
    """The files are models for ``fedseg evaluate`` and ``fedseg predict``, and score as the site has scored them."""
    task = tmp_path / "task.json"
    task.write_text(json.dumps(PLAN["task"]))
    (kind,) = {kind for _, kind in models} if len({kind for _, kind in models}) == 1 else {"personal"}
    file, out = tmp_path / "run" / final["site_models"]["alpha"][kind], tmp_path / "evaluated"
    options = ["--task", str(task), "--data", str(data / "alpha")]
    assert main(["evaluate", str(file), *options, "--out", str(out)]) == 0
    assert "as the run began" not in " ".join(capsys.readouterr().err.split())
    site = final["sites"]["alpha"]
    scored = site if kind == "own" else site[kind]
    assert json.loads((out / "evaluation.json").read_text())["mean"]["dice"] == pytest.approx(scored["dice"])
    assert main(["predict", str(file), *options, "--out", str(tmp_path / "masks")]) == 0
    assert list((tmp_path / "masks").glob("*.nii.gz"))


def check_restart(job, summary, models, data, state, private):
    """A site whose process is started anew has the same models."""
    for site in SIZES:
        setup = TrainerSetup(SiteState(state / site, summary["run_id"]), hooks=hooks_of(job), private=private)
        trainer = SiteTrainer(job.plan, site, read_datalist(data / site), setup)
        if (site, "personal") in models:
            found = trainer.personal_model()
            assert all(np.array_equal(value, found[name]) for name, value in models[site, "personal"].weights.items())
        if (site, "own") in models:
            found = trainer.own_model(get_weights(job.plan.build_network()))
            assert all(np.array_equal(models[site, "own"].weights[name], found[name]) for name in private)


def check_wire(left, models, private, shared, handed):
    """Private arrays leave no site, by name or by value; other models only a site that gives them.

    Of a personal model of a larger network that is what the global model has not; the rest is the site's last model.
    What a method hands on to other sites leaves as that, and never as a part of a model.
    """
    for (site, kind), model in models.items():
        sent = list(arrays_that_left(left, site))
        assert sent
        if kind == "own":
            assert not {name for name, _ in sent} & private
        names = private - handed if kind == "own" else set(model.weights) - shared or set(model.weights)
        own = {name: value for name, value in model.weights.items() if value.dtype.kind == "f" and name in names}
        given = kind == "personal" and site == "alpha"
        assert all(holds(sent, name, value) is given for name, value in own.items() if value.size > 1), (site, kind)


def check_matrix(summary, kinds):
    """The personal model of a site that gives it is scored at all sites; of the other it is said why not."""
    matrix = summary["cross_site_evaluation"]
    rows = {(row["kind"], row["of"]): row for row in matrix["models"]}
    if "personal" not in kinds:
        assert not any(kind == "personal" for kind, _ in rows)
        return
    given, kept = rows["personal", "alpha"], rows["personal", "beta"]
    assert all("dice" in matrix["cells"][given["name"]][site] for site in SIZES)
    assert "submit_personal_model" in kept["missing"]

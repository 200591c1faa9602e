"""The workflow: trainings without each site, on scripted sites and on real ones in one process."""

import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from fedseg.aggregators.fedavg import FedAvg
from fedseg.data.datalist import read_datalist
from fedseg.errors import AbortedError, ConfigurationError, DataError, RefusalError
from fedseg.evaluation.cross_site import CROSS_SITE, matrix_of
from fedseg.evaluation.report.page import write_report
from fedseg.jobs.job import read_job
from fedseg.jobs.scored_models import models_in
from fedseg.models.model_file import read_model, write_model
from fedseg.networks.weights import get_weights
from fedseg.privacy.accounting.ledger import Ledger
from fedseg.provenance.audit import audit
from fedseg.simulation.in_process import InProcessFederation, simulate_in_process
from fedseg.simulation.results import build_summary
from fedseg.simulation.run_folder import prepare_output
from fedseg.training.trainer import SiteTrainer
from fedseg.workflows.cross_site_evaluation import CrossSiteEvaluation
from scripted_sites import ScriptedSites, start
from tiny import PLAN, TASK, make_sites
from workflows.run.test_cross_site import KIND, good

ROOT = Path(__file__).parents[2]
SITES = {"alpha": (3, 1), "beta": (2, 1), "gamma": (2, 1)}


def tiny_job(name="hippocampus_cross_site_evaluation", **settings):
    job = read_job(ROOT / "jobs" / name)
    for key in ("task", "network", "training"):
        job.set(key, PLAN[key])
    for key, value in {"num_rounds": 1, **settings}.items():
        job.set(f"workflow.{key}", value)
    return job


def simulated(job, data, out, sites=tuple(SITES)):
    """The summary of a run in one process, and its matrix."""
    job.check()
    prepare_output(out, False)
    summary = build_summary(job, simulate_in_process(job, data, out, sorted(sites), lambda event: None), out / "state")
    (out / "report").mkdir(exist_ok=True)
    (out / "report" / "summary.json").write_text(json.dumps(summary), "utf-8")
    return summary, matrix_of(job.plan.objective, summary[CROSS_SITE])


# ------------------------------------------------------------------ decisions


def scripted(folder, script=good, names="abc", **arguments):
    workflow = CrossSiteEvaluation(**{"num_rounds": 2, "aggregator": FedAvg(), "run_id": "run", **arguments})
    return start(workflow, ScriptedSites(script, names), folder)


def answers(task, site, message):
    """As ``good``, with sites that score only where the job asks for it."""
    answer = good(task, site, message)
    if task == "prepare" and site in (message.meta.get("fedseg_evaluate") or ()):
        answer.metrics = {"evaluates": True}
    return answer


def test_a_training_without_each_site_follows_the_one_with_all(tmp_path):
    run = scripted(tmp_path, answers)
    run.train()
    trained = [sites for task, sites in run.state.sites.tasks if task == "train"]
    assert trained == [("a", "b", "c")] * 2 + [("b", "c")] * 2 + [("a", "c")] * 2 + [("a", "b")] * 2
    matrix = matrix_of(KIND, json.loads((tmp_path / "results.json").read_text("utf-8"))[CROSS_SITE])
    rows = {model.of: model for model in matrix.models if model.kind == "without"}
    assert sorted(rows) == ["a", "b", "c"]
    assert len({model.digest for model in rows.values()}) == 3
    assert matrix.cells["without-b"]["b"].score("dice") == 0.5
    assert run.state.sites.run_id == "run"
    assert (tmp_path / "without-a" / "last.safetensors").is_file()


def test_a_training_that_fails_without_a_site_has_a_row_that_says_why(tmp_path):
    def script(task, site, message):
        if task == "train" and site == "c" and "without-a" in message.meta["fedseg_run_id"]:
            return RefusalError("loss", "The loss is not finite.")
        return answers(task, site, message)

    run = scripted(tmp_path, script, min_sites=2)
    run.train()
    matrix = matrix_of(KIND, json.loads((tmp_path / "results.json").read_text("utf-8"))[CROSS_SITE])
    rows = {model.of: model.missing for model in matrix.models if model.kind == "without"}
    assert "1 site(s) answered in round 1, but 2 must" in rows["a"]
    assert rows["b"] == rows["c"] == ""


def test_a_job_that_asks_for_all_sites_asks_for_all_others_where_one_is_left_out(tmp_path):
    run = scripted(tmp_path, answers, min_sites=3, num_rounds=1)
    run.train()
    matrix = matrix_of(KIND, json.loads((tmp_path / "results.json").read_text("utf-8"))[CROSS_SITE])
    rows = {model.of: model.missing for model in matrix.models if model.kind == "without"}
    assert rows == {"a": "", "b": "", "c": ""}


def test_who_is_left_out_is_told_so_with_every_model_and_may_have_forgotten_it(tmp_path):
    told = {}

    def script(task, site, message):
        if task == "validate" and "-without-" in message.meta["fedseg_run_id"]:
            told.setdefault(message.meta["fedseg_run_id"][-1], []).append(message.meta["fedseg_evaluate"])
        return answers(task, site, message)

    scripted(tmp_path, script, num_rounds=1).train()
    assert sorted(told) == ["a", "b", "c"]
    assert all(each == [site] for site, given in told.items() for each in given)


def learns(task, site, message):
    """As ``answers``, with updates that differ by site and round and follow from the received model."""
    answer = answers(task, site, message)
    if task == "train":
        draw = np.random.default_rng([ord(site), message.current_round])
        answer.params = {
            name: (0.1 * w + draw.normal(0, 0.01, w.shape)).astype(np.float32) for name, w in message.params.items()
        }
    return answer


def matrix_after(run, folder):
    """Everything that a finished run says of its models, and the models of all trainings."""
    content = json.loads((folder / "results.json").read_text("utf-8"))[CROSS_SITE]
    models = {path.parent.name: path.read_bytes() for path in sorted(folder.glob("without-*/last.safetensors"))}
    return content, models, {name: value.tobytes() for name, value in run.state.model.weights.items()}


RUNS = ("run", "run-without-a", "run-without-b", "run-without-c")
STOPS = {
    "in a round of the training with all": ("train", "run", 2),
    "in the last evaluation of all": ("validate", "run", None),
    "in the first round without the first site": ("train", "run-without-a", 0),
    "in a later round without the second site": ("train", "run-without-b", 2),
    "in the evaluation without the last site": ("validate", "run-without-c", None),
}


@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS)
def test_a_stopped_run_goes_on_with_the_training_at_which_it_was_to_the_same_bits(tmp_path, stop):
    whole = scripted(tmp_path / "whole", learns, num_rounds=3)
    whole.train()
    trained = []

    def dies(task, site, message):
        told = message.meta["fedseg_run_id"]
        if (task, told, message.current_round if task == "train" else None) == stop:
            raise AbortedError("stopped")
        return goes_on(task, site, message)

    def goes_on(task, site, message):
        if task == "train":
            trained.append((message.meta["fedseg_run_id"], message.current_round, site))
        return learns(task, site, message)

    first = scripted(tmp_path / "stopped", dies, num_rounds=3)
    with pytest.raises(AbortedError):
        first.train()
    first.state.checkpoints.unlock()  # as the end of its process does
    again = scripted(tmp_path / "stopped", goes_on, num_rounds=3, resume=True)
    again.train()
    assert matrix_after(again, tmp_path / "stopped") == matrix_after(whole, tmp_path / "whole")
    assert len(matrix_after(again, tmp_path / "stopped")[1]) == 3
    # Every site trains in every round of its four trainings once, but for those of the round in which the run stopped.
    finished = [entry for entry in trained if entry[:2] != stop[1:]]
    assert sorted(finished) == sorted(set(finished))
    expected = {(run, number, site) for run in RUNS for number in range(3) for site in "abc" if not run.endswith(site)}
    assert set(trained) == expected


def test_each_training_begins_with_parts_of_its_own(tmp_path):
    run = scripted(tmp_path, answers)
    models = [run._parts()[0] for _ in range(2)]
    assert models[0] is not models[1]
    assert models[0].aggregator is not models[1].aggregator


def test_a_single_site_is_not_left_out(tmp_path):
    run = scripted(tmp_path, answers, names="a")
    run.train()
    content = json.loads((tmp_path / "results.json").read_text("utf-8"))[CROSS_SITE]
    assert [model["kind"] for model in content["models"]] == ["last", "best", "local"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"cross_site": False}, r"workflow.cross_site is False, but must be true, or left out"),
        ({"leave_one_out": "yes"}, r"workflow.leave_one_out is 'yes', but must be true or false"),
        ({"aggregator": "FedAvg"}, r"workflow.aggregator"),
        ({"num_rounds": -1}, r"workflow.num_rounds is -1"),
    ],
)
def test_wrong_arguments_are_refused(wrong, said):
    with pytest.raises(ConfigurationError, match=said):
        CrossSiteEvaluation(**{"num_rounds": 1, "aggregator": FedAvg(), **wrong})


# ------------------------------------------------------------------ whole runs in one process


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three sites that train, and one that scores only and has nothing but test cases."""
    folder = make_sites(tmp_path_factory.mktemp("data"), SITES, with_test=True)
    make_sites(folder, {"delta": (0, 0)}, with_test=True)
    (folder / "delta" / "policy.json").write_text(json.dumps({"evaluate_only": True}))
    for site, rules in (("alpha", {"submit_model": True}), ("beta", {"min_scored_cases": 2, "submit_model": True})):
        (folder / site / "policy.json").write_text(json.dumps(rules))
    return folder


@contextmanager
def opened_files(folder):
    """The files below a folder that this process opens meanwhile."""
    opened, recording = set(), [True]

    def note(event, arguments):
        if recording and event == "open" and isinstance(arguments[0], str | os.PathLike):
            path = Path(arguments[0])
            if path.is_relative_to(folder):
                opened.add(path)

    sys.addaudithook(note)  # no hook can be taken away again
    yield opened
    recording.clear()


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """One run with everything."""
    out = tmp_path_factory.mktemp("run") / "out"
    job = tiny_job()
    job.models = {
        "old": write_model(out.parent / "old.safetensors", job.plan, get_weights(job.plan.build_network()), 0)
    }
    summary, matrix = simulated(job, data, out, (*SITES, "delta"))
    return job, out, summary, matrix


def test_the_whole_matrix_is_filled_where_sites_allow_it(run):
    _, _, summary, matrix = run
    rows = {model.name: model for model in matrix.ordered()}
    assert list(rows) == [
        "last", "best", "local-alpha", "local-beta", "local-gamma",
        "without-alpha", "without-beta", "without-gamma", "file-old",
    ]  # fmt: skip
    assert rows["local-gamma"].missing == "", "a site without a policy gives its model"
    assert matrix.evaluators == ["delta"]
    for name in rows:
        for site in ("alpha", "gamma", "delta"):
            assert matrix.cells[name][site].score("dice") is not None, (name, site)
    assert summary["evaluators"] == ["delta"]
    assert "delta" not in summary["final"]["sites"]


def test_a_site_below_its_minimum_is_withheld_by_name(run):
    _, out, _, matrix = run
    assert matrix.withheld() == {"beta": "fewer than 2 cases"}
    assert "beta: withheld: fewer than 2 cases." in write_report(out).read_text("utf-8")


def test_a_cell_is_what_scoring_the_model_on_the_sites_cases_gives(run, data):
    job, out, _, matrix = run
    plan = job.plan
    for name, path in (("last", out / "models" / "last.safetensors"), ("file-old", out.parent / "old.safetensors")):
        for site in ("alpha", "delta"):
            trainer = SiteTrainer(plan, site, read_datalist(data / site))
            scored = trainer.validate(read_model(path).weights, "test", distances=True)
            expected = plan.objective.summarise([case.score for case in scored])
            assert matrix.cells[name][site].score("dice") == pytest.approx(expected["dice"]["mean"], abs=1e-6)


def test_a_training_without_a_site_is_that_of_the_others_alone(run, data, tmp_path):
    _, _, _, matrix = run
    others = {site: read_datalist(data / site) for site in ("beta", "gamma")}
    alone = InProcessFederation(tiny_job("hippocampus_fedavg"), others)
    alone.run()
    trainer = SiteTrainer(alone.plan, "alpha", read_datalist(data / "alpha"))
    scored = trainer.validate(alone.model.weights, "test")
    expected = alone.plan.objective.summarise([case.score for case in scored])
    assert matrix.cells["without-alpha"]["alpha"].score("dice") == pytest.approx(expected["dice"]["mean"], abs=1e-6)


def test_who_scores_only_never_trains(run):
    _, out, summary, _ = run
    assert not list((out / "state" / "delta").rglob("round-*"))
    run_id = summary["run_id"]
    for site in SITES:
        folder = out / "state" / site / f"{run_id}-without-{site}"
        kinds = [json.loads(line)["kind"] for line in (folder / "record.jsonl").read_text("utf-8").splitlines()]
        assert {"scored", "accepted"} <= set(kinds) <= {"opened", "accepted", "sent", "scored"}
        assert not list(folder.glob("round-*"))


def test_in_a_run_without_a_site_no_training_file_of_it_is_opened(data, tmp_path):
    """By the files that are opened: the site that is left out reads those alone on which it scores."""
    with opened_files(data) as opened:
        simulated(tiny_job("hippocampus_fedavg", evaluate_only=["gamma"]), data, tmp_path / "out")
    own = {path for path in opened if path.is_relative_to(data / "gamma" / "images")}
    assert own == {file for case in read_datalist(data / "gamma").test for file in case.files}
    assert {file for case in read_datalist(data / "alpha").training for file in case.files} <= opened


def test_the_records_of_server_and_sites_agree(run):
    _, out, _, _ = run
    findings = audit([out])
    assert [finding.text for finding in findings if not finding.good] == []
    assert any("model(s) scored are models of the run" in finding.text for finding in findings)


def test_every_release_without_a_guarantee_is_in_the_ledgers(run):
    _, out, _, _ = run
    ledgers = {site: Ledger(out / "state" / site / "ledger", True) for site in ("alpha", "beta", "delta")}
    whats = {site: [e["what"] for e in ledger.history("tiny", guaranteed=False)] for site, ledger in ledgers.items()}
    assert whats["alpha"].count("model") == 1
    assert set(whats["delta"]) == {"scores"}
    assert "scores" not in whats["beta"], "nothing was told"


# ------------------------------------------------------------------ bad inputs of a job


def test_a_job_names_what_is_wrong_with_its_models(tmp_path):
    plan = tiny_job().plan
    fits = write_model(tmp_path / "good" / "fits.safetensors", plan, get_weights(plan.build_network()), 0)
    other = tiny_job()
    other.set("task", {**TASK, "channels": ["z"]})
    strange = write_model(tmp_path / "x.safetensors", other.plan, get_weights(other.plan.build_network()), 0)
    for models, settings, kind, said in (
        ({"x": strange}, {}, DataError, "x.safetensors was made for z to"),
        ({"x": tmp_path / "gone.safetensors"}, {}, DataError, "does not exist"),
        ({}, {"num_rounds": 0}, ConfigurationError, "models of the job is missing"),
    ):
        job = tiny_job(**settings)
        job.models = models
        with pytest.raises(kind, match=said):
            job.check()
    job = tiny_job("hippocampus_fedavg")
    job.models = {"fits": fits}
    with pytest.raises(ConfigurationError, match=r"models of the job .*workflow.cross_site"):
        job.check()
    job.set("workflow.cross_site", True)
    job.check()
    again = read_job(job.write(tmp_path / "written"))
    assert list(again.models) == ["fits"]
    assert np.array_equal(*(next(iter(read_model(path).weights.values())) for path in (fits, again.models["fits"])))


def test_a_folder_of_models_is_checked_before_it_is_used(tmp_path):
    from fedseg.errors import UsageError

    with pytest.raises(UsageError, match="is no folder"):
        models_in(tmp_path / "gone")
    with pytest.raises(UsageError, match="has no model file"):
        models_in(tmp_path)
    (tmp_path / "a model.safetensors").touch()
    with pytest.raises(ConfigurationError, match="Rename the file"):
        models_in(tmp_path)
    (tmp_path / "a model.safetensors").rename(tmp_path / "model.safetensors")
    assert list(models_in(tmp_path)) == ["model"]


@pytest.mark.parametrize("name", ["hippocampus_gaussian_dp", "hippocampus_he", "hippocampus_splitavg"])
def test_what_cannot_be_private_is_refused_with_its_reason(name):
    job = read_job(ROOT / "jobs" / name)
    job.set("workflow.cross_site", True)
    with pytest.raises(ConfigurationError, match=r"cross_site needs a model of each site that may leave as it is"):
        job.check()

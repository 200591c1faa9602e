"""The evaluation across sites with answers handed to it directly: who is asked for what, and what a cell says."""

import json

import numpy as np
import pytest
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from fedseg.aggregators.fedavg import FedAvg
from fedseg.contract.plan import parse_plan
from fedseg.contract.protocol import AS_IT_IS, EVALUATE, MODEL_NAME, OWN_MODEL
from fedseg.contract.report import SiteReport
from fedseg.errors import ConfigurationError, DataError, FedsegError, RefusalError
from fedseg.evaluation.cross_site import CROSS_SITE, matrix_of
from fedseg.models.model_file import write_model
from fedseg.networks.weights import get_weights
from fedseg.provenance.reading import named_models, read_record
from fedseg.tasks.objective import objective_of
from fedseg.tasks.task import parse_task
from fedseg.workflows.federated_training import FederatedTraining
from fedseg.workflows.run.cross_site import CrossSiteScoring
from fedseg.workflows.run.record import RESULTS_FILE
from fedseg.workflows.run.run_model import RunPlace
from scripted_sites import ScriptedSites, accepted, start
from tiny import PLAN, TASK

KIND = objective_of(parse_task(TASK))
MOVES = {"a": 0.1, "b": 0.2, "c": 0.6}
LEVEL = {"a": 0.9, "b": 0.5, "c": 0.7, "e": 0.6}


def told(dice, cases=2, **more):
    outputs = ("inner", "whole")
    return {
        "split": "test",
        "cases": cases,
        "loss": 0.5,
        "dice": {**dict.fromkeys(outputs, dice), "mean": dice},
        "hd95": dict.fromkeys(outputs, 3.0),
        "defined": dict.fromkeys(outputs, cases),
        "empty": {name: dict.fromkeys(("both", "reference", "prediction"), 0) for name in outputs},
        **more,
    }


def own(site):
    """The last model of a site: the seeded network, moved by what is the site's own."""
    weights = get_weights(parse_plan(PLAN).build_network())
    return {name: value + MOVES[site] if value.dtype == np.float32 else value for name, value in weights.items()}


def good(task, site, message):
    """A site that does all that is asked; ``e`` scores only."""
    if task == "prepare":
        return FLModel(metrics={"evaluates": True}) if site == "e" else accepted(test=2)
    assert site != "e" or task == "validate", "a site that scores only is asked for nothing else"
    if task == "train":
        report = SiteReport(2, 1, 0.9, 0.8, {"inner": 0.5, "whole": 0.5, "mean": 0.5}, 2)
        arrays = {name: np.full_like(w, MOVES[site]) for name, w in message.params.items()}
        return FLModel(params_type=ParamsType.DIFF, params=arrays, meta=report.to_meta())
    if task == "submit_model":
        assert message.meta[OWN_MODEL] == "local"
        return FLModel(params_type=ParamsType.FULL, params=own(site))
    level = LEVEL[site] - (0.2 if message.meta[MODEL_NAME].startswith("local") else 0)
    return FLModel(metrics={"final": told(level), "validation": told(level)})


def evaluated(folder, script=good, names="abc", files=None, **arguments):
    """A whole run with these answers, and its matrix."""
    settings = {"num_rounds": 1, "aggregator": FedAvg(), "run_id": "run", "cross_site": True, **arguments}
    run = start(FederatedTraining(**settings), ScriptedSites(script, names), folder)
    if files is not None:
        run.state.place = RunPlace(folder / "state", folder / "local", models=files)
    run.train()
    results = json.loads((folder / RESULTS_FILE).read_text("utf-8"))
    return run, matrix_of(KIND, results[CROSS_SITE]) if CROSS_SITE in results else None


def asked(run, task):
    return [sites for name, sites in run.state.sites.tasks if name == task]


def test_every_model_is_scored_at_every_site_and_known_scores_are_not_asked_again(tmp_path):
    run, matrix = evaluated(tmp_path, names="abce")
    assert [model.name for model in matrix.ordered()] == ["last", "best", "local-a", "local-b", "local-c"]
    assert matrix.evaluators == ["e"]
    assert list(matrix.sites) == ["b", "c", "a"], "the worst first"
    assert matrix.cells["last"]["e"].score("dice") == 0.6
    assert matrix.cells["local-b"]["a"].score("dice") == pytest.approx(0.7)
    # last and best are one model: the sites that train scored it in the last evaluation, the other one after it.
    assert asked(run, "validate") == [("a", "b", "c"), ("e",), *[("a", "b", "c", "e")] * 3]
    assert asked(run, "submit_model") == [("a", "b", "c")]
    assert [model.same_as for model in matrix.ordered()] == ["", "last", "", "", ""]


def test_the_record_names_each_model_before_it_is_sent(tmp_path):
    run, matrix = evaluated(tmp_path, names="abce")
    names = named_models(read_record(run.state.checkpoints.folder / "record.jsonl"))
    assert {model.digest for model in matrix.models} <= set(names)


def test_models_of_sites_do_not_stay_at_the_server(tmp_path):
    evaluated(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*.safetensors")) == [
        "best.safetensors", "checkpoint-00000.safetensors", "last.safetensors",
    ]  # fmt: skip


def test_a_site_that_refuses_its_model_is_named_in_its_row_and_scores_the_others(tmp_path):
    def script(task, site, message):
        if task == "submit_model" and site == "b":
            return RefusalError("policy", "The site's policy, rule submit_model: this site does not give it.")
        return good(task, site, message)

    _, matrix = evaluated(tmp_path, script)
    row = next(model for model in matrix.models if model.name == "local-b")
    assert row.missing == "policy: The site's policy, rule submit_model: this site does not give it"
    assert {cell.missing for cell in matrix.cells["local-b"].values()} == {row.missing}
    assert matrix.cells["local-a"]["b"].score("dice") == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("kind", "said"),
    [("silence", "did not answer the task validate"), ("nan", "cannot be read"), ("refusal", "data: gone")],
)
def test_a_site_that_drops_out_in_the_middle_is_named_and_its_cells_are_missing(tmp_path, kind, said):
    def script(task, site, message):
        if task == "validate" and site == "c" and message.meta[MODEL_NAME].startswith("local-b"):
            broken = {**told(0.5), "dice": {"inner": float("nan"), "whole": 0.5, "mean": 0.5}}
            bad = FLModel(metrics={"final": broken})
            return {"silence": None, "nan": bad, "refusal": RefusalError("data", "gone.")}[kind]
        return good(task, site, message)

    run, matrix = evaluated(tmp_path, script)
    cell = matrix.cells["local-b"]["c"]
    assert cell.score("dice") is None
    assert said in cell.missing
    assert [event["site"] for event in run.state.events] == ["c"]
    assert matrix.cells["local-b"]["a"].score("dice") == pytest.approx(0.7)
    assert matrix.cells["local-c"]["c"].score("dice") == pytest.approx(0.5), "it is asked again for the next model"


def test_two_sites_with_equal_models_are_scored_once_and_said_to_be_equal(tmp_path):
    def script(task, site, message):
        if task == "submit_model":
            return FLModel(params_type=ParamsType.FULL, params=own("a"))
        return good(task, site, message)

    run, matrix = evaluated(tmp_path, script)
    assert [m.same_as for m in matrix.ordered() if m.kind == "local"] == ["", "local-a", "local-a"]
    assert matrix.cells["local-c"] == matrix.cells["local-a"]
    assert len(asked(run, "validate")) == 2


@pytest.mark.parametrize("wrong", ["nan", "missing", "shape"])
def test_a_model_of_a_site_that_does_not_fit_is_left_out(tmp_path, wrong):
    def script(task, site, message):
        if task == "submit_model" and site == "a":
            arrays = own("a")
            first = next(iter(arrays))
            if wrong == "missing":
                arrays.pop(first)
            else:
                arrays[first] = arrays[first] * np.nan if wrong == "nan" else arrays[first][None]
            return FLModel(params_type=ParamsType.FULL, params=arrays)
        return good(task, site, message)

    _, matrix = evaluated(tmp_path, script)
    row = next(model for model in matrix.models if model.name == "local-a")
    assert row.missing.startswith("its model was left out: ")


def test_a_personal_model_is_scored_at_the_other_sites(tmp_path):
    def script(task, site, message):
        if task == "submit_model" and message.meta[OWN_MODEL] == "personal":
            assert site == "b", "only the site that keeps one"
            return FLModel(params_type=ParamsType.FULL, params=own("c"))
        answer = good(task, site, message)
        if task == "validate" and site == "b" and message.meta[MODEL_NAME] == "last":
            scores = {key: value for key, value in told(0.95).items() if key != "split"}
            answer.metrics["final"]["personal"] = scores
        return answer

    _, matrix = evaluated(tmp_path, script)
    row = matrix.cells["personal-b"]
    assert row["b"].score("dice") == 0.95, "known from the last evaluation"
    assert row["a"].score("dice") == pytest.approx(0.7), "local-c has the very same arrays"
    assert "personal" not in row["b"].scores
    assert "personal" not in matrix.cells["last"]["b"].scores


def test_withheld_scores_are_told_by_name(tmp_path):
    def script(task, site, message):
        if task == "validate" and site == "b":
            few = {"split": "test", "withheld": True, "fewer_than": 5, "of": "cases"}
            return FLModel(metrics={"final": few, "validation": {**few, "split": "validation"}})
        return good(task, site, message)

    run, matrix = evaluated(tmp_path, script)
    assert matrix.withheld() == {"b": "fewer than 5 cases"}
    assert run.state.outcome["final"]["withheld"] == ["b"]
    assert run.state.events == []


def test_without_the_setting_nothing_more_is_asked_than_before(tmp_path):
    run, matrix = evaluated(tmp_path, cross_site=False)
    assert matrix is None
    assert asked(run, "submit_model") == []
    assert len(asked(run, "validate")) == 1


def test_a_site_that_scores_only_has_its_column_in_every_job(tmp_path):
    run, matrix = evaluated(tmp_path, names="abe", cross_site=False)
    assert [model.name for model in matrix.models] == ["last", "best"]
    assert sorted(run.state.facts) == ["a", "b"]
    assert sorted(run.state.rounds[0]["sites"]) == ["a", "b"]
    assert run.state.outcome["final"]["mean_dice"] == pytest.approx(0.7), "it does not count in the mean of the sites"
    (event,) = run.state.events
    assert (event["site"], event["what"]) == (
        "e", "scores models only, and does not train: its policy says evaluate_only",
    )  # fmt: skip


def test_a_job_leaves_a_site_out_of_the_training(tmp_path):
    def script(task, site, message):
        if task == "prepare":
            assert message.meta[EVALUATE] == ["c"]
            return FLModel(metrics={"evaluates": True}) if site == "c" else accepted()
        assert site != "c" or task == "validate"
        return good(task, site, message)

    run, matrix = evaluated(tmp_path, script, evaluate_only=["c"])
    assert (sorted(run.state.facts), matrix.evaluators) == (["a", "b"], ["c"])
    assert run.state.events == []


def test_a_site_that_wants_to_train_although_it_was_left_out_takes_no_part(tmp_path):
    run, _ = evaluated(tmp_path, evaluate_only=["c"])
    assert sorted(run.state.facts) == ["a", "b"]
    assert "was asked to score models only, but wants to train" in run.state.events[0]["what"]


def test_sites_that_score_only_cannot_make_a_training(tmp_path):
    with pytest.raises(FedsegError, match=r"0 site\(s\) accepted the job, but 1 must.*e score\(s\) models only"):
        evaluated(tmp_path, names="e")


def test_without_rounds_models_from_files_are_validated(tmp_path):
    plan = parse_plan(PLAN)
    files = {"ours": write_model(tmp_path / "ours.safetensors", plan, own("a"), 3)}
    files["theirs"] = write_model(tmp_path / "theirs.safetensors", plan, own("b"), 3)
    run, matrix = evaluated(tmp_path / "run", names="abe", files=files, num_rounds=0)
    assert [model.name for model in matrix.models] == ["file-ours", "file-theirs"]
    assert asked(run, "validate") == [("a", "b", "e")] * 2
    assert asked(run, "train") == []
    assert run.state.outcome["final"]["model"] is None
    only, _ = evaluated(tmp_path / "only", names="e", files=files, num_rounds=0)
    assert asked(only, "validate") == [("e",)] * 2


def test_a_model_from_a_file_is_scored_as_it_is_or_not_at_all(tmp_path):
    """One file lacks layers that its sites kept; the job's own models get the layers of each site."""
    plan, said = parse_plan(PLAN), {}
    arrays = get_weights(plan.build_network())
    other = {name: 2 * value for name, value in arrays.items()}
    files = {"whole": write_model(tmp_path / "whole.safetensors", plan, other, 3)}
    files["lacking"] = write_model(tmp_path / "lacking.safetensors", plan, arrays, 3, own_arrays=sorted(arrays)[:2])

    def script(task, site, message):
        if task == "validate":
            said.setdefault(message.meta[MODEL_NAME], set()).add(message.meta.get(AS_IT_IS, False))
        return good(task, site, message)

    _, matrix = evaluated(tmp_path / "run", script, files=files)
    assert said["file-whole"] == {True}
    assert {flag for name, flags in said.items() if name != "file-whole" for flag in flags} == {False}
    rows = {model.name: model for model in matrix.models}
    assert "without the layers that its sites kept for themselves (2 arrays)" in rows["file-lacking"].missing
    assert "file-lacking" not in said
    assert matrix.cells["file-lacking"]["a"].missing == rows["file-lacking"].missing


def test_where_sites_keep_layers_the_same_arrays_in_a_file_are_another_model(tmp_path):
    for keeping, same in ((frozenset(), "file-one"), (frozenset({"x"}), "")):
        run, _ = evaluated(tmp_path / f"run{len(keeping)}", names="a", num_rounds=1)
        run.state.record.own_arrays = keeping
        scoring = CrossSiteScoring(run.state, run.protocol, lambda: None)
        path = write_model(tmp_path / "one.safetensors", parse_plan(PLAN), own("a"), 3, own_arrays=())
        scoring.add_files({"one": path, "two": path})
        assert [model.same_as for model in scoring.matrix.models] == ["", same]


def test_a_model_file_of_another_task_ends_the_run_before_it_begins(tmp_path):
    other = parse_plan({**PLAN, "task": {**TASK, "regions": {"inner": ["inner"], "rest": ["outer"]}}})
    path = write_model(tmp_path / "other.safetensors", other, get_weights(other.build_network()), 0)
    workflow = FederatedTraining(num_rounds=1, aggregator=FedAvg(), cross_site=True, run_id="run")
    run = workflow.training_run(ScriptedSites(good), start(workflow, good, tmp_path / "x").state.record)
    for file, said in ((path, "the job needs one for"), (tmp_path / "gone.safetensors", "does not exist")):
        with pytest.raises(DataError, match=said):
            run.state.load(parse_plan(PLAN), RunPlace(tmp_path / "s", tmp_path, models={"x": file}))


def test_rounds_may_be_none_only_where_models_are_scored():
    with pytest.raises(ConfigurationError, match=r"workflow.num_rounds is 0, but must be a whole number of at least 1"):
        FederatedTraining(num_rounds=0, aggregator=FedAvg())
    for wrong in ("yes", 1, None):
        with pytest.raises(ConfigurationError, match=r"workflow.cross_site is .*true or false"):
            FederatedTraining(num_rounds=1, aggregator=FedAvg(), cross_site=wrong)
    for wrong in ("a", [], [1]):
        with pytest.raises(ConfigurationError, match=r"workflow.evaluate_only is .*a list of names"):
            FederatedTraining(num_rounds=1, aggregator=FedAvg(), evaluate_only=wrong)

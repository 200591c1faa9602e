"""What a tracker gets of an experiment: each finished unit a run, every number under a name and a step."""

import json

import pytest

from fedseg.cli import main
from fedseg.errors import DataError
from fedseg.evaluation.experiment_folder import read_experiment
from fedseg.experiments.definition import Watts
from fedseg.experiments.experiment import describe, load_experiment
from fedseg.experiments.tracking import tracked_units
from fedseg.experiments.unit_run import run_unit
from fedseg.files.documents import write_json
from tiny_experiment import write_experiment

PLAN = {"network": {"name": "unet", "channels": [4, 8]}, "training": {"batch_size": 2}}
FACTS = {
    "schema": "fedseg-experiment-1",
    "experiment": "sizes",
    "definition": {"seeds": [3, 4]},
    "versions": {"torch": "2"},
    "finished": "2026-03-14T11:41:00+00:00",
    "sites": {"a": {}, "b": {}},
    "folds": {"-": {"training": {"a": {}, "b": {}}}, "loso-b": {"training": {"a": {}}}},
    "arms": {"fedavg": {"kind": "job", "job": "h_fedavg", "plan": PLAN}, "local": {"kind": "local", "plan": PLAN}},
    "units": {name: {"digest": f"of {name}", "done": True} for name in (
        "fedavg_seed3", "fedavg_seed4_fold-loso-b", "local_seed3_a", "local_seed4_a",
    )},
}  # fmt: skip


def row(site, place, case, value, region="mean"):
    about = {"site": site, "evaluated_at": place, "case": case, "patient": case}
    return {**about, "region": region, "metric": "dice", "value": value, "empty": ""}


def write_unit(folder, name, results, curves=()):
    unit = folder / "units" / name
    unit.mkdir(parents=True)
    record = {"digest": f"of {name}", "costs": {"rounds": 2, "steps": 8}, "models": {"-": "g.safetensors"}, "order": []}
    (unit / "unit.json").write_text(json.dumps(record))
    (unit / "rows.json").write_text(json.dumps({"results": results, "curves": list(curves)}))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "experiment.json").write_text(json.dumps(FACTS))
    curves = [
        {"site": "a", "round": 0, "samples": 0, "metric": "train_loss", "value": 0.9},
        {"site": "a", "round": 0, "samples": 0, "metric": "dice", "value": 0.1},
        {"site": "-", "round": 2, "samples": 9, "metric": "dice", "value": 0.6},
    ]
    shared = [row("-", "a", "a0", 0.5), row("-", "a", "a1", 0.7), row("-", "b", "b0", 0.2), row("-", "b", "b1", None)]
    own = [row("a", "a", "a0", 0.8), row("a", "b", "b0", 0.3), row("b", "b", "b0", 0.4)]
    write_unit(tmp_path, "fedavg_seed3", shared + own, curves)
    write_unit(tmp_path, "fedavg_seed4_fold-loso-b", [row("-", "a", "a0", 0.5), row("-", "b", "b0", 0.1)])
    write_unit(tmp_path, "local_seed3_a", [row("a", "a", "a0", 0.9), row("a", "b", "b0", 0.3)])
    return tmp_path


def numbers(tracked):
    return {(point.name, point.step): point.value for point in tracked.points}


def test_each_finished_unit_is_a_run(folder):
    found = {tracked.name: tracked for tracked in tracked_units(folder)}
    assert set(found) == {"fedavg_seed3", "fedavg_seed4_fold-loso-b", "local_seed3_a"}
    assert found["local_seed3_a"].tags["run_id"] == "of local_seed3_a"
    said = found["fedavg_seed4_fold-loso-b"].parameters
    assert (said["arm"], said["seed"], said["fold"], said["site"], said["rounds"]) == (
        "fedavg",
        "4",
        "loso-b",
        "-",
        "2",
    )
    assert (said["kind"], said["job"], said["network.name"], said["training.batch_size"]) == (
        "job", "h_fedavg", "unet", "2",
    )  # fmt: skip


def test_numbers_have_their_names_and_steps(folder):
    found = {tracked.name: numbers(tracked) for tracked in tracked_units(folder)}
    shared = found["fedavg_seed3"]
    # A loss is of the round that trained, a score of the model that came before it.
    assert (shared["train_loss/a", 1], shared["val_dice/a", 0], shared["val_dice/pooled", 2]) == (0.9, 0.1, 0.6)
    assert shared["final_dice/a/mean", 2] == pytest.approx(0.6)
    assert shared["final_dice/b/mean", 2] == pytest.approx(0.2), "a case that the convention leaves out does not count"
    assert shared["final_dice/mean/mean", 2] == pytest.approx(0.4)
    assert (shared["own_dice/a/mean", 2], shared["own_dice/b/mean", 2]) == (0.8, 0.4)
    assert shared["cost/steps", 2] == 8
    # The mean is over sites that train: b is left out, and a site's own model is at home at a.
    assert found["fedavg_seed4_fold-loso-b"]["final_dice/mean/mean", 2] == 0.5
    assert found["fedavg_seed4_fold-loso-b"]["final_dice/b/mean", 2] == 0.1
    assert found["local_seed3_a"]["final_dice/b/mean", 2] == 0.3
    assert not any(name.startswith("own_") for name, _ in found["local_seed3_a"])


def test_models_go_along_where_they_are_asked_for(folder):
    assert all(not tracked.files for tracked in tracked_units(folder))
    files = tracked_units(folder, models=True)[0].files
    assert files == [(folder / "units" / "fedavg_seed3" / "g.safetensors", "models")]


def test_an_experiment_without_a_finished_unit_has_nothing_to_tell(tmp_path, capsys):
    (tmp_path / "experiment.json").write_text(json.dumps(FACTS))
    with pytest.raises(DataError, match=r"No unit of the experiment in .* is done\. Run it first"):
        tracked_units(tmp_path)
    assert main(["export", "mlflow", str(tmp_path), "--pictures"]) == 2
    assert "--pictures" in capsys.readouterr().err


def test_units_that_a_stopped_experiment_had_done_are_there(tmp_path):
    """``experiment.json`` as it is before anything runs; then one unit of two is done, and no table is written."""
    file, out = (
        write_experiment(tmp_path, arms={"local": {"kind": "local"}}, sizes={"a": (2, 1), "b": (2, 1)}),
        tmp_path / "out",
    )
    experiment = load_experiment(file, None, out / "sites")
    write_json(out / "experiment.json", describe(experiment, {}, out))
    run_unit(experiment.units[0], out, Watts())
    assert [tracked.name for tracked in tracked_units(out)] == ["local_seed3_a"]
    with pytest.raises(DataError, match="has not ended"):
        read_experiment(out)
    assert {name: told["done"] for name, told in describe(experiment, {}, out)["units"].items()} == {
        "local_seed3_a": True, "local_seed3_b": False,
    }  # fmt: skip


def test_units_become_runs_of_mlflow_once(folder, tmp_path, capsys):
    pytest.importorskip("mlflow", reason="MLflow is an extra: pip install 'fedseg[mlflow]'")
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}"
    (tmp_path / "store").mkdir()
    command = ["export", "mlflow", str(folder), "--tracking-uri", uri]
    assert main(command) == 0
    client = MlflowClient(tracking_uri=uri)
    number = client.get_experiment_by_name("sizes").experiment_id
    runs = {run.info.run_name: run.data for run in client.search_runs([number])}
    assert set(runs) == {tracked.name for tracked in tracked_units(folder)}
    assert runs["local_seed3_a"].metrics["final_dice/a/mean"] == 0.9
    assert runs["local_seed3_a"].params["site"] == "a"
    write_unit(folder, "local_seed4_a", [row("a", "a", "a0", 0.9)])
    assert main(command) == 0
    assert "1 runs, 3 were there before" in " ".join(capsys.readouterr().out.split())
    assert len(client.search_runs([number])) == 4
    assert main(command) == 2
    assert "All 4 units are in the experiment sizes already" in " ".join(capsys.readouterr().err.split())

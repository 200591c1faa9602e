"""A run in a real store of MLflow, in a folder. Skipped where MLflow is not installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluation.synthetic_run import make_summary, write_run
from fedseg.cli import main
from fedseg.errors import FedsegError
from fedseg.evaluation.mlflow_store import export_run, local_store
from fedseg.evaluation.report.page import write_report
from fedseg.evaluation.tracking import tracked_run

mlflow = pytest.importorskip("mlflow", reason="MLflow is an extra: pip install 'fedseg[mlflow]'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("runs") / "first", make_summary(4))
    write_report(run)
    return run


@pytest.mark.parametrize("kind", ["database", "folder"])
def test_what_went_in_comes_out(folder: Path, tmp_path: Path, kind: str) -> None:
    from mlflow.tracking import MlflowClient

    uri = local_store(tmp_path) if kind == "database" else (tmp_path / "mlruns").as_uri()
    tracked = tracked_run(folder)
    number = export_run(tracked, uri, "study")
    client = MlflowClient(tracking_uri=uri)
    run = client.get_run(number)
    assert run.info.status == "FINISHED"
    assert run.data.params == tracked.parameters
    assert run.data.tags["fedseg.run_id"] == "3f9c2a7e"
    for name in ("train_loss/hospital-a", "val_dice/hospital-b/WT", "val_dice/pooled/mean"):
        stored = {each.step: each.value for each in client.get_metric_history(number, name)}
        assert stored == {point.step: point.value for point in tracked.points if point.name == name}
    assert {each.path for each in client.list_artifacts(number, "report")} >= {
        "report/report.html",
        "report/summary.json",
        "report/figures",
    }
    assert client.get_experiment(run.info.experiment_id).name == "study"
    assert {path.name for path in tmp_path.iterdir()} <= {"mlflow.db", "mlartifacts", "mlruns"}


def test_a_run_is_exported_once(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["export", "mlflow", str(folder), "--tracking-uri", (tmp_path / "mlruns").as_uri()]
    assert main([*arguments, "--experiment", "study"]) == 0
    assert main([*arguments, "--experiment", "study"]) == 2
    assert "already" in capsys.readouterr().err
    assert main([*arguments, "--experiment", "another"]) == 0


def test_a_store_that_cannot_be_used_is_named(folder: Path) -> None:
    with pytest.raises(FedsegError, match="MLflow at nonsense:"):
        export_run(tracked_run(folder), "nonsense://nowhere", "study")

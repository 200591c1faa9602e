"""What a tracker gets of a run: every number under a name and a step, and no image that nobody asked for."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest

from evaluation.synthetic_run import REGIONS, SITES, make_summary, write_run
from fedseg.cli import main
from fedseg.evaluation.report.page import write_report
from fedseg.evaluation.tracking import Tracked, tracked_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("runs") / "first", make_summary(4), pictures=True)
    write_report(run)
    return run


def numbers(tracked: Tracked) -> dict[tuple[str, int], float]:
    return {(point.name, point.step): point.value for point in tracked.points}


def test_every_number_of_the_rounds_has_a_name_and_a_step(folder: Path) -> None:
    found, summary = numbers(tracked_run(folder)), make_summary(4)
    for entry in summary["rounds"]:
        done = entry["round"] + 1
        assert found["round_seconds", done] == entry["seconds"]
        # Scored is the model that the sites received: that of the round before.
        assert found["val_dice/pooled/mean", entry["round"]] == entry["val_dice"]
        for site, report in entry["sites"].items():
            assert found[f"train_loss/{site}", done] == report["train_loss"]
            assert found[f"val_loss/{site}", entry["round"]] == report["val_loss"]
            assert found[f"weight/{site}", done] == entry["weights"][site]
            for region in REGIONS:
                assert found[f"val_dice/{site}/{region}", entry["round"]] == report["val_dice"][region]
    assert ("train_loss/hospital-c", 4) not in found, "it took no part in that round"


def test_final_scores_stand_at_the_last_round(folder: Path) -> None:
    found, final = numbers(tracked_run(folder)), make_summary(4)["final"]
    for site in SITES:
        assert found[f"final_dice/{site}/mean", 4] == final["sites"][site]["dice"]["mean"]
        assert found[f"final_hd95/{site}/WT", 4] == final["sites"][site]["hd95"]["WT"]
    assert found["final_dice/mean/mean", 4] == final["mean_dice"]
    assert found["final_dice/pooled/mean", 4] == final["pooled_dice"]
    assert found["cost/wall_seconds", 4] == 4321.0


def test_no_name_is_a_folder_of_another_one(folder: Path) -> None:
    names = {point.name for point in tracked_run(folder).points}
    assert not [(a, b) for a in names for b in names if b.startswith(f"{a}/")]


def test_parameters_and_tags(folder: Path) -> None:
    found = tracked_run(folder)
    assert found.parameters["training.local_epochs"] == "2"
    assert (found.parameters["rule.name"], found.parameters["rounds"]) == ("FedCostWAvg", "4")
    assert found.tags["run_id"] == "3f9c2a7e"
    assert found.tags["version.torch"] == "2.13.0"


def test_images_of_cases_stay_unless_they_are_asked_for(folder: Path) -> None:
    names = {path.name for path, _ in tracked_run(folder).files}
    assert names.isdisjoint({"overlays.png", "gallery.png", "report.html"})
    assert {"summary.json", "learning_curves.png"} <= names
    assert {"overlays.png", "gallery.png", "report.html"} <= {path.name for path, _ in tracked_run(folder, True).files}


def test_a_report_without_images_goes_along(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", make_summary(2))
    write_report(run)
    assert "report.html" in {path.name for path, _ in tracked_run(run).files}


def test_without_mlflow_it_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = builtins.__import__

    def missing(name: str, *arguments: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "mlflow":
            raise ImportError(name)
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    assert main(["export", "mlflow", str(folder)]) == 2
    assert "pip install 'fedseg[mlflow]'" in " ".join(capsys.readouterr().err.split())


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "mlflow", str(tmp_path)]) == 1
    assert "not the folder of a run" in " ".join(capsys.readouterr().err.split())

"""No command writes over what it reads, and one case that cannot be read stops no other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import fedseg
from fedseg.cli import COMMANDS, build_parser, main
from fedseg.models.note import note_path
from tiny import make_model_and_site, make_sites

JOBS = Path(fedseg.__file__).parents[2] / "jobs"
# Options that name a place to write to. What each command does with it is tested here or, for a new or empty folder,
# by the tests of `files.folders`.
PLACES = {
    "phantom": {"--out"},
    "check-data": {"--json"},
    "partition": {"--out"},
    "import-data": {"--out"},
    "import-dicom": {"--out"},
    "simulate": {"--out", "--ledger"},
    "experiment": {"--out"},
    "choose-components": {"--out"},
    "evaluate": {"--out"},
    "predict": {"--out"},
    "report": {"--out"},
    "rank": {"--out"},
    "statistics": {"--out"},
    "plan": {"--out"},
    "advise": {"--out"},
    "package": {"--out"},
    "files": {"--out"},
    "decrypt-model": {"--out"},
    "import-weights": {"--out"},
    "provision": {"--out"},
    "site check": {"--json"},
    "equip": {"--storage", "--state"},
    "fetch": {"--out"},
    "local-federation": {"--out"},
}
READ = {
    "--task", "--data", "--csv", "--initial", "--profiles", "--context", "--wheel", "--site-policy", "--kit", "--job",
    "--template", "--models", "--components", "--profile", "--first-run", "--route", "--root",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a model, its task and a site."""
    monkeypatch.chdir(tmp_path)
    return make_model_and_site(tmp_path, validation=1)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(folder: Path, capsys, *arguments: object, said: str = "that this command reads") -> None:
    """The command ends with 2 and the words, and changes nothing."""
    before = contents(folder)
    assert main([str(argument) for argument in arguments]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert contents(folder) == before


def use(command: str, *more: object) -> int:
    arguments = [command, "model.safetensors", "--task", "task.json", "--data", "a", *more]
    return main([str(argument) for argument in arguments])


def test_every_place_to_write_to_is_known():
    found: dict[str, set[str]] = {}
    parser = build_parser()
    for name in COMMANDS:
        command = next(a for a in parser._actions if a.dest == "command").choices[name]
        inner = next((a.choices for a in command._actions if a.dest == "action"), {"": command})
        for action, own in inner.items():
            paths = {o for a in own._actions if a.type is Path for o in a.option_strings} - READ
            found[f"{name} {action}".strip()] = paths
    assert {name: paths for name, paths in found.items() if paths} == PLACES


def test_rules_for_parts_replace_nothing_that_is_read(folder, capsys):
    given = ("choose-components", "model.safetensors", "--task", "task.json", "--data", "a", "--out")
    for name in ("model.safetensors", "task.json", "a/datalist.json"):
        refused(folder, capsys, *given, name)


def test_an_evaluation_replaces_no_rules(folder, capsys):
    assert use("choose-components", "--out", "rules.json", "--volumes", "1") == 0
    (folder / "out").mkdir()
    (folder / "rules.json").rename(folder / "out" / "evaluation.json")
    given = ("evaluate", "model.safetensors", "--task", "task.json", "--data", "a", "--out", "out")
    refused(folder, capsys, *given, "--components", "out/evaluation.json")


def test_masks_replace_no_image_and_no_label(folder, capsys):
    datalist = folder / "a" / "datalist.json"
    content = json.loads(datalist.read_text())
    for split, case in (("training", 0), ("test", 0)):
        first = Path(content[split][case]["label"]).name
        assert (folder / "a" / "images" / first).is_file(), "a mask is called after the label"
        refused(folder, capsys, "predict", "model.safetensors", "--task", "task.json", "--data", "a", "--split", split,
                "--out", "a/images")  # fmt: skip
    content["validation"][0] = {"image": "images/b.nii.gz", "patient": "b"}
    (folder / "a" / "images" / "b.nii.gz").symlink_to(content["test"][0]["image"].removeprefix("images/"))
    datalist.write_text(json.dumps(content))
    refused(folder, capsys, "predict", "model.safetensors", "--task", "task.json", "--data", "a", "--split",
            "validation", "--out", "a/images")  # fmt: skip


def test_scores_replace_neither_the_datalist_nor_the_task(folder, capsys):
    (folder / "a" / "datalist.json").rename(folder / "a" / "evaluation.json")
    common = ["evaluate", "model.safetensors", "--task"]
    refused(folder, capsys, *common, "task.json", "--data", "a/evaluation.json", "--out", "a")
    (folder / "a" / "evaluation.json").rename(folder / "a" / "datalist.json")
    (folder / "task.json").rename(folder / "evaluation.json")
    refused(folder, capsys, *common, "evaluation.json", "--data", "a", "--out", ".")
    refused(folder, capsys, *common, "evaluation.json", "--data", "a", "--out", "model.safetensors", said="is a file")


def test_a_report_of_the_check_replaces_nothing_that_is_checked(folder, capsys):
    first = json.loads((folder / "a" / "datalist.json").read_text())["training"][0]
    for target in ("a/datalist.json", "task.json", f"a/{first['image']}", f"a/../a/{first['label']}"):
        refused(folder, capsys, "check-data", "task.json", "a", "--json", target)
    for _ in range(2):
        main(["check-data", "task.json", "a", "--json", "a/check.json", "--quick"])
        assert json.loads((folder / "a" / "check.json").read_text())["task"] == "tiny"


def test_a_run_is_not_made_in_what_it_reads(folder, capsys):
    job = JOBS / "hippocampus_fedavg"
    run = folder / "run"
    run.mkdir()
    make_sites(run, {"data": (1, 1)})
    refused(folder, capsys, "simulate", job, "--data", run, "--out", run, "--overwrite", said="lies inside --out")


def test_a_ledger_is_not_kept_where_a_new_run_removes_it(folder, capsys):
    command = ["simulate", JOBS / "hippocampus_fedavg", "--data", ".", "--out", "run"]
    refused(folder, capsys, *command, "--ledger", "run/state/ledgers", said="--ledger run/state/ledgers lies inside")


def test_a_job_is_not_copied_into_itself(folder, capsys):
    main(["package", str(JOBS / "hippocampus_fedavg"), "--out", "job"])
    refused(folder, capsys, "package", "job", "--out", "job/packed", said="which is copied there")
    make_sites(folder / "sites", {"a": (1, 1)})
    refused(folder, capsys, "simulate", "job", "--data", "sites", "--out", "job/run", said="which is copied there")
    refused(folder, capsys, "simulate", "job", "--data", "job/app", "--out", "job", said="")


def test_one_case_that_cannot_be_read_stops_no_other(folder, capsys):
    content = json.loads((folder / "a" / "datalist.json").read_text())
    second, third = content["training"][1]["image"], content["validation"][0]["image"]
    (folder / "a" / second).write_bytes(b"no image")
    (folder / "a" / third).unlink()
    assert use("predict", "--out", "masks") == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "left out: a-1: " in said
    assert "left out: a-2: " in said
    assert "Traceback" not in said
    assert sorted(path.name for path in (folder / "masks").iterdir()) == ["a-0.nii.gz", "a-3.nii.gz"]
    assert use("evaluate", "--out", "scores", "--split", "all") == 1
    written = json.loads((folder / "scores" / "evaluation.json").read_text())
    assert [case["id"] for case in written["cases"]] == ["a-0", "a-3"]
    assert sorted(written["failed"]) == ["a-1", "a-2"]
    dice = [case["dice"]["whole"] for case in written["cases"]]
    assert written["mean"]["dice"]["whole"] == pytest.approx(np.mean(dice))


def test_nothing_is_written_where_no_case_can_be_read(folder, capsys):
    for path in (folder / "a" / "images").iterdir():
        path.write_bytes(b"no image")
    for command in ("predict", "evaluate"):
        assert use(command, "--out", "out") == 1
        assert "None of the" in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_the_note_of_another_model_is_not_replaced(folder, capsys):
    note = note_path(folder / "new.safetensors")
    refused(folder, capsys, "decrypt-model", note.name, "--context", "c", "--out", "new.safetensors")

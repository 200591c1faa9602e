"""The command: plans without doing, refuses what it would replace, and is alone in its folder."""

import json

import nibabel as nib
import numpy as np
import pytest

from fedseg.cli import main
from fedseg.commands.experiment import words_of
from fedseg.files.locks import locked
from tiny import TASK
from tiny_experiment import write_experiment

ARMS = {"central": {"kind": "central"}, "local": {"kind": "local"}}


def run(*arguments):
    return main(["experiment", *map(str, arguments)])


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_plan_tells_the_cost_and_leaves_nothing(tmp_path, capsys):
    file = write_experiment(tmp_path, arms=ARMS)
    before = contents(tmp_path)
    assert run(file, "--out", tmp_path / "out", "--dry-run") == 0
    assert contents(tmp_path) == before
    lines = capsys.readouterr().out.splitlines()
    (central,) = [line for line in lines if "central" in line]
    # Two rounds over 8 cases in batches of 2.
    assert [cell.strip() for cell in central.split("│")[2:6]] == ["1", "2", "8", "16"]
    assert any("minutes on this machine" in line for line in lines)
    assert "3 sites: alpha (6 cases), beta (4 cases), gamma (4 cases)" in lines


def test_a_run_prints_the_table_and_says_what_it_did(tmp_path, capsys):
    file = write_experiment(tmp_path, arms=ARMS, description="Which is better?")
    assert run(file, "--out", tmp_path / "out", "--jobs", 1, "--pictures") == 0
    shown = capsys.readouterr()
    assert "central" in shown.out
    assert "elsewhere" in shown.out
    assert "4 of 4 units" in shown.err
    about = json.loads((tmp_path / "out" / "experiment.json").read_text("utf-8"))
    assert about["schema"] == "fedseg-experiment-1"
    assert about["complete"] is True
    assert about["description"] == "Which is better?"
    assert about["definition"]["arms"] == ARMS
    assert set(about["units"]) == {"central_seed3", "local_seed3_alpha", "local_seed3_beta", "local_seed3_gamma"}
    assert about["sites"]["alpha"]["training"] == 4
    assert about["plan"]["total"]["samples"] == 32
    assert about["machine"]["cores"] >= 1
    assert about["folds"]["-"]["tests"] == {"alpha": 1, "beta": 1, "gamma": 1}
    check_pictures(tmp_path / "out")


def check_pictures(out):
    """Each site's one test case was drawn under the best arm, whose model has just the score that is told."""
    entries = json.loads((out / "report" / "overlays.json").read_text("utf-8"))
    assert [(entry["site"], entry["rank"]) for entry in entries] == [(s, "best") for s in ("alpha", "beta", "gamma")]
    for entry in entries:
        predicted, reference = (np.asarray(nib.load(entry[name]).dataobj) for name in ("prediction", "label"))
        regions = [
            (predicted == TASK["labels"]["inner"], reference == TASK["labels"]["inner"]),
            (predicted > 0, reference > 0),
        ]
        scores = [2 * (one & other).sum() / max(1, one.sum() + other.sum()) for one, other in regions]
        assert entry["dice"] == pytest.approx(np.mean(scores))
    pages = {path.stem: path.read_text("utf-8") for path in (out / "report" / "sites").glob("*.html")}
    drawn = {name: page.count("data:image/png") for name, page in pages.items()}
    assert set(drawn.values()) == {(out / "report" / "report.html").read_text("utf-8").count("data:image/png") + 1}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"folds": {"kind": "patients", "k": 50}}, "too few for folds.k of 50"),
        ({"data": {"source": "data/alpha", "sizes": [5, 1]}}, "with data.sizes or data.names"),
        ({"external": {"site-1": "data/beta"}}, "external.site-1"),
        ({"task": "hipocampus"}, "task is 'hipocampus'"),
    ],
)
def test_what_is_refused_leaves_nothing(tmp_path, capsys, more, said):
    file = write_experiment(tmp_path, arms=ARMS, **{"data": {"source": "data/alpha", "number": 2}, **more})
    before = contents(tmp_path)
    assert run(file, "--out", tmp_path / "out") != 0
    assert said in " ".join(capsys.readouterr().err.split())
    assert contents(tmp_path) == before
    assert not (tmp_path / "out").exists()


def test_another_folder_is_not_touched(tmp_path, capsys):
    file = write_experiment(tmp_path, arms=ARMS)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert run(file, "--out", tmp_path / "full") == 2
    assert "is not empty and no former experiment" in " ".join(capsys.readouterr().err.split())
    assert run(file, "--out", tmp_path / "data" / "alpha") == 2
    assert run(file, "--out", tmp_path / "job") == 2


def test_an_experiment_of_another_name_is_not_continued(tmp_path, capsys):
    file = write_experiment(tmp_path, arms={"central": {"kind": "central"}})
    assert run(file, "--out", tmp_path / "out", "--jobs", 1) == 0
    write_experiment(tmp_path, arms={"central": {"kind": "central"}}, experiment="other")
    assert run(file, "--out", tmp_path / "out", "--jobs", 1) == 2
    assert "holds the experiment tiny, not other" in " ".join(capsys.readouterr().err.split())
    assert run(file, "--out", tmp_path / "out", "--jobs", 1, "--overwrite") == 0
    assert json.loads((tmp_path / "out" / "experiment.json").read_text("utf-8"))["experiment"] == "other"


def test_data_in_a_place_that_is_made_new_are_refused(tmp_path, capsys):
    file = write_experiment(tmp_path, arms=ARMS, data={"folder": "units"})
    assert run(file, "--out", tmp_path) == 2
    assert "data.folder" in capsys.readouterr().err


def test_two_commands_do_not_work_in_one_folder(tmp_path, capsys):
    file = write_experiment(tmp_path, arms=ARMS)
    with locked(tmp_path / "out", "fedseg experiment"):
        assert run(file, "--out", tmp_path / "out") == 1
    assert "works fedseg experiment" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--jobs", "0"], 2, "--jobs 0: the number of units"),
        (["--data", "nowhere"], 2, "nowhere"),
    ],
)
def test_wrong_options_are_refused(tmp_path, capsys, more, code, said):
    file = write_experiment(tmp_path, arms=ARMS)
    assert run(file, "--out", tmp_path / "out", *more) == code
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_missing_is_named(tmp_path, capsys):
    assert run(tmp_path / "none.yaml", "--out", tmp_path / "out") == 2
    assert "none.yaml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "about a minute to go or less"), (89, "about a minute to go or less"), (600, "about 10 min to go"),
     (9000, "about 2.5 h to go")],
)  # fmt: skip
def test_time_left_in_words(seconds, words):
    assert words_of(seconds) == words

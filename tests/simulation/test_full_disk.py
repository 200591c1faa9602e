"""A disk that is full in a round: one sentence with what to do, and the run goes on from its last finished round."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedseg.cli import main
from fedseg.files import documents
from tiny import PLAN, make_sites

ROOT = Path(__file__).parents[2]
SITES = {"alpha": (2, 1), "beta": (2, 1)}
SETTINGS = [word for key in ("task", "network", "training") for word in ("--set", f"{key}={json.dumps(PLAN[key])}")]


def simulate(folder, out, *more):
    job = str(ROOT / "jobs" / "hippocampus_fedavg")
    return main(["simulate", job, "--data", str(folder / "data"), "--out", str(out), "--in-process", *more])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of three rounds that nothing disturbs."""
    folder = tmp_path_factory.mktemp("full")
    make_sites(folder / "data", SITES)
    assert simulate(folder, folder / "whole", "--rounds", "3", *SETTINGS) == 0
    return folder


@pytest.fixture
def fill(monkeypatch):
    """From now on files whose path holds these words cannot be written, as on a disk without room."""
    real, state = documents.sync, {}

    def full(path):
        if all(word in str(path) for word in state["words"]):
            state["room"] -= 1
            if state["room"] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(path)

    def start(*words, after=0):
        state.update(words=words, room=after)
        monkeypatch.setattr(documents, "sync", full)

    return start


def equal_models(one, other):
    one, other = (load_file(folder / "models" / "last.safetensors") for folder in (one, other))
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("words", "written"),
    [
        (("state/server", "checkpoint-00001"), 0),
        # These are written in every round, and in the first one there is room.
        (("workspace", "last.safetensors"), 2),
        (("workspace", "results.json"), 1),
    ],
)
def test_a_run_whose_servers_disk_was_full_goes_on_to_the_same_model(folder, tmp_path, fill, capsys, words, written):
    out = tmp_path / "run"
    fill(*words, after=written)
    assert simulate(folder, out, "--rounds", "3", *SETTINGS) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "The server's disk is full. Make room on it, then resume the run after its last finished round." in said
    assert "Traceback" not in said
    fill("nothing")
    assert simulate(folder, out, "--resume") == 0
    assert equal_models(out, folder / "whole")


def test_a_site_whose_disk_is_full_is_left_out_of_the_round_by_name(folder, tmp_path, fill):
    fill("state/beta", "round-00001")
    assert simulate(folder, tmp_path / "run", "--rounds", "3", *SETTINGS) == 0
    summary = json.loads((tmp_path / "run" / "report" / "summary.json").read_text("utf-8"))
    assert [sorted(entry["sites"]) for entry in summary["rounds"]] == [["alpha", "beta"], ["alpha"], ["alpha", "beta"]]
    (event,) = summary["events"]
    assert (event["site"], event["round"]) == ("beta", 1)
    assert event["what"].startswith("state: The site could not store its state after round 2: its disk is full.")


def test_a_command_that_finds_no_room_says_what_to_do(folder, tmp_path, fill, capsys):
    shutil.copytree(folder / "whole", tmp_path / "run")
    fill("report.html")
    assert main(["report", str(tmp_path / "run")]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "No space left on device" in said
    assert said.endswith("Make room there, then call the command again.")

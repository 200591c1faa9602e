"""A run and its records: they hold, tampering is found, and the page's own commands work."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from federation_parts import fedseg, tiny_job

from docs.test_docs import blocks, commands
from fedseg.contract.plan import parse_plan
from fedseg.models.model_file import read_model, write_model
from fedseg.models.note import read_note
from fedseg.provenance.reading import read_record
from fedseg.site.state import SiteState
from tiny import PLAN, make_sites

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "run-record.md"
SITES = {"site-1": (3, 1), "site-2": (2, 1)}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two rounds in one process; nobody changes it. Records of FLARE's processes: test_simulation.py."""
    base = tmp_path_factory.mktemp("record")
    data = make_sites(base / "data", SITES)
    tiny_job("hippocampus_fedavg", base / "jobs", 2)
    job = base / "jobs" / "hippocampus_fedavg"
    done = fedseg("simulate", job, "--data", data, "--out", base / "run", "--in-process")
    assert done.code == 0, done.err
    return base / "run"


@pytest.fixture
def copy(run, tmp_path):
    """A copy that may be changed."""
    return Path(shutil.copytree(run, tmp_path / "run"))


def test_server_and_sites_tell_the_same_story(run):
    verified = fedseg("audit-log", "verify", run)
    assert verified.code == 0, verified.out
    for words in ("2 finished round(s) follow", "site-1: all 2 round(s)", "site-2: 2 model(s) received", "last.safet"):
        assert words in verified.out
    record = read_record(run / "report" / "record.jsonl")
    note = read_note(run / "models" / "last.safetensors")
    assert record.entries[note.line - 1]["model"] == note.model
    assert note.sites == tuple(SITES)
    assert next(record.of_kind("start"))["job"] == "hippocampus_fedavg"


def test_the_commands_of_the_page_work(run):
    run_id = read_record(run / "report" / "record.jsonl").run_id
    lines = [line for block in blocks(PAGE) for line in commands(block, "fedseg")]
    assert len(lines) == 5
    for line in lines:
        arguments = shlex.split(line.replace("runs/first", str(run)).replace("RUN_ID", run_id))[1:]
        done = fedseg(*arguments)
        assert done.code == 0, f"{line}\n{done.out}\n{done.err}"


def test_every_kind_of_line_that_a_run_writes_is_explained(run):
    documented = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`.*?) \|", PAGE.read_text("utf-8"), re.M))))
    kinds = {e["kind"] for path in run.rglob("record.jsonl") for e in read_record(path).entries}
    assert kinds - documented == {"opened"}
    assert {"start", "round", "received", "sent", "scored", "finished"} <= kinds


def test_a_model_of_another_training_is_found_and_not_used(copy, run):
    path = copy / "models" / "last.safetensors"
    weights = {name: value + np.ones_like(value) for name, value in read_model(path).weights.items()}
    write_model(path, parse_plan(PLAN), weights, 1)
    assert fedseg("audit-log", "verify", copy).code == 1
    data = run.parent / "data" / "site-1"
    job = run.parent / "jobs" / "hippocampus_fedavg"
    refused = fedseg("evaluate", path, "--task", job, "--data", data, "--out", copy / "scores")
    assert refused.code == 1
    assert "is not the one that its provenance file is about" in refused.err
    accepted = fedseg(
        "evaluate", path, "--task", job, "--data", data, "--out", copy / "scores", "--accept-changed-model"
    )
    assert accepted.code == 0, accepted.err


@pytest.mark.parametrize("whose", ["server", "site-2"])
def test_a_line_that_was_cut_off_is_found(copy, whose):
    path = next((copy / "state" / whose).glob("*/record.jsonl"))
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    verified = fedseg("audit-log", "verify", copy)
    assert verified.code == 1
    assert "is missing" in verified.out


def test_a_record_does_not_bind_a_sites_folder_before_the_job_does(run):
    """The record lies in the folder that belongs to one job; another job is still refused it."""
    folder = next((run / "state" / "site-1").glob("*/record.jsonl")).parent
    with pytest.raises(Exception, match="belongs to another job"):
        SiteState(folder.parent, folder.name).bind("0" * 64)

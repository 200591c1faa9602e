"""A site whose own state is damaged or gone when a run goes on: it is named, and so is what was done instead."""

import json
import shutil
from pathlib import Path

import pytest

from fedseg.cli import main
from tiny import PLAN, make_sites

ROOT = Path(__file__).parents[2]
SITES = {"alpha": (2, 1), "beta": (2, 1), "gamma": (2, 1)}
LOSER = "beta"
SETTINGS = [f"{key}={json.dumps(PLAN[key])}" for key in ("task", "network", "training")]
TRAINED_WITHOUT = "had lost what it kept of former rounds, or it was damaged, and trained without it"


def simulate(job, data, out, *more):
    return main(["simulate", str(ROOT / "jobs" / job), "--data", str(data), "--out", str(out), "--in-process", *more])


@pytest.fixture(scope="module", params=["hippocampus_fedavg", "brats_fedbn"])
def finished(request, tmp_path_factory):
    """A run of two rounds; the first keeps the optimizer only, the second private layers too."""
    folder = tmp_path_factory.mktemp("lost")
    make_sites(folder / "data", SITES)
    settings = [word for text in (*SETTINGS, "workflow.min_sites=2") for word in ("--set", text)]
    assert simulate(request.param, folder / "data", folder / "run", "--rounds", "2", *settings) == 0
    return request.param, folder


def flip(folder):
    path = folder / "round-00000.pt"
    content = bytearray(path.read_bytes())
    content[-2000] ^= 1
    path.write_bytes(content)


def lose_rounds(folder):
    for path in folder.glob("round-*.pt"):
        path.unlink()


def lose_all(folder):
    shutil.rmtree(folder.parent)


def go_on(finished, tmp_path, spoil, *more):
    """The run goes on after its first round, with the state of beta spoilt; its summary and beta's record."""
    job, folder = finished
    out = tmp_path / "run"
    shutil.copytree(folder / "run", out)
    (state,) = (path.parent for path in (out / "state" / LOSER).glob("*/record.jsonl"))
    spoil(state)
    assert simulate(job, folder / "data", out, "--resume", "--from-round", "1", *more) == 0
    lines = (state / "record.jsonl").read_text("utf-8").splitlines()
    return json.loads((out / "report" / "summary.json").read_text("utf-8")), [json.loads(line) for line in lines]


@pytest.mark.parametrize("spoil", [flip, lose_rounds, lose_all])
def test_a_site_that_lost_its_state_says_so_and_does_without_only_if_it_can(finished, tmp_path, spoil):
    summary, record = go_on(finished, tmp_path, spoil)
    said = [event["what"] for event in summary["events"] if event["site"] == LOSER]
    kinds = [line["kind"] for line in record]
    if finished[0] == "hippocampus_fedavg":
        assert said == [TRAINED_WITHOUT]
        assert LOSER in summary["rounds"][1]["sites"]
        assert [line["round"] for line in record if line["kind"] == "lost"] == [1]
    else:
        assert sorted(summary["rounds"][1]["sites"]) == ["alpha", "gamma"]
        assert said[0].startswith("state: The site's state after round 1 is ")
        assert any(line["kind"] == "refused" and line["reason"] == "state" for line in record)
        assert "lost" not in kinds


def test_a_site_does_without_its_private_layers_if_it_is_told_to(finished, tmp_path):
    summary, record = go_on(finished, tmp_path, lose_all, "--set", "workflow.fresh_states=true")
    assert [event["what"] for event in summary["events"] if event["site"] == LOSER][:1] == [TRAINED_WITHOUT]
    assert LOSER in summary["rounds"][1]["sites"]
    assert [line["round"] for line in record if line["kind"] == "lost"] == [1]


def test_an_undisturbed_run_goes_on_without_a_word(finished, tmp_path):
    summary, record = go_on(finished, tmp_path, lambda folder: None)
    assert [event for event in summary["events"] if event["site"] == LOSER] == []
    assert "lost" not in [line["kind"] for line in record]

"""A run in one process equals a run in FLARE's simulator: models, scores, reports, bytes and records."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import golden_models  # noqa: E402

from tiny import make_sites  # noqa: E402

# What tells one run from another, and what a machine has to say of time and memory.
OWN = {"run_id", "date", "wall_seconds", "peak_rss_mb"}
# Every day test_simulation.py and test_privacy_run.py compare a plain and a private run.
pytestmark = pytest.mark.full


def without_own(value):
    """A summary without what differs from run to run."""
    if isinstance(value, dict):
        return {
            key: without_own(part) for key, part in value.items() if key not in OWN and not key.startswith("seconds")
        }
    return [without_own(part) for part in value] if isinstance(value, list) else value


def record_lines(path):
    """What the lines of a record say, without times, hashes and names of this run."""
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    own = {"time", "hash", "previous", "start", "job_hash", *OWN}
    return [without_own({key: value for key, value in line.items() if key not in own}) for line in lines]


@pytest.mark.parametrize("name", golden_models.EIGHT)
def test_one_process_equals_the_simulator(name, tmp_path):
    data = make_sites(tmp_path / "data", golden_models.SITES)
    job = golden_models.job_folder(name, tmp_path / "jobs")
    runs = {kind: tmp_path / kind for kind in ("simulator", "process")}
    digests = {kind: golden_models.run(job, data, out, kind == "process") for kind, out in runs.items()}
    assert "failed" not in digests["process"]
    assert digests["process"] == digests["simulator"]
    there, here = (json.loads((out / "report" / "summary.json").read_text("utf-8")) for out in runs.values())
    assert without_own(here) == without_own(there)
    for site in golden_models.SITES:
        lines = [record_lines(next((out / "state" / site).glob("*/record.jsonl"))) for out in runs.values()]
        assert lines[0] == lines[1]
    names = [{path.name for path in out.iterdir()} for out in runs.values()]
    assert names[0] == names[1]


@pytest.mark.full
def test_a_cross_site_evaluation_in_one_process_equals_the_simulator(tmp_path):
    data = make_sites(tmp_path / "data", golden_models.SITES)
    job = golden_models.job_folder("hippocampus_cross_site_evaluation", tmp_path / "jobs")
    found = {}
    for kind in ("simulator", "process"):
        assert "failed" not in golden_models.run(job, data, tmp_path / kind, kind == "process")
        found[kind] = json.loads((tmp_path / kind / "report" / "summary.json").read_text("utf-8"))
    one, other = (summary["cross_site_evaluation"] for summary in found.values())
    assert one == other
    assert {model["kind"] for model in one["models"]} == {"last", "best", "local", "without"}


def test_brain_torrent_in_one_process_equals_the_simulator(tmp_path):
    data = make_sites(tmp_path / "data", golden_models.SITES)
    job = golden_models.job_folder("hippocampus_braintorrent", tmp_path / "jobs")
    runs = {kind: tmp_path / kind for kind in ("simulator", "process")}
    for kind, out in runs.items():
        assert "failed" not in golden_models.run(job, data, out, kind == "process")
    there, here = (json.loads((out / "report" / "summary.json").read_text("utf-8")) for out in runs.values())
    assert without_bytes(here) == without_bytes(there)
    for site in golden_models.SITES:
        models = [(out / "models" / f"last-{site}.safetensors").read_bytes() for out in runs.values()]
        assert models[0] == models[1]


def without_bytes(summary):
    """A summary without the sizes of messages: names of jobs and runs are in the calls of sites."""
    kept = without_own(summary)
    for entry in kept["rounds"]:
        for part in (*entry["turns"], *entry["sites"].values()):
            for name in [name for name in part if name.startswith("bytes")]:
                del part[name]
    return kept

"""Checkpoints come back to the last bit, and only the right ones are kept."""

import os
import subprocess
import sys

import numpy as np
import pytest

from fedseg.workflows.run.checkpoint import CheckpointError, Checkpoints

ARRAYS = {"weights/w": np.array([0.1, -1e-38, 3e38], np.float32), "optimizer/steps": np.array(3, np.int64)}


def test_arrays_and_numbers_come_back_to_the_last_bit(tmp_path):
    values = {"history": {"a": [0.1 + 0.2, 1e-308, 12345678.000000001]}, "best_round": None, "text": "Zürich"}
    Checkpoints(tmp_path / "run").save(4, ARRAYS, values)
    arrays, again = Checkpoints(tmp_path / "run").load(4)
    assert again == values
    for name, value in ARRAYS.items():
        assert arrays[name].dtype == value.dtype
        np.testing.assert_array_equal(arrays[name], value)
        assert arrays[name].shape == value.shape


def test_the_last_rounds_are_kept_and_the_best_model_of_each(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for number, best in enumerate([None, 0, 1, 1, 1, 4]):
        checkpoints.save(number, ARRAYS, {"best_round": best})
    # Rounds 4 and 5 are the last; 4 needs the model of round 1, 5 that of round 4.
    assert checkpoints.rounds() == [1, 4, 5]


def test_all_are_kept_when_asked(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=0)
    for number in range(5):
        checkpoints.save(number, ARRAYS, {"best_round": None})
    assert checkpoints.rounds() == [0, 1, 2, 3, 4]


def test_going_back_drops_the_rounds_after(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=0)
    for number in range(5):
        checkpoints.save(number, ARRAYS, {"best_round": None})
    checkpoints.save(2, ARRAYS, {"best_round": None})
    assert checkpoints.rounds() == [0, 1, 2]


def test_a_missing_and_a_damaged_checkpoint_are_told_apart(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(CheckpointError, match=r"no checkpoint of round 4; there are those of the rounds none"):
        checkpoints.load(3)
    checkpoints.save(3, ARRAYS, {"best_round": None})
    path = next(tmp_path.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(CheckpointError, match="round 4 is damaged"):
        checkpoints.load(3)


def test_a_write_that_fails_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(0, ARRAYS, {"best_round": None, "mark": 1})

    def full(arrays, path, metadata):
        path.write_bytes(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedseg.files.arrays.save_file", full)
    with pytest.raises(OSError, match="No space"):
        checkpoints.save(0, ARRAYS, {"best_round": None, "mark": 2})
    assert checkpoints.load(0)[1]["mark"] == 1
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"], "nothing half-written is left"


def test_only_rounds_whose_states_the_sites_keep_can_be_continued(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for number, best in enumerate([None, 0, 0, 0, 0]):
        checkpoints.save(number, ARRAYS, {"best_round": best})
    assert checkpoints.rounds() == [0, 3, 4]
    assert checkpoints.resumable() == [3, 4]


def test_a_history_larger_than_a_header_may_be_is_stored(tmp_path):
    values = {"best_round": None, "rounds": ["x" * 1000] * 110_000}
    Checkpoints(tmp_path).save(0, ARRAYS, values)
    assert len(Checkpoints(tmp_path).load(0)[1]["rounds"]) == 110_000


HOLDER = """
import sys
from pathlib import Path
from fedseg.workflows.run.checkpoint import Checkpoints
held = Checkpoints(Path(sys.argv[1]))
held.lock()
print("held", flush=True)
sys.stdin.read()
"""


def test_a_run_that_goes_on_elsewhere_is_refused_until_that_process_is_gone(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        assert process.stdout.readline().strip() == b"held"
        with pytest.raises(CheckpointError, match="The run run is still going in another process; end that one first"):
            Checkpoints(tmp_path / "run").lock()
        process.kill()
        process.wait()
    Checkpoints(tmp_path / "run").lock()

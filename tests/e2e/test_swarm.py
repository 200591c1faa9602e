"""A swarm over a real federation with mutual TLS: what its server sees, and what follows when leaders fail."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fault_parts import SECONDS, SERVER, federation, said, simulated_weights, wait_until
from federation_parts import SITES, tiny_job
from safetensors.numpy import load_file

HERE = Path(__file__).parent
ALLOWED = {site: {"peers": True} for site in SITES}
TAKE_OVER, SILENCE = 40, 45
KILLED, SILENT = 0, 1
"""The rounds in which a leader is killed while it merges, and in which one stands still."""


def stalled(faults, watched, number):
    """The site that stands still while it merges a round, waited for."""
    found = watched / f"stalled-{number}"
    wait_until(found.exists, SECONDS, lambda: f"nobody merges round {number}\n{faults.local.tails()}")
    return found.read_text()


def leaders_fail(faults, coordinator, watched, seen):
    for number in (KILLED, SILENT):
        (watched / f"stall-{number}").touch()
    settings = {"take_over": TAKE_OVER, "site_silence": SILENCE}
    job_id = coordinator.submit(faults.job("hippocampus_swarm", 3, title="faults", **settings))
    seen.killed = stalled(faults, watched, KILLED)
    faults.process(seen.killed, job_id).kill()
    faults.wait_for_event(job_id, "round_done", round=KILLED)
    seen.silent = stalled(faults, watched, SILENT)
    stopped = faults.process(seen.silent, job_id)
    stopped.suspend()
    faults.wait_for_event(job_id, "round_done", round=SILENT)
    (watched / "go").touch()
    stopped.resume()
    seen.status = coordinator.wait(job_id, timeout=SECONDS)
    seen.faults, _ = faults.fetch(coordinator, job_id)
    seen.faults_id = job_id


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Everything that happened, written down while it ran."""
    folder, seen = tmp_path_factory.mktemp("swarm"), SimpleNamespace()
    watched = folder / "watched"
    watched.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        paths = [HERE / "swarm_watched", HERE, HERE.parent, os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))
        patch.setenv("FEDSEG_TEST_SWARM", str(watched))
        with federation(folder, limits=ALLOWED) as faults:
            try:
                with faults.local.coordinator(SECONDS) as coordinator:
                    seen.id = coordinator.submit(faults.job("hippocampus_swarm", 2))
                    coordinator.wait(seen.id, timeout=SECONDS)
                    seen.summary, _ = faults.fetch(coordinator, seen.id)
                    seen.stored = contents(faults.kits[SERVER].folder, folder / "out" / "server")
                    (watched / "plain").touch()
                    seen.plain_id = coordinator.submit(faults.job("hippocampus_swarm", 1, title="plain"))
                    coordinator.wait(seen.plain_id, timeout=SECONDS)
                    seen.plain, _ = faults.fetch(coordinator, seen.plain_id)
                    (watched / "plain").unlink()
                    leaders_fail(faults, coordinator, watched, seen)
            except Exception as error:
                pytest.fail(f"{type(error).__name__}: {error}\n{faults.local.tails()}")
    seen.state, seen.watched, seen.data, seen.folder = folder / "out" / "state", watched, folder / "data", folder
    return seen


def contents(*folders):
    """All that lies in these folders."""
    return b"".join(path.read_bytes() for folder in folders for path in sorted(folder.rglob("*")) if path.is_file())


def marks(state, run_id):
    """Pieces of the updates and merged models that the sites of a run keep, as they would stand in a plain message."""
    found = []
    for path in state.glob(f"*/{run_id}/peers/*.safetensors"):
        for value in load_file(path).values():
            text = np.ascontiguousarray(value).tobytes()
            for start in {0, len(text) // 2, len(text) - 48} if len(text) >= 48 else ():
                piece = text[start : start + 48]
                if len(set(piece)) > 16:
                    found.append(piece)
    assert len(found) > 20
    return found


def test_the_model_is_that_of_averaging_over_the_server(seen, tmp_path):
    plain = simulated_weights(tiny_job("hippocampus_fedavg", tmp_path, 2), seen.data)
    for site in SITES:
        found = load_file(seen.state / site / seen.id / "last.safetensors")
        assert all(np.abs(found[name] - value).max() <= 1e-6 for name, value in plain.items() if value.size)


def test_nothing_that_passes_the_server_or_stays_there_holds_a_model(seen):
    frames = (seen.watched / "frames-sealed").read_bytes()
    assert b"fedseg.peers" in frames
    for piece in marks(seen.state, seen.id):
        assert piece not in frames
        assert piece not in seen.stored


def test_the_same_look_finds_models_where_sites_do_not_encrypt(seen):
    frames = (seen.watched / "frames-plain").read_bytes()
    found = [piece in frames for piece in marks(seen.state, seen.plain_id)]
    assert sum(found) > len(found) / 4


def test_leaders_that_die_or_stand_still_are_replaced_within_their_time_and_no_round_is_lost(seen):
    rounds = seen.faults["rounds"]
    assert len(rounds) == 3
    for number, failed in ((KILLED, seen.killed), (SILENT, seen.silent)):
        assert rounds[number]["swarm"]["leader"] != failed
        assert rounds[number]["seconds"] < 2 * TAKE_OVER + 60
        assert any(at == number and "merge" in what for at, what in said(seen.faults, failed)), seen.faults["events"]
    models = {site: load_file(seen.state / site / seen.faults_id / "last.safetensors") for site in SITES}
    for found in models.values():
        assert all(np.array_equal(found[name], value) for name, value in models["alpha"].items())

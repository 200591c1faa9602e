"""A swarm over a real federation with mutual TLS: its model, and what its server sees."""

from types import SimpleNamespace

import numpy as np
import pytest
from fault_parts import SECONDS, SERVER, simulated_weights, watched_swarm
from federation_parts import SITES, tiny_job
from safetensors.numpy import load_file

from tiny import PLAN


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Everything that happened, written down while it ran."""
    folder, seen = tmp_path_factory.mktemp("swarm"), SimpleNamespace()
    with watched_swarm(folder) as (faults, coordinator, watched):
        seen.id = coordinator.submit(faults.job("hippocampus_swarm", 2))
        coordinator.wait(seen.id, timeout=3 * SECONDS)
        seen.summary, _ = faults.fetch(coordinator, seen.id)
        out = folder / "out"
        seen.stored = contents(faults.kits[SERVER].folder, out / "server", out / "state" / "server")
        (watched / "plain").touch()
        seen.plain_id = coordinator.submit(faults.job("hippocampus_swarm", 1, title="plain"))
        coordinator.wait(seen.plain_id, timeout=3 * SECONDS)
        seen.plain, _ = faults.fetch(coordinator, seen.plain_id)
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
    job = tiny_job("hippocampus_fedavg", tmp_path, 2)
    job.set("training", {**PLAN["training"], "local_epochs": 1})
    plain = simulated_weights(job, seen.data)
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

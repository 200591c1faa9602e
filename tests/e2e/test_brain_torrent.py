"""BrainTorrent over a real federation with mutual TLS: an initiator is killed, and the server sees no model."""

from types import SimpleNamespace

import numpy as np
import pytest
from fault_parts import SECONDS, SERVER, said, wait_until, watched_swarm
from federation_parts import SITES
from safetensors.numpy import load_file

pytestmark = pytest.mark.full
KILLED = 1
"""The round whose initiator is killed once it has merged and trained, before it keeps anything."""


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Everything that happened, written down while it ran."""
    folder, seen = tmp_path_factory.mktemp("torrent"), SimpleNamespace()
    with watched_swarm(folder) as (faults, coordinator, watched):
        (watched / f"stall-{KILLED}").touch()
        seen.id = coordinator.submit(faults.job("hippocampus_braintorrent", 5, site_silence=30))
        stalled = watched / f"stalled-{KILLED}"
        wait_until(stalled.exists, SECONDS, lambda: f"nobody takes a turn\n{faults.local.tails()}")
        seen.killed = stalled.read_text()
        # All of the site's processes: a job's process alone is started anew, and may take the same turn after all.
        faults.kill(seen.killed)
        faults.wait_for_event(seen.id, "round_done", round=KILLED)
        coordinator.wait(seen.id, timeout=3 * SECONDS)
        seen.summary, _ = faults.fetch(coordinator, seen.id)
        out = folder / "out"
        places = faults.kits[SERVER].folder, out / "server", out / "state" / "server"
        files = [path for place in places for path in sorted(place.rglob("*")) if path.is_file()]
        seen.at_server = b"".join(path.read_bytes() for path in files) + (watched / "frames-sealed").read_bytes()
    seen.state = folder / "out" / "state"
    return seen


def test_an_initiator_that_is_killed_stops_nobody(seen):
    rounds = seen.summary["rounds"]
    assert len(rounds) == 5
    assert all(entry["turns"] for entry in rounds)
    assert rounds[KILLED]["turns"][0]["initiator"] != seen.killed
    assert rounds[KILLED]["versions"][seen.killed] == 1, "it has changed nothing"
    assert any(number == KILLED for number, _ in said(seen.summary, seen.killed)), seen.summary["events"]
    assert len(seen.summary["final"]["own_models"]) == len(SITES)


def test_what_passes_the_server_or_stays_there_holds_no_model(seen):
    pieces = []
    for path in seen.state.glob(f"*/{seen.id}/peers/*.safetensors"):
        for value in load_file(path).values():
            text = np.ascontiguousarray(value).tobytes()
            if len(text) >= 48 and len(set(text[:48])) > 16:
                pieces.append(text[:48])
    assert len(pieces) > 20
    assert b"fedseg.peers" in seen.at_server
    assert not any(piece in seen.at_server for piece in pieces)

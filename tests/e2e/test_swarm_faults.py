"""Leaders of a swarm die or stand still while they merge, in a real federation: the next one leads."""

from types import SimpleNamespace

import numpy as np
import pytest
from fault_parts import SECONDS, said, wait_until, watched_swarm
from federation_parts import SITES, fedseg
from safetensors.numpy import load_file

from fedseg.provenance.swarm.audit import read_copy
from fedseg.provenance.swarm.ledger import LEDGER_FILE

pytestmark = pytest.mark.full
# One more than fail at once, so that enough are left to merge.
FOUR = {**SITES, "delta": (2, 1)}
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
    settings = {"take_over": TAKE_OVER, "site_silence": SILENCE, "min_peers": 2}
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
    seen.status = coordinator.wait(job_id, timeout=3 * SECONDS)
    seen.faults, _ = faults.fetch(coordinator, job_id)
    seen.faults_id = job_id


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Everything that happened, written down while it ran."""
    folder, seen = tmp_path_factory.mktemp("swarm"), SimpleNamespace()
    with watched_swarm(folder, FOUR) as (faults, coordinator, watched):
        leaders_fail(faults, coordinator, watched, seen)
        root = faults.coordinator_kit / "startup" / "rootCA.pem"
        seen.state = folder / "out" / "state"
        seen.ledgers = sorted(seen.state.glob(f"*/{seen.faults_id}/{LEDGER_FILE}"))
        seen.verified = fedseg("audit-log", "verify", *seen.ledgers, "--root", root)
    return seen


def test_leaders_that_die_or_stand_still_are_replaced_within_their_time_and_no_round_is_lost(seen):
    rounds = seen.faults["rounds"]
    assert len(rounds) == 3
    for number, failed in ((KILLED, seen.killed), (SILENT, seen.silent)):
        # A process that is started anew in time may merge after all; one that stands still cannot.
        assert number == KILLED or rounds[number]["swarm"]["leader"] != failed
        assert rounds[number]["seconds"] < 4 * TAKE_OVER
        assert any(at == number and "merge" in what for at, what in said(seen.faults, failed)), seen.faults["events"]
    models = {
        site: load_file(seen.state / site / seen.faults_id / "last.safetensors")
        for site in seen.faults["final"]["sites"]
    }
    assert len(models) >= 3
    first = next(iter(models.values()))
    for found in models.values():
        assert all(np.array_equal(found[name], value) for name, value in first.items())


def test_the_ledgers_of_the_sites_are_signed_and_agree(seen):
    assert seen.verified.code == 0, seen.verified
    assert "not signed" not in seen.verified.out
    copies = [read_copy(path) for path in seen.ledgers]
    assert [signed.block.round for signed in copies[0].blocks] == [0, 1, 2]
    assert all(len(signed.signatures) >= 2 for copy in copies for signed in copy.blocks)

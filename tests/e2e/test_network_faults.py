"""Slow sites, cut networks, sites that give up, a server that stands still, and a process killed while it spends
privacy.

One federation of five jobs. All faults at sites are gamma's: it has far more cases than the others and, where the
machine permits, a network of its own; it starts a job's process once more, not twice. The server drops a client that is
silent for HEARTBEAT seconds.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from fault_parts import SECONDS, SERVER, federation, said, wait_until

from fedseg.deployment.local.processes import free_port
from fedseg.privacy.accounting.epsilon import Release, epsilon
from fedseg.privacy.accounting.ledger import Ledger

pytestmark = pytest.mark.full

SITES = {"alpha": (3, 1), "beta": (3, 1), "gamma": (240, 1)}
# gamma's rounds take 60 times as long as those of the others.
HEARTBEAT, LIMIT, SLOW_EPOCHS, EPOCHS = 30, 20, 25, 2
# Seconds until a site says that it has left, and until the server believes that one is gone.
FAREWELL, DOUBT = 25, 25
ROUNDS, CUT_ROUNDS = 3, 6
CLIP, NOISE, DELTA, PRIVATE_EPOCHS = 0.1, 8.0, 1e-6, 1
# Listens at one address and hands everything on to another.
RELAY = """
import socket, sys, threading
host, port, to_host, to_port = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
def pump(source, target):
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass
    source.close(); target.close()
with socket.create_server((host, port)) as server:
    while True:
        here = server.accept()[0]
        try:
            there = socket.create_connection((to_host, to_port), timeout=10)
        except OSError:
            here.close(); continue
        there.settimeout(None)
        for pair in ((here, there), (there, here)):
            threading.Thread(target=pump, args=pair, daemon=True).start()
"""


class Network:
    """A network for one site, joined with the machine's by a cable that can be pulled."""

    def __init__(self):
        number = os.getpid() % 200 + 20
        self.name, self.cable, self.plug = f"fedseg{os.getpid()}", f"fs{os.getpid()}a", f"fs{os.getpid()}b"
        self.here, self.there = f"10.213.{number}.1", f"10.213.{number}.2"
        self.wrapper, self.relays = ["ip", "netns", "exec", self.name], []

    def __enter__(self):
        self.run("netns", "add", self.name)
        self.run("link", "add", self.cable, "type", "veth", "peer", "name", self.plug, "netns", self.name)
        self.run("addr", "add", f"{self.here}/30", "dev", self.cable)
        self.run("link", "set", self.cable, "up")
        for words in (("addr", "add", f"{self.there}/30", "dev", self.plug), ("link", "set", self.plug, "up")):
            self.run("-n", self.name, *words)
        self.run("-n", self.name, "link", "set", "lo", "up")
        return self

    def __exit__(self, *error):
        for relay in self.relays:
            relay.kill()
            relay.wait()
        for words in (("link", "del", self.cable), ("netns", "del", self.name)):
            with contextlib.suppress(subprocess.CalledProcessError):
                self.run(*words)

    @staticmethod
    def run(*words):
        subprocess.run(["ip", *words], check=True, capture_output=True)

    def connect(self, port):
        """Let the site find the server at its own localhost, as its kit says."""
        between = free_port()
        for wrapper, ends in (
            ([], (self.here, between, "localhost", port)),
            (self.wrapper, ("127.0.0.1", port, self.here, between)),
        ):
            self.relays.append(subprocess.Popen([*wrapper, sys.executable, "-c", RELAY, *map(str, ends)]))

    def cut(self):
        self.run("link", "set", self.cable, "down")

    def restore(self):
        self.run("link", "set", self.cable, "up")


@pytest.fixture(scope="module")
def network():
    """None where the machine permits no network of its own; then the site's processes are stopped instead."""
    if os.geteuid() == 0 and shutil.which("ip"):
        made = Network()
        try:
            made.__enter__()
        except (OSError, subprocess.CalledProcessError):
            made.__exit__()
        else:
            yield made
            made.__exit__()
            return
    yield None


def configure(network):
    """What this federation's kits say besides."""

    def change(local):
        kits = {kit.name: kit.folder / "local" / "resources.json" for kit in local.federation.kits}
        resources = json.loads(kits[SERVER].read_text("utf-8"))
        resources["servers"][0]["heart_beat_timeout"] = HEARTBEAT
        kits[SERVER].write_text(json.dumps(resources), "utf-8")
        resources = json.loads(kits["gamma"].read_text("utf-8"))
        (launcher,) = [part for part in resources["components"] if part["id"] == "process_launcher"]
        launcher["args"] = {"restarts": 1, "pause": 1.0}
        kits["gamma"].write_text(json.dumps(resources), "utf-8")
        if network is not None:
            network.connect(local.port)
            local.wrappers["gamma"] = network.wrapper

    return change


def slow_site(faults, coordinator, seen):
    job = faults.job(
        "hippocampus_fedavg", ROUNDS, SLOW_EPOCHS, "slow", round_timeout=LIMIT, prepare_timeout=120, site_silence=0
    )
    job_id = coordinator.submit(job)
    seen.slow_status = coordinator.wait(job_id, timeout=SECONDS)
    seen.slow, _ = faults.fetch(coordinator, job_id)


def cut_network(faults, coordinator, seen, network):
    """Cut in round 1 for longer than the heartbeat, while the others go on; restored, the site is asked again."""
    job_id = coordinator.submit(faults.job("hippocampus_fedavg", CUT_ROUNDS, EPOCHS, "cut", site_silence=0))
    faults.wait_for_training("gamma", job_id, 1)
    start, stopped = time.monotonic(), [] if network else faults.processes("gamma")
    network.cut() if network else [process.suspend() for process in stopped]
    faults.wait_for_event(job_id, "round_done", round=1)
    seen.cut_seconds = time.monotonic() - start
    seen.cut_sites = coordinator.sites()
    network.restore() if network else [process.resume() for process in stopped]
    seen.cut_status = coordinator.wait(job_id, timeout=SECONDS)
    wait_until(lambda: "gamma" in coordinator.sites(), 60, faults.local.tails)
    seen.cut, _ = faults.fetch(coordinator, job_id)


def giving_up(faults, coordinator, seen):
    job_id = coordinator.submit(faults.job("hippocampus_fedavg", ROUNDS, EPOCHS, "given-up", site_silence=0))
    faults.wait_for_training("gamma", job_id, 1)
    first = faults.process("gamma", job_id)
    first.kill()
    second = faults.process("gamma", job_id, [first.pid])
    start = time.monotonic()
    second.kill()
    faults.wait_for_event(job_id, "round_done", round=1)
    seen.given_up_seconds = time.monotonic() - start
    seen.given_up_status = coordinator.wait(job_id, timeout=SECONDS)
    seen.given_up, _ = faults.fetch(coordinator, job_id)


def server_stands_still(faults, coordinator, seen):
    """As a virtual machine that is frozen, longer than the server's own patience with its clients."""
    job_id = coordinator.submit(faults.job("hippocampus_fedavg", ROUNDS, EPOCHS, "frozen"))
    faults.wait_for_training("gamma", job_id, 1)
    stopped = faults.processes(SERVER)
    for process in stopped:
        process.suspend()
    try:
        time.sleep(HEARTBEAT + 15)
    finally:
        for process in stopped:
            process.resume()
    seen.frozen_status = coordinator.wait(job_id, timeout=SECONDS)
    seen.frozen, _ = faults.fetch(coordinator, job_id)


def killed_while_spending(faults, coordinator, seen):
    """The server cannot hear gamma until gamma has entered its release, and is killed: it must be made once more."""
    job = faults.job("hippocampus_gaussian_dp", ROUNDS, PRIVATE_EPOCHS, "private")
    for key, value in (("clip", CLIP), ("noise_multiplier", NOISE), ("delta", DELTA)):
        job.set(f"filter.DPSGD.{key}", value)
    job_id = coordinator.submit(job)
    faults.wait_for_training("gamma", job_id, 1)
    server, folder = faults.process(SERVER, job_id), faults.folder / "out" / "state" / "gamma" / "ledger"
    server.suspend()
    try:
        wait_until(lambda: len(Ledger(folder).history()) == 2, 120, faults.local.tails)
        faults.process("gamma", job_id).kill()
    finally:
        server.resume()
    seen.private_status = coordinator.wait(job_id, timeout=SECONDS)
    seen.private, _ = faults.fetch(coordinator, job_id)
    seen.ledgers = {s: Ledger(faults.folder / "out" / "state" / s / "ledger").history() for s in SITES}


@pytest.fixture(scope="module")
def seen(tmp_path_factory, network):
    """Everything that happened, written down while it ran."""
    folder, seen = tmp_path_factory.mktemp("network"), SimpleNamespace()
    with federation(folder, SITES, before_start=configure(network)) as faults:
        try:
            with faults.local.coordinator(SECONDS) as coordinator:
                killed_while_spending(faults, coordinator, seen)
                giving_up(faults, coordinator, seen)
                server_stands_still(faults, coordinator, seen)
                cut_network(faults, coordinator, seen, network)
                slow_site(faults, coordinator, seen)
        except Exception as error:
            pytest.fail(f"{type(error).__name__}: {error}\n{faults.local.tails()}")
    return seen


def took_part(summary):
    return [sorted(entry["sites"]) for entry in summary["rounds"]]


def test_a_site_slower_than_the_round_limit_is_named_and_left_out(seen):
    assert seen.slow_status == "FINISHED:COMPLETED"
    assert took_part(seen.slow) == [["alpha", "beta"]] * ROUNDS
    assert (0, f"did not answer the task train within {LIMIT} s") in said(seen.slow, "gamma")
    assert all(LIMIT <= entry["seconds"] < 2 * LIMIT for entry in seen.slow["rounds"])
    assert {"alpha", "beta"} <= set(seen.slow["final"]["sites"])


def test_a_cut_network_costs_no_more_than_the_servers_heartbeat_and_the_site_comes_back(seen):
    assert seen.cut_status == "FINISHED:COMPLETED"
    assert "gamma" not in seen.cut_sites
    assert seen.cut_seconds < HEARTBEAT + DOUBT + 30
    rounds = took_part(seen.cut)
    assert rounds[1] == ["alpha", "beta"]
    assert rounds[-1] == sorted(SITES)
    lost, *later = said(seen.cut, "gamma")
    assert lost[0] == 1
    assert "its FLARE client is not connected, or has no process of this job" in lost[1]
    assert later[-1][1] == "is heard of again, and is asked again"
    assert [entry["round"] for entry in seen.cut["rounds"]] == list(range(CUT_ROUNDS))


def test_a_server_that_stood_still_goes_on_with_all_sites(seen):
    assert seen.frozen_status == "FINISHED:COMPLETED"
    assert took_part(seen.frozen) == [sorted(SITES)] * ROUNDS
    assert seen.frozen["rounds"][1]["seconds"] > HEARTBEAT
    assert sorted(seen.frozen["final"]["sites"]) == sorted(SITES)


def test_a_site_that_gives_up_ends_nobody_elses_job(seen):
    assert seen.given_up_status == "FINISHED:COMPLETED"
    assert took_part(seen.given_up) == [sorted(SITES), ["alpha", "beta"], ["alpha", "beta"]]
    assert FAREWELL <= seen.given_up_seconds < FAREWELL + DOUBT + 40
    number, what = said(seen.given_up, "gamma")[-1]
    assert number == 1
    assert "has no process of this job" in what
    assert sorted(seen.given_up["final"]["sites"]) == ["alpha", "beta"]


def test_a_killed_process_forgets_nothing_that_was_spent(seen):
    assert seen.private_status == "FINISHED:COMPLETED"
    assert [entry["round"] for entry in seen.ledgers["gamma"]] == [0, 1, 1, 2]
    for site in ("alpha", "beta"):
        assert [entry["round"] for entry in seen.ledgers[site]] == [0, 1, 2]
    for site, entries in seen.ledgers.items():
        release = Release("gaussian", NOISE / 2, unit="patient", count=PRIVATE_EPOCHS)
        spent = epsilon([release] * len(entries), DELTA)
        assert seen.private["rounds"][-1]["sites"][site]["epsilon"] == pytest.approx(spent)

"""What the tests share that kill, stop and cut the processes of a real federation."""

import contextlib
import json
import os
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from federation_parts import COORDINATOR, POLICY, SITES, TEMPLATE, tiny_job
from safetensors.numpy import load_file

from fedseg.data.datalist import read_datalist
from fedseg.deployment.coordination.fetched_run import fetch_into
from fedseg.deployment.kits.project_file import HOST, read_project
from fedseg.deployment.local.federation import running
from fedseg.deployment.local.folder import LOGS
from fedseg.deployment.local.processes import launch
from fedseg.deployment.operation.kit_processes import living_processes
from fedseg.processes import FLARE_PROGRAMS
from fedseg.simulation.in_process import InProcessFederation
from tiny import PLAN, make_sites

SERVER = HOST
SECONDS = 300
JOB_PROGRAMS = {f"{FLARE_PROGRAMS}client.worker_process", f"{FLARE_PROGRAMS}server.runner_process"}


class Faults:
    """A running federation and what tests do to it."""

    def __init__(self, local, folder):
        self.local, self.folder = local, folder
        self.kits = {kit.name: kit for kit in local.federation.kits}
        self.coordinator_kit = self.kits[COORDINATOR].folder

    def job(self, name, rounds, epochs=1, title="", **settings):
        """A tiny job that takes longer with more epochs."""
        folder = self.folder / "jobs" / (title or name)
        folder.mkdir(parents=True)
        job = tiny_job(name, folder, rounds)
        job.set("training", {**PLAN["training"], "local_epochs": epochs})
        for key, value in settings.items():
            job.set(f"workflow.{key}", value)
        job.check()
        return job

    def events(self, job_id, kind=None):
        """What the server has written so far of a job that is running or not fetched."""
        path = self.kits[SERVER].folder / job_id / "fedseg" / "progress.jsonl"
        lines = path.read_text("utf-8").splitlines() if path.is_file() else []
        return [event for event in map(json.loads, lines) if kind in (None, event["event"])]

    def wait_for_event(self, job_id, kind, seconds=SECONDS, **facts):
        """The first event of this kind with these facts."""

        def found():
            return [e for e in self.events(job_id, kind) if all(e.get(key) == value for key, value in facts.items())]

        wait_until(found, seconds, lambda: f"no {kind} {facts} in {self.events(job_id)}\n{self.local.tails()}")
        return found()[0]

    def wait_for_training(self, site, job_id, number):
        """Wait until a site works on its task of this round; works for sites whose process was not killed before."""
        self.wait_for_event(job_id, "round", round=number)
        log = self.kits[site].folder / job_id / "log.txt"

        def trains():
            text = log.read_text("utf-8", "replace")
            begun = text.count("got task assignment: name=train")
            return begun > sum("task_name=train" in x and "finished processing task" in x for x in text.splitlines())

        wait_until(trains, 60, lambda: f"{site} does not train in round {number}\n{self.local.tails()}")

    def processes(self, name):
        """All processes of a participant, FLARE's own first."""
        participant = self.local.participant(name)
        found = living_processes([participant.kit.folder], [participant.process.pid])
        return sorted(found, key=lambda process: process.pid != participant.process.pid)

    def kill(self, name):
        """End all processes of a participant at once, as a loss of power would."""
        for process in self.processes(name):
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.local.participant(name).process.wait()

    def restart(self, name):
        """Start a participant again whose processes were killed."""
        position = self.local.participants.index(self.local.participant(name))
        self.local.participants[position] = launch(self.kits[name], self.local.folder / LOGS)

    def fetch(self, coordinator, job_id):
        """The summary of an ended job, and the folder of its run."""
        folder = self.folder / "runs" / job_id
        folder.mkdir(parents=True)
        summary, failure = fetch_into(coordinator, job_id, folder)
        assert summary is not None, f"{failure}\n{self.local.tails()}"
        return summary, folder

    def process(self, name, job_id, other_than=()):
        """The one process of a job at a participant, waited for."""

        def found():
            return [p for p in job_processes(self.kits[name], job_id) if p.pid not in other_than]

        wait_until(found, 60, lambda: f"{name} has no process of {job_id}\n{self.local.tails()}")
        return found()[0]


def job_processes(kit, job_id):
    """The living processes of a job that run from a kit."""
    found = []
    for process in living_processes([kit.folder]):
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if JOB_PROGRAMS & set(command) and job_id in command:
                found.append(process)
    return found


def wait_until(condition, seconds, why):
    """Poll; a condition that does not come true fails the test with the reason."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, why()
        time.sleep(0.1)


@contextmanager
def federation(folder, sites=SITES, **arguments):
    """A federation of tiny sites, ready to take jobs."""
    data, out = make_sites(folder / "data", sites), folder / "out"
    out.mkdir()
    with running(read_project(TEMPLATE), POLICY, data, list(sites), out, **arguments) as local:
        yield Faults(local, folder)


@contextmanager
def watched_swarm(folder, sites=SITES):
    """A federation whose sites may be peers, its coordinator, and the folder in which its processes write down what
    they see (``swarm_watched``)."""
    here, watched = Path(__file__).parent, folder / "watched"
    watched.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        paths = [here / "swarm_watched", here, here.parent, os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))
        patch.setenv("FEDSEG_TEST_SWARM", str(watched))
        with federation(folder, sites, limits={site: {"peers": True} for site in sites}) as faults:
            try:
                with faults.local.coordinator(SECONDS) as coordinator:
                    yield faults, coordinator, watched
            except Exception as error:
                pytest.fail(f"{type(error).__name__}: {error}\n{faults.local.tails()}")


def said(summary, site):
    """What the coordinator reads of a site: (round, text)."""
    return [(event["round"], event["what"]) for event in summary["events"] if event["site"] == site]


def simulated_weights(job, data):
    """The last model of a job without any fault, computed in this process."""
    simulated = InProcessFederation(job, {site: read_datalist(data / site) for site in SITES})
    simulated.run()
    return simulated.model.weights


def assert_equal_model(run, weights):
    """The run's last model has these weights, to 1e-6."""
    last = load_file(run / "models" / "last.safetensors")
    assert set(last) == set(weights)
    for name, value in weights.items():
        np.testing.assert_allclose(last[name], value, rtol=0, atol=1e-6, err_msg=name)

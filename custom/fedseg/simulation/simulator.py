"""A whole federation on one machine: FLARE's simulator with real processes, from a job folder to a report."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fedseg.files.locks import held_locks
from fedseg.jobs.allowed_components import site_privacy, site_resources
from fedseg.jobs.job import Job
from fedseg.processes import MemoryWatch, end_processes, process_group, process_tree
from fedseg.simulation.run_folder import (
    LOG,
    MARKER,
    SERVER_FOLDER,
    Event,
    SimulationResult,
    end_run,
    rescue_updates,
    site_environment,
    start_run,
)
from fedseg.site.profile import LEDGER_VARIABLE, POLICY_FILE
from fedseg.workflows.run.record import PROGRESS_FILE

PATIENCE = 30.0


def simulate(
    job: Job,
    data: Path,
    out: Path,
    sites: list[str],
    on_event: Callable[[Event], None],
    ledger: Path | None = None,
    gpu: str | None = None,
) -> SimulationResult:
    """Run a job in FLARE's simulator, every site a process of its own.

    Args:
        job: the checked job.
        data: folder with ``<site>/datalist.json``.
        out: the run's folder, as ``prepare_output`` or ``prepare_resume`` left it.
        sites: names of the sites.
        on_event: called with each event of the server as it happens.
        ledger: folder for the sites' privacy ledgers; None keeps them with the run, so that runs do not add up.
        gpu: FLARE's GPU list; None leaves each site the device that torch finds (the first GPU, else the CPU).

    Raises:
        FedsegError: the run ended without a model; the text names the reason and the log.
        KeyboardInterrupt: handed on after all processes have ended.
    """
    start = time.monotonic()
    start_run(job, out, out / "state", sites)
    workspace = out / "workspace"
    _write_workspace(workspace, any((data / site / POLICY_FILE).exists() for site in sites))
    environment = {name: value for name, value in os.environ.items() if name != LEDGER_VARIABLE}
    environment |= {**site_environment(data, out / "state", ledger), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "nvflare.private.fed.app.simulator.simulator", str((out / MARKER).resolve())]
    command += ["-w", str(workspace.resolve()), "-c", ",".join(sites)]
    command += ["-gpu", gpu] if gpu else ["-t", str(len(sites))]
    with (out / LOG).open("a") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            pass_fds=held_locks(),
        )
        watch = MemoryWatch(process.pid)
        try:
            _follow(process, out / SERVER_FOLDER / PROGRESS_FILE, on_event)
        finally:
            family = process_tree(process.pid)
            watch.stop()
            end_processes({*family, *process_group(process.pid)})
            rescue_updates(out)
    results = end_run(job, out, sites)
    return SimulationResult(results, time.monotonic() - start, {**watch.peak, "total": watch.peak_total})


def _write_workspace(workspace: Path, guarded: bool) -> None:
    """What the simulated sites allow: the classes of fedseg, and with a policy their guard."""
    (workspace / "local").mkdir(parents=True)
    (workspace / "local" / "resources.json").write_text(json.dumps(site_resources(), indent=2), "utf-8")
    if guarded:
        (workspace / "local" / "privacy.json").write_text(json.dumps(site_privacy(), indent=2), "utf-8")


def _follow(process: subprocess.Popen[bytes], path: Path, on_event: Callable[[Event], None]) -> None:
    """Hand on the server's events until the simulator has ended, or should have.

    The simulator waits for ever for a site whose task never returns; once the server has finished, nobody needs it.
    """
    position, finished = 0, math.inf
    while True:
        ended = process.poll() is not None or time.monotonic() - finished > PATIENCE
        if path.exists():
            with path.open(encoding="utf-8") as file:
                file.seek(position)
                for line in iter(file.readline, ""):
                    if not line.endswith("\n"):
                        break
                    position += len(line.encode())
                    event = json.loads(line)
                    on_event(event)
                    if event["event"] in ("finished", "failed"):
                        finished = time.monotonic()
        if ended:
            return
        time.sleep(0.2)

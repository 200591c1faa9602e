"""The folder of a simulated run: made, cleared, resumed, and filled from where the server left its results."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedseg.contract.protocol import PLAN_FILE
from fedseg.contract.round_numbers import from_nth, listed
from fedseg.data.checks.datalist_check import takes_part_unscored
from fedseg.data.datalist import read_datalist
from fedseg.errors import FedsegError, UsageError
from fedseg.evaluation.summary import PERSONAL_MODELS
from fedseg.files.documents import load_json, write_whole
from fedseg.files.folders import clear_output
from fedseg.files.full_disk import lacks_room
from fedseg.files.outputs import check_new_folder
from fedseg.jobs.components import receivers
from fedseg.jobs.job import Job, read_job
from fedseg.models.note import copy_with_note
from fedseg.provenance.run_log import RECORD_FILE, copy_record
from fedseg.simulation.encryption import give_contexts, open_models
from fedseg.simulation.models_at_sites import fetch_models
from fedseg.site.profile import CONTEXT_FILE, DATA_VARIABLE, LEDGER_VARIABLE, STATE_VARIABLE
from fedseg.version import __version__
from fedseg.workflows.run.checkpoint import Checkpoints
from fedseg.workflows.run.record import AVERAGE_MODEL, BEST_MODEL, FOLDER, LAST_MODEL, PROGRESS_FILE, RESULTS_FILE
from fedseg.workflows.run.workflow import Workflow

Event = dict[str, Any]
MARKER = "job"
SERVER = "server"
LOG = "simulator.log"
LEDGER_NOTE = "ledger.txt"
TASK_REQUEST_INTERVAL = 0.35
SERVER_FOLDER = Path("workspace") / "server" / "simulate_job" / FOLDER
_OF_START = ("workspace", "report", "models")
_MISSING = {"final": "a finished model"}
_NO_LEFTOVERS = ("workspace", "state", "report", "models", "updates", MARKER)


@dataclass(frozen=True)
class SimulationResult:
    """What a simulated run left.

    Attributes:
        results: what the server recorded.
        wall_seconds: from the start to the end.
        peak_rss_mb: largest resident memory per process, and ``total`` at one moment, in MiB.
    """

    results: dict[str, Any]
    wall_seconds: float
    peak_rss_mb: dict[str, float]


def prepare_output(out: Path, overwrite: bool, needed: Mapping[str, Path | None] | None = None) -> None:
    """Make sure that ``out`` can become the folder of a run.

    Args:
        out: the folder.
        overwrite: whether a former run in it may be replaced.
        needed: files and folders that the run reads, by the option that named them; None where an option names none.

    Raises:
        UsageError: it holds something else, a run that may not be replaced, or what the run reads.
    """
    former = (out / MARKER / "app" / "config" / PLAN_FILE).is_file() and (out / LOG).is_file()
    clear_output(out, "run", former, overwrite, _NO_LEFTOVERS, needed)


def prepare_resume(out: Path, name: str, from_round: int | None) -> Job:
    """The job of a stopped run as it was, set to go on; nothing in the folder is changed yet.

    Args:
        out: folder of the stopped run.
        name: the job's name, to be sure that the right run goes on.
        from_round: the finished round to continue after, from 1; None for the last one.

    Raises:
        UsageError: the folder holds no run, one of another job, or no checkpoint to continue from.
    """
    if not (out / MARKER / "app" / "config" / PLAN_FILE).is_file():
        raise UsageError(f"--out {out} holds no run that could go on.")
    job = read_job(out / MARKER)
    if job.name != name:
        raise UsageError(f"--out {out} holds a run of the job {job.name}, not of {name}.")
    run_id, keep = job.workflow.get("run_id"), job.workflow.get("keep_checkpoints", 2)
    checkpoints = Checkpoints(out / "state" / SERVER / str(run_id), keep)
    rounds = checkpoints.resumable() if run_id else []
    if not rounds:
        raise UsageError(
            f"--out {out}: no round of this run was finished, so there is nothing to continue; start anew."
        )
    if from_round is not None and from_nth(from_round) not in rounds:
        raise UsageError(
            f"--from-round {from_round}: the run can go on after the rounds {listed(rounds)}; sites keep "
            "no older states. A run started with --set workflow.keep_checkpoints=0 keeps all."
        )
    chosen = rounds[-1] if from_round is None else from_nth(from_round)
    version = checkpoints.load(chosen)[1]["version"]
    if version != __version__:
        raise UsageError(f"--out {out}: the run was made by fedseg {version}, this is {__version__}; install that one.")
    job.workflow.update(resume=True, resume_round=chosen)
    return job


def check_enough_sites(job: Job, data: Path, sites: Sequence[str]) -> None:
    """Refuse a job for which there are too few sites, which would be known after all processes have started.

    Args:
        job: the checked job.
        data: folder with ``<site>/datalist.json``.
        sites: names of the sites.

    Raises:
        UsageError: says how many sites there are, which of them cannot train, and how many the job needs.
    """
    workflow = job.build_workflow()
    if isinstance(workflow, Workflow) and not workflow.settings.num_rounds:
        return
    lists = {site: read_datalist(data / site) for site in sites}
    idle = [s for s, d in lists.items() if not d.training or not (d.scorable.validation or takes_part_unscored(d))]
    able, needed = len(sites) - len(idle), workflow.settings.min_sites
    if able < needed:
        without = f", and {', '.join(idle)} without training or validation cases" if idle else ""
        raise UsageError(
            f"--data {data}: the job needs {needed} sites (workflow.min_sites), but there are {able}{without}. "
            "Add sites, or set workflow.min_sites."
        )


def check_simulated(job: Job) -> None:
    """Refuse a job whose server would pass curves on to a tracker: a run on this machine is exported when it has ended.

    Raises:
        UsageError: names the component, and the command that exports.
    """
    if found := receivers(job.server):
        name = found[0]["path"].rpartition(".")[2]
        raise UsageError(
            f"{job.name}: {name} is for the server of a real federation. Leave it out, and call `fedseg export` after "
            "the run."
        )


def check_reads(out: Path, data: Path) -> None:
    """Refuse data in a folder that a run empties when it goes on.

    Raises:
        UsageError: names the folder.
    """
    for part in _OF_START:
        check_new_folder("--out", out / part, {"--data": data})


def ledger_folder(out: Path, given: Path | None, resume: bool) -> Path | None:
    """Where the sites' privacy ledgers are to be kept: a run that goes on spends from the ledger that it began with.

    Args:
        out: folder of the run.
        given: what the user asks for; None for what the run had, and for the run's own folder if it is new.
        resume: whether a stopped run goes on.

    Raises:
        UsageError: a run is to go on with another ledger than it had.
    """
    note = out / LEDGER_NOTE
    had = Path(note.read_text("utf-8")) if resume and note.is_file() else None
    if resume and given is not None and (had is None or had.resolve() != given.resolve()):
        raise UsageError(
            f"--ledger {given}: the run began with {had or 'the ledgers in its own folder'}, and goes on with them."
        )
    if not resume:
        note.unlink(missing_ok=True)
        if given is not None:
            write_whole(note, str(given.resolve()))
    return had if given is None else given


def check_sites(out: Path, job: Job, sites: Sequence[str]) -> None:
    """Refuse to continue a run with other sites than it had.

    Raises:
        UsageError: a site that took part has no data now.
    """
    checkpoints = Checkpoints(out / "state" / SERVER / job.workflow["run_id"])
    had = checkpoints.load(job.workflow["resume_round"], False)[1]["seconds_of"]
    if missing := sorted(set(had) - set(sites)):
        raise UsageError(f"--data: the run had the site(s) {', '.join(missing)}, of which there is no folder now.")


def site_environment(data: Path, state: Path, ledger: Path | None) -> dict[str, str]:
    """Where simulated sites find their data, their state and their ledgers; see ``fedseg.site.profile``.

    Args:
        data: folder with ``<site>/datalist.json``.
        state: for the state folder of each site.
        ledger: folder for the sites' privacy ledgers; None keeps them with the run, so that runs do not add up.
    """
    found = {DATA_VARIABLE: str(data.resolve()), STATE_VARIABLE: str(state.resolve())}
    return found if ledger is None else {**found, LEDGER_VARIABLE: str(ledger.resolve())}


def start_run(job: Job, out: Path, state: Path, sites: Sequence[str]) -> None:
    """Write the job that runs, make room for its workspace, and give the sites their key where the job encrypts.

    Args:
        job: the checked job; it gets the id of the run and short waits.
        out: the run's folder, as ``prepare_output`` or ``prepare_resume`` left it.
        state: for the state folders of server and sites.
        sites: names of the sites.
    """
    # Many short rounds on one machine: ask for tasks oftener than over a hospital's network.
    job.server.setdefault("server", {})["task_request_interval"] = TASK_REQUEST_INTERVAL
    job.client["default_task_fetch_interval"] = TASK_REQUEST_INTERVAL
    job.workflow.setdefault("run_id", uuid.uuid4().hex)
    _write_job(job, out / MARKER)
    _clear_for_start(out, job.workflow.get("resume_round"))
    if job.build_workflow().encrypts:
        give_contexts(state, sites, SERVER)


def end_run(job: Job, out: Path, sites: Sequence[str]) -> dict[str, Any]:
    """Move what the run leaves out of its workspace, and open models that are encrypted; the server's results.

    Args:
        job, out, sites: see ``start_run``.

    Raises:
        FedsegError: the run ended without a model; the text names the reason and the log.
    """
    results = _collect(out, out / LOG, job.build_workflow().result)
    if job.build_workflow().encrypts:
        context = out / "state" / sites[0] / CONTEXT_FILE
        results = open_models(results, out / SERVER_FOLDER, out / "models", context)
    fetch_models(results, out / SERVER_FOLDER, out / "models", out / "state", sites)
    return results


def _clear_for_start(out: Path, resume_round: int | None) -> None:
    """Make room for FLARE's workspace; what a former start left there and is still wanted is moved out first."""
    rescue_updates(out)
    for folder in (out / "updates").glob("round-*"):
        if resume_round is None or int(folder.name.removeprefix("round-")) > resume_round:
            shutil.rmtree(folder)
    for leftover in _OF_START:
        shutil.rmtree(out / leftover, ignore_errors=True)


def rescue_updates(out: Path) -> None:
    """Move the kept updates out of FLARE's workspace, which the next start would empty."""
    kept = out / SERVER_FOLDER / "updates"
    for folder in kept.glob("round-*"):
        (out / "updates").mkdir(exist_ok=True)
        shutil.rmtree(out / "updates" / folder.name, ignore_errors=True)
        shutil.move(folder, out / "updates" / folder.name)


def _write_job(job: Job, folder: Path) -> None:
    """Write the job that runs; a resumed run replaces its own copy, from which it was read."""
    new = folder.with_name(folder.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    written = job.write(new)
    shutil.rmtree(folder, ignore_errors=True)
    written.rename(folder)


def _collect(out: Path, log: Path, needed: str) -> dict[str, Any]:
    """Move models, their provenance and the run's record out of FLARE's workspace.

    Args:
        out: folder of the run.
        log: where messages send the reader.
        needed: the part of the results without which the run is not finished.

    Returns:
        The server's results.
    """
    server = out / SERVER_FOLDER
    copy_record(server / RECORD_FILE, out / "report")
    failure = ""
    if (server / PROGRESS_FILE).exists():
        events = [json.loads(line) for line in (server / PROGRESS_FILE).read_text("utf-8").splitlines()]
        failure = next((e["what"] for e in events if e["event"] == "failed"), "")
    results = load_json(server / RESULTS_FILE) if (server / RESULTS_FILE).exists() else {}
    (out / "models").mkdir(exist_ok=True)
    of_sites = sorted(results.get("final", {}).get("models", {}).values())
    of_sites += sorted(results.get(PERSONAL_MODELS, {}).values())
    for name in (LAST_MODEL, BEST_MODEL, AVERAGE_MODEL, *of_sites):
        if (server / name).exists():
            copy_with_note(server / name, out / "models")
    if needed not in results:
        if lacks_room(out):
            # Then nothing could be written of the reason either.
            failure = f"The disk of {out} is full. Make room on it, then add --resume."
        failure = failure or "The simulator stopped without a reason."
        raise FedsegError(f"The run ended without {_MISSING.get(needed, needed)}. {failure} See {log}.")
    return results

"""A job that was fetched from a federation, in the form of a run: models, summary and report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from fedseg.contract.protocol import STATISTICS
from fedseg.deployment.coordination.session import Coordinator
from fedseg.errors import DataError, FedsegError
from fedseg.evaluation.report.page import write_report
from fedseg.evaluation.summary import describe_run, write_summary
from fedseg.files.documents import read_json
from fedseg.files.folders import new_folder
from fedseg.jobs.job import Job, read_job
from fedseg.models.note import SUFFIX
from fedseg.provenance.run_log import RECORD_FILE, copy_record
from fedseg.workflows.run.record import FOLDER, PROGRESS_FILE, RESULTS_FILE

MODELS, REPORT, DOWNLOADED = "models", "report", "workspace"
_MODEL_FILES = ("*.safetensors", "*.encrypted", f"*{SUFFIX}")


class UnfinishedError(FedsegError):
    """A job ended without a model that every site has scored; what there is of it was fetched."""


def fetch(coordinator: Coordinator, job_id: str, out: Path) -> dict[str, Any]:
    """Fetch an ended job into a new folder; see ``fetch_into``.

    Raises:
        UsageError: ``out`` is not empty.
        FederationError: there is no such job, it still runs, or this person may not fetch it.
        UnfinishedError: the job failed; what the server kept of it lies in ``out`` all the same.
    """
    with new_folder(out) as folder:
        summary, failure = fetch_into(coordinator, job_id, folder)
    return require_finished(summary, failure, out)


def fetch_into(coordinator: Coordinator, job_id: str, folder: Path) -> tuple[dict[str, Any] | None, str]:
    """Fetch an ended job and write models, ``report/summary.json`` and ``report/report.html``.

    The models' provenance files come with them, and the server's record of the run lies in ``report``. What the server
    kept lies in ``workspace`` as it came. Scores that sites withheld are not known here, nor is how much memory the
    processes took.

    Args:
        coordinator: a session.
        job_id: of the job.
        folder: an existing folder without such parts.

    Returns:
        The summary (of a job of statistics these alone) and nothing, or None and the reason why the job left no
        finished model.
    """
    coordinator.download(job_id, folder).rename(folder / DOWNLOADED)
    server = folder / DOWNLOADED / "workspace" / FOLDER
    (folder / MODELS).mkdir()
    for pattern in _MODEL_FILES:
        for model in server.glob(pattern):
            shutil.copy2(model, folder / MODELS)
    copy_record(server / RECORD_FILE, folder / REPORT)
    meta = read_json(folder / DOWNLOADED / "meta.json", "FLARE's facts about the job")
    path = server / RESULTS_FILE
    results = read_json(path, "the results of a run") if path.is_file() else {}
    if STATISTICS in results:
        return {STATISTICS: results[STATISTICS]}, ""
    if "final" not in results:
        return None, _failure(server, meta)
    summary = _summary(submitted_job(folder / DOWNLOADED), results, meta)
    write_summary(summary, folder / REPORT)
    write_report(folder)
    return summary, ""


def require_finished(summary: dict[str, Any] | None, failure: str, out: Path) -> dict[str, Any]:
    """The summary.

    Raises:
        UnfinishedError: there is none.
    """
    if summary is None:
        raise UnfinishedError(f"The job ended without a finished model. {failure} What it left lies in {out}.")
    return summary


def _summary(job: Job, results: dict[str, Any], meta: dict[str, Any]) -> dict[str, Any]:
    versions = {"fedseg": job.plan.fedseg_version}
    summary = describe_run(job, results, str(meta.get("start_time")), False, versions, results["seconds"], {})
    names = {"job_id": "job_id", "submitter": "submitter_name", "submitted": "submit_time_iso", "status": "status"}
    return {**summary, "federation": {key: meta.get(name) for key, name in names.items()}}


def submitted_job(download: Path) -> Job:
    """The job that was submitted, from what the server keeps of it; its files stay where they are.

    Raises:
        DataError: there is not exactly one.
    """
    folders = [path for path in (download / "job").iterdir() if path.is_dir()]
    if len(folders) != 1:
        raise DataError(f"{download} does not hold the one job that was submitted.")
    return read_job(folders[0])


def finished_rounds(download: Path) -> int | None:
    """How many rounds a job finished, as far as the server kept it; None where it kept nothing of the job's events."""
    events = _events(download / "workspace" / FOLDER)
    return sum(event.get("event") == "round_done" for event in events) if events else None


def _events(server: Path) -> list[dict[str, Any]]:
    """The lines of ``progress.jsonl``; none where it is missing or cannot be read."""
    try:
        return [json.loads(line) for line in (server / PROGRESS_FILE).read_text("utf-8").splitlines()]
    except (OSError, ValueError):
        return []


def _failure(server: Path, meta: dict[str, Any]) -> str:
    """Why a job failed: the server's own words, who did not take it and why, and FLARE's status."""
    refused = [str(told) for told in meta.get("job_deploy_detail") or [] if not str(told).endswith(": OK")]
    status = f"FLARE's status is {meta.get('status')}."
    if refused:
        status = f"Not started: {'; '.join(refused)}. {status}"
    failed = [str(event.get("what")) for event in _events(server) if event.get("event") == "failed"]
    return f"{failed[0]} {status}" if failed else status

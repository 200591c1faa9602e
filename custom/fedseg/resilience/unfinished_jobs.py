"""Jobs that a site's FLARE client left unfinished when it died; a client that is started again takes them up."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import psutil
from nvflare.apis.fl_constant import SystemComponents
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_launcher_spec import JobProcessArgs
from nvflare.apis.workspace import Workspace

from fedseg.files.documents import load_json
from fedseg.processes import FLARE_PROGRAMS, flare_program, living_commands

logger = logging.getLogger(__name__)
NOTE = "unfinished.json"
_PROGRAM = f"{FLARE_PROGRAMS}client.worker_process"
# By these the server's process of the job knows a site; a client that starts anew gets others.
_KEPT = (JobProcessArgs.AUTH_TOKEN, JobProcessArgs.TOKEN_SIGNATURE, JobProcessArgs.SSID)


def note_job(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """Note that a job has begun, or find out how it was begun before.

    The note holds the session's token for as long as the job goes on at this site, readable for the owner of the
    folder only, who has the private key of the kit as well.

    Args:
        folder: of the job in the site's workspace.
        arguments: FLARE's arguments of the job's process.

    Returns:
        The arguments, with those of the former client where there was one.
    """
    with contextlib.suppress(OSError, ValueError):
        kept = load_json(folder / NOTE)
        return {**arguments, **{name: tuple(kept[name]) for name in _KEPT if name in kept}}
    content = {name: arguments[name] for name in _KEPT if name in arguments}
    try:
        private = os.open(folder / NOTE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(private, "w", encoding="utf-8") as file:
            json.dump(content, file)
    except OSError as error:
        logger.warning("The job could not be noted; after a restart the site would not take it up again: %s", error)
    return arguments


def forget_job(folder: Path) -> None:
    """The job has ended at this site."""
    try:
        (folder / NOTE).unlink(missing_ok=True)
    except OSError as error:
        logger.warning("The note of an ended job stays; the server will end it again after a restart: %s", error)


def take_up_jobs(fl_ctx: FLContext) -> None:
    """Start the processes of all unfinished jobs again; the server says at the next heartbeat which are over.

    Args:
        fl_ctx: of a client that has just registered.
    """
    engine = fl_ctx.get_engine()
    workspace = Workspace(engine.args.workspace, site_name=engine.get_client_name())
    for note in sorted(Path(engine.args.workspace).glob(f"*/{NOTE}")):
        job_id = note.parent.name
        try:
            _end_orphans(job_id, engine.args.workspace)
            meta = load_json(Path(workspace.get_job_meta_path(job_id)))
            logger.warning("Job %s was not finished when this client ended; it is taken up again.", job_id)
            _start(engine, job_id, meta)
        except Exception:
            # Whatever is wrong with an old job, the client itself must start.
            logger.exception("The job %s cannot be taken up again", job_id)
            forget_job(note.parent)


def _start(engine: Any, job_id: str, meta: dict[str, Any]) -> None:
    """What FLARE's client does when the server asks it to start a job."""
    manager = engine.get_component(SystemComponents.RESOURCE_MANAGER)
    wanted = (meta.get("resource_spec") or {}).get(engine.get_client_name()) or {}
    with engine.new_context() as fl_ctx:
        enough, token = manager.check_resources(resource_requirement=wanted, fl_ctx=fl_ctx)
        if not enough:
            raise RuntimeError(f"not enough resources: {token}")
        allocated = manager.allocate_resources(resource_requirement=wanted, token=token, fl_ctx=fl_ctx)
    if allocated:
        engine.get_component(SystemComponents.RESOURCE_CONSUMER).consume(allocated)
    engine.start_app(job_id, job_meta=meta, allocated_resource=allocated, token=token, resource_manager=manager)


def _end_orphans(job_id: str, kit: str) -> None:
    """End what the dead client has left of a job: two processes of one job would write to the same state."""
    for process, command in living_commands():
        if job_id in command and flare_program(command, Path(kit).resolve()) == _PROGRAM:
            with contextlib.suppress(psutil.Error):
                process.kill()
                process.wait(10)

"""The site's own starter of job processes: one that was killed is started again, and its site never fails a job."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, FLMetaKey, JobConstants
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_launcher_spec import JobHandleSpec, JobReturnCode
from nvflare.app_common.job_launcher.client_process_launcher import ClientProcessJobLauncher
from nvflare.app_common.job_launcher.process_launcher import ProcessHandle
from nvflare.fuel.common.exit_codes import ProcessExitCode

from fedseg import allowed
from fedseg.resilience.unfinished_jobs import forget_job, note_job, take_up_jobs
from fedseg.screening.json_only import read_json_only

logger = logging.getLogger(__name__)
_MOST_RESTARTS, _LONGEST_PAUSE = 100, 600.0
# The process ended as it should, or somebody who may has ended the job.
_FINAL = (JobReturnCode.SUCCESS, JobReturnCode.ABORTED, ProcessExitCode.INFRASTRUCTURE_ERROR)
# This site cannot build the job, since its fedseg is older or its list of classes shorter: starting the process again
# would change nothing, and for the other sites it says nothing.
_HOPELESS = (ProcessExitCode.UNSAFE_COMPONENT, ProcessExitCode.CONFIG_ERROR)
# Somebody at the site wants the process to end, and does not want another one.
_ASKED_TO_END = tuple(-number for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
# Seconds between the last end and the word that the site has left. A machine that is shut down, or a batch system that
# takes it back, sends SIGTERM to all: then the client ends meanwhile, and its note of the job stays. And the server
# misses a process only after a heartbeat of the client, every 10 s, has told of it.
_FAREWELL = 25.0


class SupervisedLauncher(ClientProcessJobLauncher):
    """Starts a site's job processes, and starts one again that was killed or crashed.

    FLARE fails the whole job when the process of one site dies. With this launcher the site continues after its last
    finished round from what it keeps on disk, and the server sends it the open task anew. A process that dies too
    often, or that somebody at the site ended, is given up: FLARE hears of an end without a verdict, and the job goes
    on without this site. A FLARE client that died itself takes up its unfinished jobs when it is started again.

    It is a component of a site's ``resources.json``; no job can choose or change it.
    """

    def __init__(self, restarts: int = 3, pause: float = 5.0) -> None:
        """Take the limits.

        Args:
            restarts: how often the process of one job is started again; 0 gives up at its first death.
            pause: seconds between a death and the next start.

        Raises:
            ConfigurationError: one of them is out of range.
        """
        super().__init__()
        read_json_only()
        allowed.whole("process_launcher.restarts", restarts, least=0, most=_MOST_RESTARTS)
        allowed.number("process_launcher.pause", pause, least=0, most=_LONGEST_PAUSE)
        self.restarts, self.pause = restarts, float(pause)

    def launch_job(self, job_meta: dict[str, Any], fl_ctx: FLContext) -> JobHandleSpec:
        """Start the process of a job and watch over it."""
        job_id = str(job_meta.get(JobConstants.JOB_ID))
        folder = Path(fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT).get_run_dir(job_id))

        arguments = note_job(folder, fl_ctx.get_prop(FLContextKey.JOB_PROCESS_ARGS) or {})
        fl_ctx.set_prop(FLContextKey.JOB_PROCESS_ARGS, arguments, private=True, sticky=False)

        def start() -> ProcessHandle:
            return super(SupervisedLauncher, self).launch_job(job_meta, fl_ctx)

        return SupervisedJob(job_id, start, folder, self.restarts, self.pause)

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Offer itself for every job, and take up unfinished ones when the client has registered."""
        super().handle_event(event_type, fl_ctx)
        if event_type == EventType.SYSTEM_START:
            take_up_jobs(fl_ctx)


class SupervisedJob(JobHandleSpec):
    """The process of one job at this site, and those that take its place; what FLARE calls a handle."""

    def __init__(
        self, job_id: str, start: Callable[[], ProcessHandle], folder: Path, restarts: int, pause: float
    ) -> None:
        """Start the first process.

        Args:
            job_id: of the job, for the log.
            start: starts a process.
            folder: of the job in the site's workspace.
            restarts, pause: see ``SupervisedLauncher``.
        """
        self.job_id, self.restarts, self.pause = job_id, restarts, pause
        self._start, self._folder = start, folder
        # A process may write a code there that counts more than the one it ends with.
        self._code_file = folder / FLMetaKey.PROCESS_RC_FILE
        self._process = start()
        self._lock, self._told_to_end = threading.Lock(), threading.Event()
        self._code: int | None = None

    def wait(self) -> None:
        """Wait until the job has ended at this site: well, refused, told to end, or given up."""
        try:
            self._watch()
        except Exception:
            # FLARE would lose sight of the job, and of what it has reserved for it, for as long as the client lives.
            logger.exception("Job %s: its process cannot be watched any more; this site leaves the job.", self.job_id)
            self.terminate()
            self._give_up()
        finally:
            forget_job(self._folder)

    def _watch(self) -> None:
        left = self.restarts
        while True:
            self._process.wait()
            code = self._ended_with()
            if self._told_to_end.is_set() or code in _FINAL:
                self._code = self._process.poll()
                return
            if code in _ASKED_TO_END or code in _HOPELESS or left == 0:
                logger.error("Job %s: its process ended with %s; this site leaves the job.", self.job_id, code)
                self._told_to_end.wait(_FAREWELL)
                self._give_up()
                return
            logger.warning("Job %s: its process ended with %s; %d more start(s).", self.job_id, code, left)
            left -= 1
            self._told_to_end.wait(self.pause)
            with self._lock:
                # Between this question and the start, nobody can tell the job to end.
                if self._told_to_end.is_set():
                    self._give_up()
                    return
                self._start_again()

    def _start_again(self) -> None:
        try:
            self._process = self._start()
        except OSError as error:
            # What killed the former one, such as a lack of memory, may hinder this one, which counts as dead.
            logger.warning("Job %s: its process could not be started again: %s", self.job_id, error)
        else:
            self._code_file.unlink(missing_ok=True)

    def poll(self) -> int:
        """FLARE's code of the ended job; ``UNKNOWN`` while it goes on, and for one that was given up."""
        return JobReturnCode.UNKNOWN if self._code is None else self._code

    def terminate(self) -> None:
        """End the job at this site for good."""
        self._told_to_end.set()
        with self._lock:
            # The number of a dead process may be another one's by now.
            if self._process.adapter.poll() is None:
                self._process.terminate()

    def _ended_with(self) -> int:
        """The code of the process, negative for a signal; a code that it wrote down before counts more."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int(self._code_file.read_text("ascii").split()[0])
        return int(self._process.adapter.poll() or 0)

    def _give_up(self) -> None:
        # FLARE reads the file too, and takes its code for the job's.
        with contextlib.suppress(OSError):
            self._code_file.unlink(missing_ok=True)
        self._code = JobReturnCode.UNKNOWN

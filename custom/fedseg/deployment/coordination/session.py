"""A coordinator's session with a running federation: submit a job, see how it goes, and fetch what it left."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvflare.fuel.flare_api.api_spec import (
    AuthenticationError,
    AuthorizationError,
    InvalidJobDefinition,
    JobNotDone,
    JobNotFound,
    NoConnection,
    SessionClosed,
    SessionExpired,
)
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session

from fedseg.contract.events import event_words
from fedseg.deployment.coordination.received_archives import look_before_unpacking
from fedseg.errors import FedsegError, UsageError
from fedseg.files.documents import load_json
from fedseg.files.names import JOB

if TYPE_CHECKING:
    from fedseg.jobs.job import Job

ADMIN_FILE = Path("startup") / "fed_admin.json"
FINISHED = "FINISHED:COMPLETED"
CONNECT_SECONDS = 20.0
SILENT = "NO ANSWER OF THE SERVER"
# A wait looks less often the longer it lasts, since a server of FLARE keeps a little memory for each question: after a
# while every 15 s, and never later than a twentieth of the time that the job has taken.
LONGEST_PAUSE, _SHARE = 15.0, 1 / 20
_ENDS = ("FINISHED", "ABANDONED")
# One for the whole process: the root logger takes the same handler only once.
_QUIET = logging.NullHandler()
Progress = Callable[[dict[str, Any]], None]


class FederationError(FedsegError):
    """The federation did not do what was asked; the text says why."""


class ConnectionLostError(FederationError):
    """The server does not answer any more, or has forgotten the session; it may come back."""


class Coordinator:
    """What a person with an admin kit can ask of a federation; made by ``connect``."""

    def __init__(self, open_session: Callable[[], Session], user: str) -> None:
        """Open a session.

        Args:
            open_session: makes a new one; called again where a wait outlives the server's process.
            user: name of the person.
        """
        self._open = open_session
        self.user = user
        self._session = open_session()

    def close(self) -> None:
        """End the session; that the server has gone meanwhile is no error."""
        with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
            self._session.close()

    def sites(self) -> list[str]:
        """Names of the sites that are connected now, sorted."""
        with _explained(self.user):
            return sorted(site.name for site in self._session.get_connected_client_list())

    def submit(self, job: Job) -> str:
        """Submit a checked job and return its id.

        Raises:
            FederationError: this person may not, or the server refuses the job.
            ConfigurationError: the job's name is none for a folder.
        """
        name = JOB.check("meta.json: name", job.name)
        with tempfile.TemporaryDirectory() as scratch:
            folder = job.write(Path(scratch) / name)
            with _explained(self.user, f"submit {job.name}"):
                return str(self._session.submit_job(str(folder)))

    def jobs(self) -> list[dict[str, Any]]:
        """All jobs that the server knows, oldest first, as FLARE describes them."""
        with _explained(self.user, "list jobs"):
            return list(self._session.list_jobs(detailed=True))

    def describe(self, job_id: str) -> dict[str, Any]:
        """What the server knows of one job: name, submitter, ``status``...

        Raises:
            FederationError: there is no such job.
        """
        with _explained(self.user, f"see the job {job_id}"):
            return dict(self._session.get_job_meta(job_id))

    def activity(self, job_id: str) -> dict[str, Any]:
        """What a running job does now.

        Returns:
            ``tasks``: those that are open, each with the sites that have begun it; empty if none is known. Where the
            server says so also ``round`` (from 0) of ``rounds``, the sites that have ``answered`` in it, and for which
            it is ``waiting``, and the latest ``events``: at which site what went wrong, as texts.
        """
        with _explained(self.user, f"watch the job {job_id}"):
            stats = self._session.show_stats(job_id, "server")
        groups = [group for target in (stats or {}).values() if isinstance(target, dict) for group in target.values()]
        found: dict[str, Any] = {"tasks": {}}
        for group in groups:
            if isinstance(group, dict) and isinstance(group.get("tasks"), dict):
                found["tasks"] |= {name: sorted(map(str, sites)) for name, sites in group["tasks"].items()}
            found |= _progress(group)
        return found

    def wait(
        self,
        job_id: str,
        on_progress: Progress = lambda seen: None,
        timeout: float = 0.0,
        interval: float = 2.0,
        patience: float = 900.0,
    ) -> str:
        """Wait until a job has ended.

        Args:
            job_id: of the job.
            on_progress: called with ``status`` and what ``activity`` tells whenever something has changed.
            timeout: seconds; 0 waits for ever.
            interval: seconds between the first looks; they grow to ``LONGEST_PAUSE``.
            patience: seconds without an answer of the server, which may be restarting, after which this is an error.

        Returns:
            The last status; ``FINISHED:COMPLETED`` if all went well.

        Raises:
            FederationError: there is no such job, or it takes longer.
            ConnectionLostError: the server has not answered for too long.
        """
        start = heard = time.monotonic()
        seen = None
        while True:
            now = self._look(job_id, lost=time.monotonic() - heard > patience)
            heard = heard if now["status"] == SILENT else time.monotonic()
            if now != seen:
                seen = now
                on_progress(now)
            status, waited = str(now["status"]), time.monotonic() - start
            if has_ended(status):
                return status
            if timeout and waited > timeout:
                raise FederationError(f"The job {job_id} has not ended within {timeout:.0f} s; its status is {status}.")
            pause = max(interval, min(waited * _SHARE, LONGEST_PAUSE))
            left = timeout - waited if timeout else pause
            time.sleep(min(pause, max(left, interval)))

    def _look(self, job_id: str, lost: bool) -> dict[str, Any]:
        """A job's status, and what it does if it is running.

        Raises:
            ConnectionLostError: the server does not answer, and counts as ``lost`` by now.
        """
        try:
            status = str(self.describe(job_id).get("status"))
        except ConnectionLostError:
            if lost:
                raise
            self._reconnect()
            status = SILENT
        if status == "RUNNING":
            # It may have ended since its status was read; what a job does now is no reason to stop waiting for it.
            with contextlib.suppress(FederationError):
                return {"status": status, **self.activity(job_id)}
        return {"status": status, "tasks": {}}

    def _reconnect(self) -> None:
        """A new session in place of a lost one, if the server is there."""
        with contextlib.suppress(FederationError):
            session = self._open()
            self.close()
            self._session = session

    def download(self, job_id: str, folder: Path) -> Path:
        """Bring what the server keeps of an ended job into ``folder`` and return where it lies.

        Raises:
            FederationError: there is no such job, it still runs, or this person may not have it.
        """
        with _explained(self.user, f"fetch the job {job_id}"):
            place = self._session.download_job_result(job_id, str(folder))
        if not place or not Path(place).is_dir():
            raise FederationError(f"The server sent nothing for the job {job_id}; has its result been deleted?")
        return Path(place)


@contextmanager
def connect(kit: Path, timeout: float = CONNECT_SECONDS) -> Iterator[Coordinator]:
    """A session with the federation that an admin kit belongs to.

    Args:
        kit: folder of a person's kit.
        timeout: seconds to reach the server.

    Raises:
        UsageError: the folder is no person's kit.
        FederationError: the server cannot be reached or does not accept the kit.
    """
    path = kit / ADMIN_FILE
    if not path.is_file():
        raise UsageError(f"--kit {kit} is no kit of a person: it has no {ADMIN_FILE}. Kits of sites cannot submit.")
    try:
        admin = load_json(path)["admin"]
        user, server = str(admin["username"]), f"{admin['host']}:{admin['port']}"
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"--kit {kit}: {ADMIN_FILE} is damaged. Unpack the kit again.") from None
    (kit / "transfer").mkdir(exist_ok=True)
    # Or FLARE's attempts to connect would stand between the lines of whoever waits for a restarting server.
    logging.getLogger().addHandler(_QUIET)
    look_before_unpacking()

    def open_session() -> Session:
        with _explained(user, f"connect to {server}"):
            return new_secure_session(user, str(kit.resolve()), timeout=timeout)

    coordinator = Coordinator(open_session, user)
    try:
        yield coordinator
    finally:
        coordinator.close()


def has_ended(status: str) -> bool:
    """Whether a job of this status will do no more."""
    return status.startswith(_ENDS)


def _progress(group: Any) -> dict[str, Any]:
    """What the workflow of a job says of its round; nothing where it says nothing, or nothing that can be read."""
    found: dict[str, Any] = {}
    if isinstance(group, dict):
        number, total = group.get("round"), group.get("rounds")
        if type(number) is int and type(total) is int and 0 <= number < total:
            found = {"round": number, "rounds": total}
        for name in ("answered", "waiting"):
            if isinstance(group.get(name), list):
                found[name] = sorted(map(str, group[name]))
        if isinstance(group.get("events"), list):
            found["events"] = [words for event in group["events"] if (words := event_words(event))]
    return found


# How each exception of FLARE is told: its kind, the sentence, and the error that it becomes.
_SENTENCES: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str, type[FederationError]], ...] = (
    (
        NoConnection,
        "{user} could not {what}: {error}. Is the server running, is its port open, and is the kit of this federation?",
        ConnectionLostError,
    ),
    (
        (SessionClosed, SessionExpired),
        "{user} could not {what}: the session has ended ({error}). Try again.",
        ConnectionLostError,
    ),
    (AuthenticationError, "{user} could not {what}: the server does not accept the kit ({error}).", FederationError),
    (
        AuthorizationError,
        "{user} has no right to {what}; authorization.json of the server says who has.",
        FederationError,
    ),
    (JobNotFound, "{user} could not {what}: the server knows no such job. `fedseg jobs` lists them.", FederationError),
    (JobNotDone, "{user} could not {what}: it is still running. Wait for its end, or abort it.", FederationError),
    (InvalidJobDefinition, "{user} could not {what}: FLARE refuses the job folder ({error}).", FederationError),
    (Exception, "{user} could not {what}: {kind}: {error}", FederationError),
)


@contextmanager
def _explained(user: str, what: str = "ask the server") -> Iterator[None]:
    """Turn FLARE's exceptions into sentences; what FLARE prints meanwhile is dropped."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except FedsegError:
        raise
    except Exception as error:
        text, kind = next((text, kind) for caught, text, kind in _SENTENCES if isinstance(error, caught))
        raise kind(text.format(user=user, what=what, error=error, kind=type(error).__name__)) from None

"""Which sites are there: a job's process at a site is heard of every few seconds, also while it trains."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from nvflare.apis.client import Client
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.app_constant import AppConstants

from fedseg.messages.calls.call import SECRET
from fedseg.workflows.run.call_secrets import CallSecrets

# Why FLARE says that a site is active, when it is for a heartbeat alone.
_HEARTBEAT = "jobHeartbeat"
# Silence counts in steps: while this process itself stands still, nobody can be heard.
_STEP, _LONGEST_STEP = 0.5, 2.0
# FLARE may be wrong when it says that a site has gone: a server that stood still for a while drops all of its clients
# when it wakes. A process that lives gives a sign within 10 s, and connects anew within 10 more.
_DOUBT = 25.0


class Presence:
    """Knows of each site how long nothing was heard of it, and whether its process is known to have ended.

    FLARE's own knowledge comes late (a site's connection must be silent for 600 s) or never (a client that was started
    anew is another one to FLARE), so a round that waits for all could wait for ever.

    In FLARE's simulator sites give no heartbeats, so silence counts from the first heartbeat of any site only.
    """

    def __init__(self, limit: int) -> None:
        """Begin with nobody absent.

        Args:
            limit: seconds of silence after which a site counts as absent; 0 for never.
        """
        self.limit = limit
        self._silence: dict[str, float] = {}
        self._ended: dict[str, float] = {}
        self._beating = False
        self._lock = threading.Lock()

    def heard(self, site: str, heartbeat: bool = False) -> None:
        """Something came from the site's process of this job: a question, a result, or a mere heartbeat."""
        with self._lock:
            self._beating |= heartbeat
            self._silence[site] = 0.0
            self._ended.pop(site, None)

    def ended(self, site: str) -> None:
        """FLARE says that the site is not connected, or has no process of this job any more.

        It is believed when no sign of life has come for some time.
        """
        with self._lock:
            self._ended.setdefault(site, 0.0)

    def absence(self, site: str) -> str | None:
        """Why nothing can be expected of a site now, as the end of a sentence; None if something can."""
        with self._lock:
            if self._ended.get(site, 0.0) >= _DOUBT:
                return "its FLARE client is not connected, or has no process of this job"
            if self.limit and self._silence.get(site, 0.0) >= self.limit:
                return f"it was not heard of for {self.limit} s"
        return None

    def pass_time(self, sites: Collection[str], seconds: float) -> None:
        """Nothing new was heard for so long; of no meaning by itself where sites give no heartbeats."""
        with self._lock:
            for site in sites:
                if site in self._ended:
                    self._ended[site] += seconds
                if self._beating:
                    self._silence[site] = self._silence.get(site, 0.0) + seconds

    @contextmanager
    def watch(
        self, sites: Sequence[str], answered: Collection[str], busy: Callable[[], bool], give_up: Callable[[], None]
    ) -> Iterator[None]:
        """Listen while sites work on a task, and give it up when all that are left are absent.

        Args:
            sites: who was asked.
            answered: who has answered so far; read again and again.
            busy: whether this process takes in an answer now, during which FLARE delivers no signs of life.
            give_up: called once at most.
        """
        over = threading.Event()

        def look() -> None:
            before = time.monotonic()
            while not over.wait(_STEP):
                now = time.monotonic()
                waiting = [site for site in sites if site not in answered]
                if not busy():
                    self.pass_time(waiting, min(now - before, _LONGEST_STEP))
                before = now
                if waiting and all(self.absence(site) for site in waiting):
                    give_up()
                    return

        thread = threading.Thread(target=look, name="presence", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


class Listening:
    """FLARE's communicator of a workflow, with an ear for signs of life: FLARE tells components of none of them.

    It also gives each site that is called directly its secret along with the task ``train``. Here the message is the
    one site's own already, and FLARE names the site by the token with which it asked. In the callbacks of a task that
    goes to all sites the message is still everybody's.

    Attributes:
        given: of each site, name and id of the task that it was given last.
    """

    def __init__(self, communicator: Any, presence: Presence, secrets: CallSecrets) -> None:
        self._communicator, self._presence, self._secrets = communicator, presence, secrets
        self.given: dict[str, tuple[str, str]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._communicator, name)

    def client_is_active(self, client_name: str, reason: str, fl_ctx: FLContext) -> None:
        """A site's process asked for a task, sent a result, or gave its heartbeat."""
        self._presence.heard(client_name, reason == _HEARTBEAT)
        self._communicator.client_is_active(client_name, reason, fl_ctx)

    def process_dead_client_report(self, client_name: str, fl_ctx: FLContext) -> None:
        """The site's FLARE client has no process of this job, or the server has dropped the client."""
        self._presence.ended(client_name)
        self._communicator.process_dead_client_report(client_name, fl_ctx)

    def process_task_request(self, client: Client, fl_ctx: FLContext) -> tuple[str, str, Shareable | None]:
        """A site asks for its next task."""
        task, task_id, message = self._communicator.process_task_request(client, fl_ctx)
        if task_id:
            self.given[client.name] = task, task_id
        secret = self._secrets.known(client.name)
        if task == AppConstants.TASK_TRAIN and message is not None and secret is not None:
            message.set_header(SECRET, secret)
        return task, task_id, message

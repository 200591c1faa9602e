"""A whole provisioned federation on one machine: a server and its sites as processes that meet over mutual TLS."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

from fedseg.data.datalist import FILE_NAME
from fedseg.deployment.coordination.session import Coordinator, FederationError, connect
from fedseg.deployment.kits.project_file import COORDINATOR, SERVER, SITE, on_this_machine
from fedseg.deployment.kits.provisioned_kits import Federation, Kit
from fedseg.deployment.kits.provisioning import provision
from fedseg.deployment.kits.storage_folders import place_server, place_state
from fedseg.deployment.local.folder import LOGS, PROCESSES_FILE, PROVISIONED, STATE, STORAGE
from fedseg.deployment.local.processes import Participant, free_port, launch, listens
from fedseg.deployment.operation.kit_processes import living_processes
from fedseg.files.documents import write_json
from fedseg.processes import end_processes

logger = logging.getLogger(__name__)
START_SECONDS = 180.0
_TAIL_LINES = 15


class LocalFederation:
    """Server and sites as processes of this machine; ``running`` makes, starts and stops it.

    Attributes:
        participants: what was started.
        wrappers: words before a participant's command, by name; see ``launch``.
    """

    def __init__(self, folder: Path, federation: Federation, port: int) -> None:
        self.folder, self.federation, self.port = folder, federation, port
        self.participants: list[Participant] = []
        self.wrappers: dict[str, list[str]] = {}

    def start(self, timeout: float = START_SECONDS) -> None:
        """Start the server and, when it listens, the sites; write ``processes.json``.

        Raises:
            FederationError: a process ended, or the server does not listen in time; the text ends with the logs.
        """
        end = time.monotonic() + timeout
        (self.folder / LOGS).mkdir(exist_ok=True)
        for kit in self.federation.of_role(SERVER):
            self.participants.append(self._launch(kit))
        while not listens(self.port):
            self.check(end)
            time.sleep(0.2)
        for kit in self.federation.of_role(SITE):
            self.participants.append(self._launch(kit))
        entries = [
            {"pid": p.process.pid, "role": p.kit.role, "name": p.kit.name, "subject": p.kit.certificate.subject}
            for p in self.participants
        ]
        write_json(self.folder / PROCESSES_FILE, entries)

    @contextmanager
    def coordinator(self, timeout: float = START_SECONDS) -> Iterator[Coordinator]:
        """A session of the coordinator, once every site is connected.

        Raises:
            FederationError: a process ended, or a site is missing after ``timeout`` seconds.
        """
        end, wanted = time.monotonic() + timeout, {kit.name for kit in self.federation.of_role(SITE)}
        with ExitStack() as stack:
            coordinator = self._connected(stack, end)
            while not wanted <= set(coordinator.sites()):
                self.check(end)
                time.sleep(0.5)
            yield coordinator

    def _connected(self, stack: ExitStack, end: float) -> Coordinator:
        """The coordinator's session. A server that is starting is asked again."""
        folder = self.federation.of_role(COORDINATOR)[0].folder
        while True:
            try:
                return stack.enter_context(connect(folder, max(1.0, end - time.monotonic())))
            except FederationError as error:
                logger.info("No session yet: %s", error)
                self.check(end)
                time.sleep(1)

    def check(self, end: float) -> None:
        """Look whether all is well so far.

        Args:
            end: reading of the monotonic clock until which there is time.

        Raises:
            FederationError: a process has ended, or the time is over; the text ends with the logs.
        """
        for participant in self.participants:
            if participant.process.poll() is not None:
                raise FederationError(f"{participant.kit.name} has ended. {self.tails()}")
        if time.monotonic() > end:
            raise FederationError(f"The federation did not get ready in time. {self.tails()}")

    def tails(self) -> str:
        """The last lines of every log, for error messages."""
        parts = ["Logs:"]
        for participant in self.participants:
            lines = participant.log.read_text("utf-8", "replace").splitlines()[-_TAIL_LINES:]
            parts += [f"---- {participant.log}", *lines]
        return "\n".join(parts)

    def participant(self, name: str) -> Participant:
        """The server or the site of this name."""
        return next(each for each in self.participants if each.kit.name == name)

    def _launch(self, kit: Kit) -> Participant:
        return launch(kit, self.folder / LOGS, self.wrappers.get(kit.name, []))

    def processes(self) -> list[psutil.Process]:
        """Every living process of this federation."""
        return living_processes(
            [kit.folder for kit in self.federation.kits], [each.process.pid for each in self.participants]
        )

    def stop(self, patience: float = 5.0, attempts: int = 5) -> None:
        """End all processes; what does not end by itself is killed.

        Raises:
            FederationError: some are still there after all attempts.
        """
        for _ in range(attempts):
            end_processes(self.processes(), patience)
            for participant in self.participants:
                participant.process.poll()
            if not self.processes():
                return
        left = ", ".join(str(process.pid) for process in self.processes())
        raise FederationError(f"Processes of the federation in {self.folder} could not be ended: {left}.")


@contextmanager
def running(
    project: Mapping[str, Any],
    policy: Path,
    data: Path,
    sites: Sequence[str],
    out: Path,
    limits: Mapping[str, Mapping[str, Any]] | None = None,
    before_start: Callable[[LocalFederation], None] = lambda local: None,
) -> Iterator[LocalFederation]:
    """Provision a federation of sites with data on this machine, run it, and end all of its processes in every case.

    Args:
        project: content of a project file; its sites are replaced.
        policy: folder with the files of a site's policy.
        data: folder with ``<site>/datalist.json``.
        sites: names of the sites.
        out: an existing folder; gets ``provisioned``, ``logs``, ``state/<site>``, ``server`` and ``processes.json``.
        limits: site -> its policy, as under ``policy`` in ``fedseg.json``; a site that is not named has an empty one:
            the guard watches it, and every job is taken.
        before_start: called with the kits ready and nothing started yet, to change what they are configured for.

    Raises:
        FederationError: it could not be started, or not be stopped.
    """
    out, port = out.resolve(), free_port()
    federation = provision(on_this_machine(project, sites, port), policy, out / PROVISIONED, with_wheel=False)
    _fill_in(federation, data, out, limits or {})
    local = LocalFederation(out, federation, port)
    try:
        before_start(local)
        local.start()
        yield local
    finally:
        local.stop()


def _fill_in(federation: Federation, data: Path, out: Path, limits: Mapping[str, Mapping[str, Any]]) -> None:
    """Write into the kits where the server and the sites keep things, and what the sites have and allow."""
    for kit in federation.of_role(SERVER):
        place_server(kit.folder, out / STORAGE)
        place_state(kit.folder, out / STATE / SERVER)
    for kit in federation.of_role(SITE):
        datasets = {"*": str((data / kit.name / FILE_NAME).resolve())}
        place_state(kit.folder, out / STATE / kit.name, datasets=datasets, policy=dict(limits.get(kit.name, {})))

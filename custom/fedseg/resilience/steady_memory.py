"""Steady memory of FLARE's own processes, which run for months and of which each command leaves a little."""

from __future__ import annotations

import threading

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_context import FLContext

from fedseg import allowed
from fedseg.memory import give_back
from fedseg.screening.json_only import read_json_only


class SteadyMemory(FLComponent):
    """A component of ``local/resources.json`` of server and sites: gives freed memory back again and again."""

    def __init__(self, seconds: float = 60.0) -> None:
        """Take the time between two times.

        Raises:
            ConfigurationError: it is no number from 1 to 86400.
        """
        super().__init__()
        read_json_only()
        allowed.number("steady_memory.seconds", seconds, least=1, most=86400, allowed="seconds from 1 to 86400")
        self.seconds = float(seconds)
        self._over = threading.Event()

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Begin with FLARE's process, and end with it."""
        if event_type == EventType.SYSTEM_START:
            threading.Thread(target=self._run, name="steady-memory", daemon=True).start()
        elif event_type == EventType.SYSTEM_END:
            self._over.set()

    def _run(self) -> None:
        while not self._over.wait(self.seconds):
            if not give_back():
                return

"""Freed memory goes back to the machine."""

import subprocess
import sys
import threading
import time

import pytest
from nvflare.apis.event_type import EventType

from fedseg.errors import ConfigurationError
from fedseg.memory import give_back
from fedseg.resilience import steady_memory
from fedseg.resilience.steady_memory import SteadyMemory

# Small pieces, of which every hundredth stays: the C library keeps all pages between them.
PROGRAM = """
import psutil
from fedseg.memory import give_back
size = lambda: psutil.Process().memory_info().rss / 1e6
before = size()
kept = [bytes(5000) for _ in range(40000)]
kept = kept[::100]
full = size()
print(give_back(), before, full, size())
"""


@pytest.mark.skipif(not give_back(), reason="this C library cannot give memory back")
def test_pages_between_what_is_kept_go_back():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    could, before, full, after = done.stdout.split()
    assert could == "True"
    assert float(full) - float(before) > 150, "200 MB were taken, and freeing most of them changed nothing"
    assert float(after) - float(before) < 20


def test_the_component_works_from_the_start_of_the_process_to_its_end(monkeypatch):
    calls = []
    monkeypatch.setattr(steady_memory, "give_back", lambda: calls.append(time.monotonic()) or True)
    component = SteadyMemory(seconds=1)
    component.seconds = 0.01
    assert not calls
    component.handle_event(EventType.SYSTEM_START, None)
    end = time.monotonic() + 10
    while len(calls) < 3 and time.monotonic() < end:
        time.sleep(0.01)
    assert len(calls) >= 3
    component.handle_event(EventType.SYSTEM_END, None)
    for thread in threading.enumerate():
        if thread.name == "steady-memory":
            thread.join(10)
            assert not thread.is_alive()


@pytest.mark.parametrize("seconds", [0, -1, 1e9, float("nan"), True, "60"])
def test_other_times_are_refused(seconds):
    with pytest.raises(ConfigurationError, match="seconds from 1 to 86400"):
        SteadyMemory(seconds)

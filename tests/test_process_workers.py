"""Processes that work for another one end with it, however that ends."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import psutil
import pytest

import fedseg
from fedseg.processes import worker_pool

BUSY = """
import os, sys, time
from fedseg.processes import worker_pool

if __name__ == "__main__":
    with worker_pool(2) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        for _ in range(4):
            pool.submit(time.sleep, 600)
        time.sleep(600)
"""


def ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_a_process_that_is_killed(tmp_path, number):
    script = tmp_path / "busy.py"
    script.write_text(BUSY)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, str(script)], env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        assert not ended(worker)
        os.kill(process.pid, number)
        process.wait()
    for _ in range(300):
        if ended(worker):
            return
        time.sleep(0.1)
    pytest.fail("the worker goes on without the process that it works for")


def test_work_that_has_not_ended_is_dropped_when_the_block_is_left():
    with worker_pool(1) as pool:
        worker = pool.submit(os.getpid).result()
        futures = [pool.submit(time.sleep, 600) for _ in range(5)]
    assert ended(worker)
    for future in futures:
        with pytest.raises((CancelledError, BrokenProcessPool)):
            future.result()


def test_no_other_module_starts_workers():
    root = Path(fedseg.__file__).parent
    found = {
        p.relative_to(root).as_posix() for p in root.rglob("*.py") if "ProcessPoolExecutor(" in p.read_text("utf-8")
    }
    assert found == {"processes.py"}

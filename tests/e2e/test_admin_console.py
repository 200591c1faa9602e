"""FLARE's own admin console, as a coordinator types into it, beside what fedseg sees over the session API."""

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from federation_parts import COORDINATOR, POLICY, TEMPLATE, fedseg, tiny_job

from fedseg.deployment.kits.project_file import read_project
from fedseg.deployment.local.federation import running
from fedseg.jobs.job import read_job
from tiny import make_sites

SECONDS, ANSWER_SECONDS, LINE_SECONDS = 300, 60, 2
JOB = "hippocampus_fedavg"
# Colours and movements of the cursor, which the console's line editor writes.
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Console:
    """A console in a terminal of its own.

    Attributes:
        said: everything that it has printed, as plain text.
    """

    def __init__(self, process, terminal):
        self.process, self.terminal = process, terminal
        self.said = ""

    def read_until(self, pattern, start, seconds=ANSWER_SECONDS):
        """Read until ``pattern`` stands in what was printed from position ``start`` on; gives that text."""
        end = time.monotonic() + seconds
        while not re.search(pattern, self.said[start:]):
            left = end - time.monotonic()
            assert left > 0, f"no {pattern!r} within {seconds} s: {self.said[start:]}"
            if select.select([self.terminal], [], [], left)[0]:
                try:
                    more = os.read(self.terminal, 65536)
                except OSError:
                    # The other end is closed.
                    more = b""
                assert more, f"the console ended: {self.said[start:]}"
                self.said += ESCAPES.sub("", more.decode("utf-8", "replace")).replace("\r", "")
        return self.said[start:]

    def ask(self, line, answer=r"\nDone \["):
        """Type a line; gives what the console prints until ``answer``."""
        start = len(self.said)
        os.write(self.terminal, f"{line}\n".encode())
        return self.read_until(answer, start)


@contextmanager
def console(kit):
    """The console of a person's kit, started by its own script and ended in every case."""
    ours, theirs = pty.openpty()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    process = subprocess.Popen(
        ["bash", str(kit / "startup" / "fl_admin.sh")],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "PATH": path, "TERM": "dumb"},
        start_new_session=True,
    )
    os.close(theirs)
    try:
        yield Console(process, ours)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(ours)


def work(coordinator, kit, seen):
    """The whole session: log in, submit, list, wait, download, leave."""
    with console(kit) as at:
        at.read_until("User Name: ", 0)
        seen.login = at.ask(COORDINATOR, "> $")
        seen.submit = at.ask(f"submit_job {JOB}")
        seen.job_id = re.search(r"Submitted job: (\S+)", seen.submit)[1]
        seen.early = at.ask("list_jobs")
        end = time.monotonic() + SECONDS
        while "FINISHED" not in (listed := at.ask(f"list_jobs {seen.job_id}")):
            assert time.monotonic() < end, listed
            time.sleep(LINE_SECONDS)
        seen.listed = listed
        seen.described = coordinator.describe(seen.job_id)
        seen.download = at.ask(f"download_job {seen.job_id}")
        seen.unknown = at.ask("list_jobs no-such-job")
        seen.shell = at.ask("cat alpha log.txt")
        os.write(at.terminal, b"bye\n")
        seen.code = at.process.wait(ANSWER_SECONDS)
        seen.said = at.said


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Everything that the console said, and what the session API says of the same job."""
    folder = tmp_path_factory.mktemp("console")
    data, out = make_sites(folder / "data", {"alpha": (2, 1)}), folder / "out"
    out.mkdir()
    (folder / "jobs").mkdir()
    seen = SimpleNamespace(folder=folder)
    with running(read_project(TEMPLATE), POLICY, data, ["alpha"], out) as local:
        kit = next(kit.folder for kit in local.federation.kits if kit.name == COORDINATOR)
        seen.kit = kit
        job = tiny_job(JOB, folder / "jobs", 1)
        shutil.copytree(job.folder, kit / "transfer" / JOB)
        try:
            with local.coordinator(SECONDS) as coordinator:
                work(coordinator, kit, seen)
                seen.jobs = coordinator.jobs()
                seen.fetch = fedseg("fetch", seen.job_id, "--kit", kit, "--out", folder / "run")
        except Exception as error:
            pytest.fail(f"{type(error).__name__}: {error}\n{local.tails()}")
    seen.left = [p for p in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(p.info["cmdline"] or [])]
    return seen


def rows(said):
    """The rows of the last table in what the console printed, by the names of their columns."""
    head, *found = [[cell.strip() for cell in line.strip("|").split("|")] for line in said.splitlines() if "|" in line]
    return [dict(zip(head, cells, strict=True)) for cells in found]


def test_a_coordinator_logs_in_with_the_kit_alone(seen):
    assert "Connecting to FLARE" in seen.login
    assert "password" not in seen.said.lower()


def test_the_console_lists_the_job_as_the_session_does(seen):
    (early,), (late,) = rows(seen.early), rows(seen.listed)
    (job,) = seen.jobs
    assert early["STATUS"] in ("SUBMITTED", "DISPATCHED", "RUNNING")
    for row in (early, late):
        assert (row["JOB ID"], row["NAME"], row["SUBMIT TIME"]) == (seen.job_id, JOB, job["submit_time_iso"])
    assert late["STATUS"] == job["status"] == seen.described["status"] == "FINISHED:COMPLETED"
    assert late["RUN DURATION"] == job["duration"]
    assert job["submitter_name"] == COORDINATOR


def test_what_the_console_downloads_is_what_the_session_fetches(seen):
    assert f"content downloaded to {seen.kit}/startup/../transfer/{seen.job_id}" in seen.download
    downloaded, fetched = seen.kit / "transfer" / seen.job_id, seen.folder / "run"
    assert seen.fetch.code == 0, seen.fetch.err
    for name in ("last.safetensors", "results.json"):
        mine, theirs = (place / "workspace" / "fedseg" / name for place in (downloaded, fetched / "workspace"))
        assert mine.read_bytes() == theirs.read_bytes(), name
    assert (fetched / "models" / "last.safetensors").read_bytes() == (
        downloaded / "workspace" / "fedseg" / "last.safetensors"
    ).read_bytes()


def test_the_job_that_came_back_is_the_one_in_the_transfer_folder(seen):
    (returned,) = (seen.kit / "transfer" / seen.job_id / "job").iterdir()
    assert read_job(returned).check() == read_job(seen.kit / "transfer" / JOB).check()


def test_what_is_not_there_or_not_allowed_is_said(seen):
    assert "No jobs matching the specified criteria." in seen.unknown
    assert f"user '{COORDINATOR}' is not authorized for 'cat'" in seen.shell


def test_the_console_ends_and_nothing_is_left_running(seen):
    assert seen.code == 0
    assert seen.left == []

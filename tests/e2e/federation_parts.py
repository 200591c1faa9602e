"""What the tests of a real provisioned federation share: its template, tiny jobs, and commands as people type them."""

import contextlib
import io
import socket
import ssl
from pathlib import Path
from types import SimpleNamespace

from fedseg.cli import main
from fedseg.deployment.kits.project_file import HOST
from fedseg.jobs.job import read_job
from tiny import PLAN

ROOT = Path(__file__).parents[2]
TEMPLATE, POLICY = (
    ROOT / "workspace_templates" / "three_hospitals",
    ROOT / "workspace_templates" / "site_policy" / "local",
)
ENCRYPTED_TEMPLATE = TEMPLATE.with_name("three_hospitals_he")
COORDINATOR = "coordinator@example.org"
SITES = {"alpha": (4, 1), "beta": (3, 1), "gamma": (2, 1)}


def fedseg(*arguments):
    """A command in this process: exit code, stdout, stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return SimpleNamespace(code=code, out=out.getvalue(), err=" ".join(err.getvalue().split()))


def tiny_job(name, folder, rounds, **settings):
    """A job of this repository with the smallest network and few steps, checked and written into ``folder``.

    ``settings`` are arguments of its workflow.
    """
    job = read_job(ROOT / "jobs" / name)
    for key in ("task", "network", "training"):
        job.set(key, PLAN[key])
    for key, value in {"num_rounds": rounds, **settings}.items():
        job.set(f"workflow.{key}", value)
    job.check()
    return read_job(job.write(folder / name))


def shakes_hands(port: int, kit: Path, *, root: Path | None = None, certificate: bool = True) -> bool:
    """Whether the server talks on with somebody who knows its root.

    Args:
        port: of the server.
        kit: whose certificate is shown.
        root: the kit whose root certificate is believed; None takes ``kit``.
        certificate: whether one is shown at all.
    """
    context = ssl.create_default_context(cafile=str((root or kit) / "startup" / "rootCA.pem"))
    if certificate:
        context.load_cert_chain(kit / "startup" / "client.crt", kit / "startup" / "client.key")
    try:
        with (
            socket.create_connection((HOST, port), 20) as plain,
            context.wrap_socket(plain, server_hostname=HOST) as tls,
        ):
            tls.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            return len(tls.recv(1)) == 1
    except OSError:
        return False

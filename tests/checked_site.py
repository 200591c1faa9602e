"""What tests of a site's checks share: a stand-in of FLARE's server, and the page as texts."""

import base64
import contextlib
import io
import json
import shutil
import socket
import ssl
import sys
import threading
from collections import namedtuple
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

from fedseg.cli import main
from fedseg.deployment.kits.installed_kit import read_kit
from fedseg.deployment.operation.checks.page import check_site
from fedseg.deployment.operation.checks.result import CheckOptions, Colour
from fedseg.privacy.accounting.epsilon import SITE_UPDATE, Release
from fedseg.privacy.accounting.ledger import Ledger
from fedseg.tasks.registry import resolve_task
from tiny import TASK

ROOT = Path(__file__).parents[1]
TEMPLATES = ROOT / "workspace_templates"
POLICY = TEMPLATES / "site_policy" / "local"
GIB = 2**30
SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
Usage = namedtuple("Usage", ["total", "used", "free"])


class Server(threading.Thread):
    """Answers as FLARE's server does: mutual TLS, then HTTP with the time, and a channel at /f3."""

    def __init__(self, startup, port):
        super().__init__(daemon=True)
        self.startup, self.port = startup, port
        self.ahead, self.status, self.tell_time = timedelta(0), "101 Switching Protocols", True
        self.certificate = startup / "server.crt", startup / "server.key"
        self.asked, self._end = [], threading.Event()
        self._listener = socket.create_server(("localhost", port))
        self._listener.settimeout(0.1)
        self.start()

    def run(self):
        while not self._end.is_set():
            with contextlib.suppress(OSError):
                plain, _ = self._listener.accept()
                plain.settimeout(5)
                with plain:
                    self._serve(plain)

    def _serve(self, plain):
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(self.startup / "rootCA.pem"))
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(*map(str, self.certificate))
        with context.wrap_socket(plain, server_side=True) as tls:
            request, *fields = tls.recv(4096).decode("ascii").split("\r\n")
            self.asked.append(request)
            key = next(field.partition(": ")[2] for field in fields if field.startswith("Sec-WebSocket-Key"))
            assert len(base64.b64decode(key)) == 16, "FLARE's server takes no other"
            date = f"Date: {format_datetime(datetime.now(UTC) + self.ahead, usegmt=True)}\r\n" if self.tell_time else ""
            tls.sendall(f"HTTP/1.1 {self.status}\r\n{date}\r\n".encode())

    def close(self):
        self._end.set()
        self.join(10)
        self._listener.close()


def fill_in(folder, data, **more):
    profile = {"datasets": {"tiny": str(data / "alpha")}, "state": str(folder.parent / "state"), "device": "cpu"}
    policy = {"tasks": ["tiny"], "scores": True, "epsilon_budget": {"tiny": {"epsilon": 8.0, "delta": 1e-5}}}
    (folder / "local" / "fedseg.json").write_text(json.dumps({**profile, "policy": policy, **more}))


def check(folder, **more):
    return check_site(read_kit(folder), CheckOptions(tasks={"tiny": resolve_task(TASK)}, timeout=5, **more))


def found(page, colour=Colour.RED):
    texts = {}
    for result in page.results:
        if result.colour is colour:
            texts[result.check] = f"{texts.get(result.check, '')} {result.found} {result.remedy}".strip()
    return texts


def edit(path, change):
    content = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(change(content)))


def without_an_image(kit):
    copied = kit.parent / "copy"
    shutil.copytree(Path(json.loads((kit / "local" / "fedseg.json").read_text())["datasets"]["tiny"]), copied)
    next((copied / "images").glob("*_image.nii.gz")).unlink()
    edit(kit / "local" / "fedseg.json", lambda c: {**c, "datasets": {"tiny": str(copied)}})


def spend(kit, times):
    """Charge the site's ledger, and give the site a budget of 8."""
    budget = {"epsilon_budget": {"tiny": {"epsilon": 8.0, "delta": 1e-5}}}
    edit(kit / "local" / "fedseg.json", lambda c: {**c, "policy": budget})
    ledger = Ledger(kit.parent / "state" / "ledger")
    place = {"job": "job", "run_id": "run", "delta": 1e-5, "budget": 8.0}
    for number in range(times):
        ledger.charge("tiny", ["p"], Release("gaussian", 1.0, unit=SITE_UPDATE), round_number=number, **place)
    return ledger


def command(*arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    return code, out.getvalue(), " ".join(err.getvalue().split())


def prepared(kit, launcher="docker_launcher"):
    """What `nvflare deploy prepare` does to a kit, as tests/deployment/templates have it from FLARE itself."""
    for name in ("start.sh", "sub_start.sh", "stop_fl.sh"):
        (kit / "startup" / name).unlink()
    edit(
        kit / "local" / "resources.json.default",
        lambda c: {**c, "components": [*c["components"], {"id": launcher, "path": "x", "args": {}}]},
    )

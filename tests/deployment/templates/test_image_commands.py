"""The commands of the image, run as its user in a plain folder."""

import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import nvflare
import pytest

from fedseg.deployment.coordination.session import FINISHED, FederationError, connect
from fedseg.deployment.kits.project_file import on_this_machine, read_project
from fedseg.deployment.kits.provisioning import provision
from fedseg.deployment.kits.storage_folders import place_server, place_state
from fedseg.deployment.kits.wheel import build_wheel
from fedseg.deployment.local.processes import free_port, listens
from fedseg.deployment.operation.kit_processes import living_processes
from fedseg.jobs.job import read_job
from fedseg.processes import end_processes
from prepared_kits import POLICY, ROOT, SITE, TEMPLATES, USER, blocks, instructions, place_kit, run
from tiny import PLAN, make_sites


@contextlib.contextmanager
def open_folder():
    """A temporary folder that other users may enter; pytest's may be entered by its owner only."""
    folder = Path(tempfile.mkdtemp(prefix="fedseg-image-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        for path in folder.rglob("*"):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)
        shutil.rmtree(folder)


def as_image_user():
    """Arguments of ``subprocess`` by which a command has the image's user; a user who is not root stays who it is."""
    return {"user": USER, "group": USER, "extra_groups": []} if os.getuid() == 0 else {}


def image_environment(folder):
    """What a command of the image finds: an interpreter that its user may run, pinned packages, nothing else."""
    (set_by_image,) = [rest for word, rest in instructions()[-6:] if word == "ENV"]
    environment = {
        **dict(word.replace("/tmp", str(folder / "tmp")).split("=") for word in set_by_image.split()),
        "PATH": os.pathsep.join([str(folder / "bin"), str(folder / "site" / "bin"), "/usr/bin", "/bin"]),
        "TMPDIR": str(folder / "tmp"),
        "PYTHONPATH": os.pathsep.join([str(folder / "site"), str(Path(nvflare.__file__).parents[1])]),
    }
    assert environment["USER"] == "fedseg"
    for name in (os.path.realpath(sys.executable), shutil.which("python3.11", path="/usr/local/bin:/usr/bin")):
        if name is None:
            continue
        with contextlib.suppress(OSError):
            probe = subprocess.run(
                [name, "-c", "import nvflare, pip, numpy"],
                env=environment, capture_output=True, timeout=60, check=False, **as_image_user(),
            )  # fmt: skip
            if probe.returncode == 0:
                (folder / "bin").mkdir()
                (folder / "bin" / "python3").symlink_to(name)
                return environment
    pytest.skip("the image's user may run no Python 3.11 of this machine with the packages of this environment")


def contents(kit):
    parts = [path for part in ("startup", "local") for path in (kit / part).rglob("*")]
    return {path: (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) for path in parts if path.is_file()}


def wait_for(what, happens, seconds=180):
    end = time.monotonic() + seconds
    while not happens():
        if time.monotonic() > end:
            raise AssertionError(f"{what} within {seconds} s")
        time.sleep(0.5)


def tiny_job(folder):
    """A job of one round with the smallest network."""
    job = read_job(ROOT / "jobs" / "hippocampus_fedavg")
    for key in ("task", "network", "training"):
        job.set(key, PLAN[key])
    job.set("workflow.num_rounds", 1)
    job.check()
    return read_job(job.write(folder / job.name))


def connected_sites(kit):
    with contextlib.suppress(FederationError), connect(kit) as coordinator:
        return coordinator.sites()
    return []


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """The image's commands run one after another as its user; what they printed and left is written down."""
    with open_folder() as folder:
        (folder / "tmp").mkdir()
        (folder / "tmp").chmod(0o777)
        (folder / "site").mkdir()
        if os.getuid() == 0:
            os.chown(folder / "site", USER, USER)
        environment = image_environment(folder)
        wheel = build_wheel(folder)
        wheel.chmod(0o644)

        def step(*command):
            return subprocess.run(
                [str(word) for word in command], cwd=folder / "tmp", env=environment, capture_output=True, text=True,
                timeout=120, check=False, **as_image_user(),
            )  # fmt: skip

        seen = SimpleNamespace(folder=folder, step=step)
        seen.installed = step(
            "python3", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder / "site", wheel
        )
        seen.help = step("python3", folder / "site" / "bin" / "fedseg", "--help")
        seen.where = step("python3", "-c", "import fedseg, os; print(fedseg.__file__, os.getuid())")
        run_federation(seen, environment, tmp_path_factory.mktemp("image_kits") / "out")
        yield seen


def run_federation(seen, environment, out):
    """Start the Dockerfile's command in a server's and a site's kit, let them run a job, and ask them to end."""
    (command,) = [json.loads(rest) for word, rest in instructions() if word == "CMD"]
    port = free_port()
    project = on_this_machine(read_project(TEMPLATES / "three_hospitals"), [SITE], port)
    federation = provision(project, POLICY, out, with_wheel=False)
    by_name = {kit.name: kit for kit in federation.kits}
    # In the image it is /var/lib/fedseg, which belongs to the image's user.
    place_server(by_name["localhost"].folder, seen.folder / "tmp" / "storage")
    data = make_sites(seen.folder / "data", {SITE: (3, 1)})
    for path in (data, *data.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    datasets = {"*": str(data / SITE / "datalist.json")}
    place_state(by_name[SITE].folder, seen.folder / "tmp" / "state", datasets=datasets, policy={})
    started, seen.exits, seen.users = {}, {}, {}
    seen.kits = {name: seen.folder / name for name in ("localhost", SITE)}
    try:
        for name, kit in seen.kits.items():
            place_kit(by_name[name].folder, kit)
            log = (seen.folder / f"{name}.log").open("wb")
            words = [word.replace("/kit/", f"{kit}/") for word in command]
            started[name] = subprocess.Popen(
                words, cwd=kit, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True, **as_image_user(),
            )  # fmt: skip
            log.close()
            if name == "localhost":
                seen.before = {kit: contents(kit) for kit in seen.kits.values() if kit.exists()}
                wait_for("the server listens", lambda: listens(port))
        seen.before[seen.kits[SITE]] = contents(seen.kits[SITE])
        coordinator = by_name["coordinator@example.org"].folder
        wait_for("the site registers", lambda: connected_sites(coordinator) == [SITE])
        with connect(coordinator) as session:
            seen.status = session.wait(session.submit(tiny_job(out)), timeout=180)
        for name, process in started.items():
            seen.users[name] = Path(f"/proc/{process.pid}").stat().st_uid
        seen.after = {kit: contents(kit) for kit in seen.kits.values()}
        for name in (SITE, "localhost"):
            started[name].terminate()
            seen.exits[name] = started[name].wait(30)
    except AssertionError as error:
        pytest.fail(f"{error}\n" + "\n".join((seen.folder / f"{name}.log").read_text("utf-8") for name in started))
    finally:
        for _ in range(3):
            end_processes(living_processes(seen.kits.values(), [process.pid for process in started.values()]), 5.0)


def test_the_images_user_installs_the_wheel_and_runs_the_command(image):
    assert image.installed.returncode == 0, image.installed.stderr
    assert image.help.returncode == 0, image.help.stderr
    assert "usage: fedseg" in image.help.stdout
    path, user = image.where.stdout.split()
    assert Path(path) == image.folder / "site" / "fedseg" / "__init__.py"
    assert int(user) == (USER if os.getuid() == 0 else os.getuid())


def test_the_images_command_trains_as_its_user(image):
    assert image.status == FINISHED
    assert set(image.users.values()) == {USER if os.getuid() == 0 else os.getuid()}


def test_a_kit_may_be_read_only(image):
    assert image.before == image.after
    assert sorted(kit.name for kit in image.after) == sorted(image.kits)
    local, startup = (image.kits[SITE] / part for part in ("local", "startup"))
    probe = image.step("bash", "-c", f"echo x >> {local}/fedseg.json; echo x >> {local}/new; echo x > {startup}/new")
    assert probe.returncode != 0
    assert probe.stderr.count("Permission denied") == 3


def test_a_container_ends_when_it_is_asked_to(image):
    assert set(image.exits) == set(image.kits)
    assert all(code is not None and code != -signal.SIGKILL for code in image.exits.values())


def test_a_kit_with_the_rights_of_the_page_opens_to_the_images_user_only(kits, tmp_path):
    (block,) = [block for block in blocks("containers") if "chmod" in block]
    kit = shutil.copytree(kits / SITE, tmp_path / SITE)
    change = "\n".join(line for line in block.splitlines() if not line.startswith("chown") or os.getuid() == 0)
    assert run("bash", "-euc", change, cwd=tmp_path).returncode == 0
    for path in (each for part in ("startup", "local") for each in (kit / part).rglob("*")):
        executable = path.is_dir() or path.suffix == ".sh"
        assert stat.S_IMODE(path.stat().st_mode) == (0o500 if executable else 0o400), path
        assert os.getuid() != 0 or path.stat().st_uid == USER
    for path in (kit / "startup", kit / "local"):
        path.chmod(0o700)

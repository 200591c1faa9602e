"""The image and the compose files: small rights, pinned requirements, the same paths for a job's own container."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from nvflare.app_opt.job_launcher.study_runtime import load_study_runtime_file, resolve_study_runtime

from fedseg.site.profile import read_profile
from fedseg.version import __version__
from prepared_kits import DOCKER, KUBERNETES, PROGRAMS, ROOT, SERVER, SITE, SLURM, USER, instructions, load, run


def test_hadolint_has_no_complaint(tmp_path):
    done = run(PROGRAMS / "hadolint", DOCKER / "Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")
    (tmp_path / "Dockerfile").write_text("FROM python:latest\nRUN cd /tmp && pip install x\n")
    bad = run(PROGRAMS / "hadolint", tmp_path / "Dockerfile")
    assert bad.returncode != 0
    assert "DL3007" in bad.stdout


def test_the_image_runs_as_a_fixed_user_and_opens_no_port():
    words = instructions()
    last = words[max(i for i, (word, _) in enumerate(words) if word == "FROM") :]
    assert [rest for word, rest in last if word == "USER"] == [f"{USER}:{USER}"]
    assert "EXPOSE" not in {word for word, _ in words}
    assert not [rest for word, rest in last if word in ("COPY", "ADD") and "--from=build" not in rest]
    (base,) = re.findall(r"PYTHON_IMAGE=(\S+)", (DOCKER / "Dockerfile").read_text("utf-8"))
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", base)


def test_the_image_installs_the_pinned_requirements_without_those_of_tests(tmp_path):
    step = next(rest for word, rest in instructions() if word == "RUN" and rest.startswith("sed "))
    shutil.copy2(ROOT / "requirements.txt", tmp_path)
    assert run("bash", "-euc", step.partition("&&")[0], cwd=tmp_path).returncode == 0
    pinned = (tmp_path / "pinned.txt").read_text("utf-8").splitlines()
    packages = [line for line in pinned if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", line) for line in packages)
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    wanted = re.search(r"^dependencies = \[(.*?)\]", project, re.MULTILINE | re.DOTALL).group(1)
    assert set(packages) == set(re.findall(r'"([^"]+)"', wanted))


def test_templates_and_pages_name_the_image_of_this_version():
    """A site refuses jobs of another version, so an image is called after the one that is in it."""
    files = [p for folder in (DOCKER, KUBERNETES, ROOT / "docs" / "how-to") for p in folder.iterdir() if p.is_file()]
    tags = [tag for path in files for tag in re.findall(r"\bfedseg:(\d[\w.]*\w)", path.read_text("utf-8"))]
    assert len(tags) >= 10
    assert set(tags) == {__version__}


def test_the_image_is_made_of_sources_only():
    lines = (DOCKER / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*", "everything is left out first"
    named = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    copied = {
        word.removeprefix("./")
        for kind, rest in instructions()
        if kind == "COPY" and "--from" not in rest
        for word in rest.split()[:-1]
    }
    assert named == copied
    assert all((ROOT / name).exists() for name in named)


def compose(name):
    (service,) = yaml.safe_load((DOCKER / f"compose.{name}.yml").read_text("utf-8"))["services"].values()
    return service


@pytest.mark.parametrize("name", ["site", "server"])
def test_a_container_may_do_little(name):
    service = compose(name)
    assert service["user"] == f"{USER}:{USER}"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert "cap_add" not in service
    assert ("ports" in service) is (name == "server")
    assert ("healthcheck" in service) is (name == "server")
    mounts = {mount["target"]: mount for mount in service["volumes"]}
    for target in ("/kit/startup", "/kit/local"):
        assert mounts[target]["read_only"] is True
    assert not [mount for mount in service["volumes"] if "docker.sock" in mount["source"]]
    declared = set(yaml.safe_load((DOCKER / f"compose.{name}.yml").read_text("utf-8"))["volumes"])
    assert {mount["source"] for mount in service["volumes"] if mount["type"] == "volume"} == declared


def inside(path, folder):
    return Path(path).is_relative_to(folder)


def test_a_site_finds_its_data_read_only_and_its_state_writable(tmp_path):
    mounts = compose("site")["volumes"]
    profile = read_profile(SITE, DOCKER, tmp_path)
    (datalist,) = profile.datasets.values()
    (data,) = [mount for mount in mounts if inside(datalist, mount["target"])]
    (state,) = [mount for mount in mounts if inside(profile.state, mount["target"])]
    assert data["read_only"] is True
    assert "read_only" not in state
    assert profile.policy is not None


def test_a_server_keeps_its_jobs_on_a_volume(kits):
    storage = load(kits / SERVER / "local" / "resources.json")["snapshot_persistor"]["args"]["storage"]["args"]
    (mount,) = [m for m in compose("server")["volumes"] if inside(storage["root_dir"], m["target"])]
    assert mount["type"] == "volume"
    assert inside(load(kits / SERVER / "local" / "fedseg.json")["state"], mount["target"])


def test_the_gpu_file_extends_the_sites():
    assert set(yaml.safe_load((DOCKER / "compose.gpu.yml").read_text("utf-8"))["services"]) == {"site"}


@pytest.mark.parametrize(("templates", "mode"), [(DOCKER, "docker"), (KUBERNETES, "k8s"), (SLURM, "slurm")])
def test_a_jobs_own_container_has_the_same_paths(templates, mode, tmp_path):
    (tmp_path / "local").mkdir()
    for path in templates.glob("*.yaml"):
        shutil.copy2(path, tmp_path / "local")
    file = tmp_path / "local" / "study_runtime.yaml"
    found = resolve_study_runtime(load_study_runtime_file(str(file), launcher_mode=mode), "default", str(file))
    mounts = {mount.mount_path: mount.read_only for mount in found.datasets}
    assert mounts == {"/data/default/brats": True, "/data/default/state": False}
    profile = load(DOCKER / "fedseg.json")
    assert profile["datasets"] == {"brats": "/data/default/brats/datalist.json"}
    assert profile["state"] == "/data/default/state"
    if mode != "slurm":
        prepare = yaml.safe_load((templates / "prepare.yaml").read_text("utf-8"))
        assert found.container_image == prepare["parent"]["docker_image"]

"""The templates for containers, Kubernetes and Slurm, on a machine with none of these.

They are linted, checked against the schemas of Kubernetes and against what ``nvflare deploy prepare`` really makes of a
kit; the commands of the image are run as its user in a plain folder.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import kubernetes_validate
import nvflare
import pytest
import yaml
from nvflare.apis.app_validation import AppValidationKey
from nvflare.app_opt.job_launcher.k8s_launcher import K8sJobHandle
from nvflare.app_opt.job_launcher.study_runtime import load_study_runtime_file, resolve_study_runtime
from nvflare.private.fed.utils.app_authz import AppAuthzService

from fedseg.cli import main
from fedseg.deployment.coordination.session import FINISHED, FederationError, connect
from fedseg.deployment.kits.container_runtime import runtime_of
from fedseg.deployment.kits.equip import equip, role_of_kit
from fedseg.deployment.kits.installed_kit import read_kit
from fedseg.deployment.kits.project_file import on_this_machine, read_project
from fedseg.deployment.kits.provisioning import provision
from fedseg.deployment.kits.storage_folders import place_server, place_state
from fedseg.deployment.kits.wheel import build_wheel
from fedseg.deployment.local.processes import free_port, listens
from fedseg.deployment.operation.checks.kit import check_files
from fedseg.deployment.operation.checks.result import CheckOptions, Colour
from fedseg.deployment.operation.kit_processes import living_processes
from fedseg.errors import UsageError
from fedseg.jobs.allowed_components import site_resources
from fedseg.jobs.job import read_job
from fedseg.processes import end_processes
from fedseg.site.profile import read_profile
from fedseg.version import __version__
from tiny import PLAN, make_sites

ROOT = Path(__file__).parents[2]
TEMPLATES = ROOT / "workspace_templates"
DOCKER, KUBERNETES, SLURM = (TEMPLATES / name for name in ("docker", "kubernetes", "slurm"))
POLICY = TEMPLATES / "site_policy" / "local"
SITE, SERVER = "hospital-a", "server.example.org"
PROGRAMS = Path(sys.executable).parent
SCHEMA = "1.37"
USER = 10001
WORKSPACE = "/var/tmp/nvflare/workspace"


def load(path):
    return json.loads(path.read_text("utf-8"))


def documents(path):
    return [document for document in yaml.safe_load_all(path.read_text("utf-8")) if document]


def of_kind(path, kind):
    return [document for document in documents(path) if document["kind"] == kind]


def run(*command, **options):
    path = os.pathsep.join([str(PROGRAMS), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, **options.pop("env", {})}
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=120, check=False, env=env, **options
    )


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    """Kits of the template's federation."""
    project = read_project(TEMPLATES / "three_hospitals")
    federation = provision(project, POLICY, tmp_path_factory.mktemp("kits") / "out", with_wheel=False)
    return federation.folder / "kits"


@pytest.fixture(scope="module")
def prepared(kits, tmp_path_factory):
    """The same kits as `nvflare deploy prepare` leaves them with the templates' settings."""
    folder = tmp_path_factory.mktemp("prepared")
    image = folder / "fedseg.sif"
    image.touch()
    made = {}
    for runtime, templates in (("docker", DOCKER), ("k8s", KUBERNETES), ("slurm", SLURM)):
        settings = folder / f"{runtime}.yaml"
        settings.write_text(
            (templates / "prepare.yaml").read_text("utf-8").replace("/opt/fedseg/fedseg.sif", str(image)), "utf-8"
        )
        for kit in (SITE, SERVER):
            if runtime == "slurm" and kit == SERVER:
                content = yaml.safe_load(settings.read_text("utf-8"))
                del content["parent"]
                settings.write_text(yaml.safe_dump(content), "utf-8")
            out = folder / runtime / kit
            done = run(
                "nvflare", "deploy", "prepare", kits / kit, "--output", out, "--config", settings,
                env={"HOME": str(folder)},
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr
            made[runtime, kit] = out
    return made


# ------------------------------------------------------------ the policy, again


@pytest.mark.parametrize("runtime", ["docker", "k8s", "slurm"])
@pytest.mark.parametrize("name", [SITE, SERVER])
def test_equip_mends_what_deploy_prepare_takes_away(prepared, runtime, name, tmp_path):
    kit = shutil.copytree(prepared[runtime, name], tmp_path / "kit")
    assert not (kit / "local" / "resources.json").exists(), "if FLARE leaves it one day, the page can be shorter"
    before = load(kit / "local" / "resources.json.default")
    edited = {"_mine": True, **load(POLICY / "fedseg.json")}
    if name == SITE:
        assert before["allow_log_streaming"] is True
        (kit / "local" / "fedseg.json").write_text(json.dumps(edited), "utf-8")
    assert before["class_allow_list"] != site_resources()["class_allow_list"]
    more = [] if name == SITE else ["--storage", f"{WORKSPACE}/storage", "--state", "/data/default/state"]
    assert main(["equip", str(kit), *more]) == 0
    after = load(kit / "local" / "resources.json")
    assert after["class_allow_list"] == site_resources()["class_allow_list"]
    launcher = {"docker": "docker_launcher", "k8s": "k8s_launcher", "slurm": "slurm_launcher"}[runtime]
    parts = {part["id"]: part for part in after["components"]}
    assert parts[launcher] == next(part for part in before["components"] if part["id"] == launcher)
    assert "process_launcher" not in parts
    if name == SITE:
        assert after["allow_log_streaming"] is False
        assert "site_log_streamer" not in parts
        assert load(kit / "local" / "fedseg.json") == edited
    else:
        assert parts["job_manager"]["args"]["uri_root"] == f"{WORKSPACE}/storage/jobs"
        assert load(kit / "local" / "fedseg.json") == {"state": "/data/default/state"}


def test_equip_says_what_is_wrong(kits, tmp_path):
    bare = shutil.copytree(kits / SITE, tmp_path / "kit")
    (bare / "local" / "privacy.json").unlink()
    with pytest.raises(UsageError, match=r"has no local/privacy\.json"):
        equip(bare)
    assert not (bare / "local" / "privacy.json").exists()
    with pytest.raises(UsageError, match=r"neither fed_server\.json nor fed_client\.json"):
        role_of_kit(kits / "coordinator@example.org")
    with pytest.raises(UsageError, match="is not absolute"):
        equip(kits / SERVER, storage=Path("storage"))
    with pytest.raises(UsageError, match="is no wheel"):
        equip(bare, POLICY, wheel=tmp_path / "none.whl")
    (tmp_path / "fedseg-0.0.1-py3-none-any.whl").touch()
    with pytest.raises(UsageError, match=rf"is fedseg 0\.0\.1, and this is fedseg {__version__}"):
        equip(bare, POLICY, wheel=tmp_path / "fedseg-0.0.1-py3-none-any.whl")
    wheel = tmp_path / f"fedseg-{__version__}-py3-none-any.whl"
    wheel.write_bytes(b"wheel")
    assert equip(bare, POLICY, wheel=wheel) == "client"
    assert (bare / "local" / "privacy.json").read_bytes() == (POLICY / "privacy.json").read_bytes()
    assert (bare / wheel.name).read_bytes() == b"wheel"
    (bare / "local" / "resources.json.default").unlink()
    with pytest.raises(UsageError, match="Make the kit anew"):
        equip(bare)


def test_equip_once_more_leaves_a_server_where_it_keeps_its_jobs(kits, tmp_path, capsys):
    """After an upgrade, say: with other folders the server would have forgotten every job and checkpoint."""
    kit = shutil.copytree(kits / SERVER, tmp_path / "kit")
    assert main(["equip", str(kit), "--storage", "/srv/fedseg"]) == 0
    resources, own = kit / "local" / "resources.json", kit / "local" / "fedseg.json"
    # The administrator has moved one of three, and lets more jobs run at a time.
    resources.write_text(resources.read_text("utf-8").replace("/srv/fedseg/jobs", "/mnt/jobs"), "utf-8")
    edited = resources.read_text("utf-8").replace('"max_jobs": 4', '"max_jobs": 9')
    resources.write_text(edited, "utf-8")
    capsys.readouterr()
    assert main(["equip", str(kit)]) == 0
    text = resources.read_text("utf-8")
    assert "/mnt/jobs" in text
    assert "/srv/fedseg/snapshots" in text
    assert "/var/lib/fedseg" not in text
    assert load(own) == {"state": "/srv/fedseg/state"}
    # What it does not know is not lost without a word.
    assert (kit / "local" / "resources.json.before").read_text("utf-8") == edited
    assert "bring over what you had changed by hand" in " ".join(capsys.readouterr().err.split())
    assert main(["equip", str(kit), "--storage", "/srv/new"]) == 0
    assert load(own) == {"state": "/srv/new/state"}
    assert "/mnt/jobs" not in resources.read_text("utf-8")


@pytest.mark.parametrize("runtime", ["docker", "k8s", "slurm"])
def test_a_server_in_a_container_must_be_told_where_its_volume_is(prepared, runtime, tmp_path):
    """In a folder of the container itself jobs and checkpoints would end with it."""
    kit = shutil.copytree(prepared[runtime, SERVER], tmp_path / "kit")
    with pytest.raises(UsageError, match=r"--storage is needed: .* was made ready for (Docker|Kubernetes|Slurm)"):
        equip(kit)
    assert not (kit / "local" / "resources.json").exists()
    equip(kit, storage=Path("/volume"), state=Path("/volume/state"))
    before = (kit / "local" / "resources.json").read_bytes()
    equip(kit)
    assert (kit / "local" / "resources.json").read_bytes() == before


@pytest.mark.parametrize("runtime", ["docker", "k8s", "slurm"])
def test_the_check_of_a_site_knows_what_deploy_prepare_has_done(prepared, kits, runtime, tmp_path):
    """FLARE's real changes, none of which is damage."""
    assert runtime_of(kits / SITE) is None
    kit = shutil.copytree(prepared[runtime, SITE], tmp_path / "kit")
    (result,) = check_files(read_kit(kit), CheckOptions())
    assert (result.colour, result.remedy) == (Colour.RED, f"fedseg equip {kit}")
    equip(kit)
    (result,) = check_files(read_kit(kit), CheckOptions())
    assert result.colour is Colour.YELLOW, result.found
    assert "All else is as the coordinator signed it." in result.found
    start = runtime_of(kit).start
    assert runtime == "k8s" or (kit / start).is_file(), "it names the script that is there"


@pytest.mark.parametrize("mode", ["docker", "k8s", "slurm"])
@pytest.mark.parametrize("key", ["image", "python_path"])
def test_a_job_that_chooses_its_image_brings_code_in_flares_eyes(mode, key):
    for who in (SITE, "default"):
        meta = {"launcher_spec": {who: {mode: {key: "x"}}}}
        assert AppAuthzService.derive_local_app_info({}, meta, SITE)[AppValidationKey.BYOC] is True
    assert AppAuthzService.derive_local_app_info({}, {"resource_spec": {SITE: {"num_of_gpus": 1}}}, SITE) == {}
    rights = load(POLICY / "authorization.json")["permissions"]
    assert {role.get("byoc", "none") for role in rights.values()} == {"none"}


# --------------------------------------------------------------- Dockerfile


def test_hadolint_has_no_complaint(tmp_path):
    done = run(PROGRAMS / "hadolint", DOCKER / "Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")
    (tmp_path / "Dockerfile").write_text("FROM python:latest\nRUN cd /tmp && pip install x\n")
    bad = run(PROGRAMS / "hadolint", tmp_path / "Dockerfile")
    assert bad.returncode != 0
    assert "DL3007" in bad.stdout


def instructions():
    """The Dockerfile as (instruction, rest) with continued lines joined and comments left out."""
    lines = [line for line in (DOCKER / "Dockerfile").read_text("utf-8").splitlines() if not line.startswith("#")]
    return [tuple(line.split(None, 1)) for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line.strip()]


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


# ------------------------------------------------------------------ compose


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


# --------------------------------------------------------------- Kubernetes


@pytest.mark.parametrize("name", ["site.yaml", "server.yaml", "job-pod.yaml"])
def test_manifests_have_the_form_that_kubernetes_wants(name):
    found = documents(KUBERNETES / name)
    assert found
    for document in found:
        kubernetes_validate.validate(document, SCHEMA, strict=True)
        broken = {**document, "spec": {"no such field": 1}} if "spec" in document else None
        if broken:
            with pytest.raises(kubernetes_validate.ValidationError):
                kubernetes_validate.validate(broken, SCHEMA, strict=True)


def check_restricted(pod):
    """The pod security standard "restricted", and a root that cannot be written."""
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == USER
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    allowed = {"persistentVolumeClaim", "configMap", "secret", "emptyDir"}
    assert all(set(volume) - {"name"} <= allowed for volume in pod["volumes"])
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize(("file", "kit"), [("site.yaml", SITE), ("server.yaml", SERVER)])
def test_the_manifests_run_what_flares_chart_would_run(prepared, file, kit):
    values = yaml.safe_load((prepared["k8s", kit] / "helm_chart" / "values.yaml").read_text("utf-8"))
    (deployment,) = of_kind(KUBERNETES / file, "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    check_restricted(pod)
    (container,) = pod["containers"]
    uid = [f"uid={values['siteName']}"] if "siteName" in values else []
    assert container["command"] == values["command"]
    assert container["args"] == values["args"] + uid
    assert container["image"] == f"{values['image']['repository']}:{values['image']['tag']}"
    assert pod["securityContext"] == values["securityContext"]
    assert container["resources"] == values["resources"]
    workspace = values["persistence"]["workspace"]
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    claims = {
        v["name"]: v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v
    }
    assert claims[mounts[workspace["mountPath"]]["name"]] == workspace["claimName"]
    for part in ("local", "startup"):
        assert mounts[f"{workspace['mountPath']}/{part}"]["readOnly"] is True
    internal = load(prepared["k8s", kit] / "local" / "comm_config.json")["internal"]["resources"]
    services = {service["metadata"]["name"]: service["spec"] for service in of_kind(KUBERNETES / file, "Service")}
    ports = {port["port"] for port in services[internal["host"]]["ports"]}
    assert ports == {values.get("port", values.get("parentPort")), *([values["fedLearnPort"]] if not uid else [])}
    assert internal["port"] in ports
    for service in services.values():
        assert service["selector"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    claimed = {claim["metadata"]["name"] for claim in of_kind(KUBERNETES / file, "PersistentVolumeClaim")}
    assert claimed == {"workspace", "state"}


@pytest.mark.parametrize(("file", "chart"), [("site.yaml", "client"), ("server.yaml", "server")])
def test_flares_pod_may_ask_kubernetes_for_what_the_chart_allows(prepared, file, chart):
    kit = SITE if chart == "client" else SERVER
    template = (prepared["k8s", kit] / "helm_chart" / "templates" / "role.yaml").read_text("utf-8")
    rules = re.search(r"^rules:\n(.*?)^---", template, re.MULTILINE | re.DOTALL).group(1)
    (role,) = of_kind(KUBERNETES / file, "Role")
    assert role["rules"] == yaml.safe_load(rules)


def policies(file):
    return {policy["metadata"]["name"]: policy["spec"] for policy in of_kind(KUBERNETES / file, "NetworkPolicy")}


def outside(specs, direction):
    """Addresses and ports that lie outside of the cluster, in one direction."""
    key = "to" if direction == "egress" else "from"
    return {
        (peer["ipBlock"]["cidr"], port["port"])
        for spec in specs.values()
        for rule in spec.get(direction, [])
        for peer in rule[key]
        if "ipBlock" in peer
        for port in rule["ports"]
    }


@pytest.mark.parametrize("file", ["site.yaml", "server.yaml"])
def test_what_no_policy_allows_is_forbidden(file):
    specs = policies(file)
    assert specs["nothing-by-default"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for spec in specs.values():
        # A rule without peers or ports would allow all of them.
        for direction, key in (("egress", "to"), ("ingress", "from")):
            assert all(rule.get(key) and rule.get("ports") for rule in spec.get(direction, []))


def test_a_site_reaches_the_server_and_is_reached_by_nobody():
    specs = policies("site.yaml")
    kubernetes = ("192.0.2.1/32", 6443)
    assert outside(specs, "egress") == {("203.0.113.10/32", 8002), kubernetes}
    assert outside({"": specs["parent-to-kubernetes"]}, "egress") == {kubernetes}
    assert outside(specs, "ingress") == set()
    (service,) = of_kind(KUBERNETES / "site.yaml", "Service")
    assert service["spec"].get("type", "ClusterIP") == "ClusterIP"


def test_a_server_is_reached_on_one_port_and_reaches_nobody_outside():
    specs = policies("server.yaml")
    assert outside(specs, "ingress") == {("0.0.0.0/0", 8002)}
    assert outside(specs, "egress") == {("192.0.2.1/32", 6443)}


def test_the_pod_of_a_job_is_as_restricted(tmp_path):
    prepare = yaml.safe_load((KUBERNETES / "prepare.yaml").read_text("utf-8"))
    job = {
        "name": "j1",
        "image": "i",
        "container_name": "container-j1",
        "command": "nvflare.private.fed.app.client.worker_process",
        "require_main_container": True,
        "volume_list": [{"name": "workspace-job", "emptyDir": {"sizeLimit": "1Gi"}}],
        "volume_mount_list": [{"name": "workspace-job", "mountPath": WORKSPACE}],
        "secret_env": [{"name": "TOKEN", "source": "s", "key": "TOKEN"}],
        "security_context": prepare["job_launcher"]["job_pod_security_context"],
        "resources": {"limits": {"ephemeral-storage": "1Gi"}},
    }
    template = yaml.safe_load((KUBERNETES / "job-pod.yaml").read_text("utf-8"))
    manifest = K8sJobHandle("j1", None, job, pod_manifest_template=template).get_manifest()
    kubernetes_validate.validate(manifest, SCHEMA, strict=True)
    check_restricted(manifest["spec"])
    assert manifest["spec"]["automountServiceAccountToken"] is False
    for spec in (policies(file)["jobs-to-parent"] for file in ("site.yaml", "server.yaml")):
        assert spec["podSelector"]["matchLabels"] == manifest["metadata"]["labels"]
    assert {mount["name"] for mount in manifest["spec"]["containers"][0]["volumeMounts"]} == {
        "tmp", "shm", "workspace-job",
    }  # fmt: skip


@pytest.mark.parametrize("name", [SITE, SERVER])
def test_a_prepared_kit_fits_into_a_secret_and_a_config_map(prepared, name, tmp_path):
    kit = shutil.copytree(prepared["k8s", name], tmp_path / "kit")
    for file in ("study_runtime.yaml", "job-pod.yaml"):
        shutil.copy2(KUBERNETES / file, kit / "local")
    equip(kit, storage=None if name == SITE else Path("/var/tmp/nvflare/workspace/storage"))
    for part in ("startup", "local"):
        files = list((kit / part).iterdir())
        assert all(path.is_file() and re.fullmatch(r"[-._a-zA-Z0-9]+", path.name) for path in files)
        assert sum(path.stat().st_size for path in files) < 2**20
    assert "server.key" in os.listdir(kit / "startup") or "client.key" in os.listdir(kit / "startup")


# -------------------------------------------------------------------- Slurm


def test_slurm_gets_a_script_for_flare_and_its_own_site_script_starts_the_kit(prepared, tmp_path):
    startup = prepared["slurm", SITE] / "startup"
    assert {path.name for path in startup.glob("*.s*")} == {"parent.slurm", "start_slurm.sh", "sub_start.sh"}
    assert "#SBATCH --partition=long" in (startup / "parent.slurm").read_text("utf-8")
    (tmp_path / "startup").mkdir()
    (tmp_path / "startup" / "sub_start.sh").write_text('echo "$0 $*" "$OMP_NUM_THREADS"; command -v python3\n')
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python3"
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    variables = {"KIT": str(tmp_path), "ENVIRONMENT": str(tmp_path), "SLURM_CPUS_PER_TASK": "3"}
    done = run("bash", SLURM / "site.sbatch", env=variables)
    assert done.stdout.splitlines() == [f"{tmp_path}/startup/sub_start.sh --once 3", str(python)]
    assert "the unpacked kit" in run("bash", SLURM / "site.sbatch").stderr


# ------------------------------------- the image's commands, as the image's user


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


def place_kit(source, target):
    """A kit as the image sees it: a folder of the image's user, in it ``startup`` and ``local``, read-only."""
    target.mkdir()
    for part in ("startup", "local"):
        shutil.copytree(source / part, target / part)
        for path in (target / part, *(target / part).rglob("*")):
            if os.getuid() == 0:
                os.chown(path, USER, USER)
            path.chmod(0o500 if path.is_dir() or path.suffix == ".sh" else 0o400)
    if os.getuid() == 0:
        os.chown(target, USER, USER)


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


# ------------------------------------------------------------------ the pages

PAGES = ("containers", "kubernetes", "slurm")
NOT_HERE = ("docker build", "docker compose", "kubectl", "sbatch", "chown")


def blocks(page):
    text = (ROOT / "docs" / "how-to" / f"{page}.md").read_text("utf-8")
    return re.findall(r"```bash\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_does_to_a_kit_works(page, kits, tmp_path):
    here = [block for block in blocks(page) if not any(word in block for word in NOT_HERE)]
    assert any("fedseg equip" in block for block in here)
    for kit in (SITE, SERVER):
        shutil.copytree(kits / kit, tmp_path / kit)
    shutil.copytree(TEMPLATES, tmp_path / "workspace_templates")
    image = tmp_path / "fedseg.sif"
    image.touch()
    settings = tmp_path / "workspace_templates" / "slurm" / "prepare.yaml"
    settings.write_text(settings.read_text("utf-8").replace("/opt/fedseg/fedseg.sif", str(image)), "utf-8")
    for block in here:
        done = run("bash", "-euo", "pipefail", "-c", block, cwd=tmp_path, env={"HOME": str(tmp_path)})
        assert done.returncode == 0, done.stdout + done.stderr
        (made,) = re.findall(r"--output (\S+)", block)
        resources = load(tmp_path / made / "local" / "resources.json")
        assert resources["class_allow_list"] == site_resources()["class_allow_list"]
        assert (tmp_path / made / "local" / "study_runtime.yaml").is_file()
    for block in blocks(page):
        assert run("bash", "-n", "-c", block).returncode == 0


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


def test_files_that_the_pages_name_exist():
    text = "".join((ROOT / "docs" / "how-to" / f"{page}.md").read_text("utf-8") for page in (*PAGES, "own-keys"))
    named = set(re.findall(r"workspace_templates/[\w./-]+\w", text))
    assert named
    assert {name for name in named if not (ROOT / name).exists()} == set()

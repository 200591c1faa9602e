"""The manifests: the form that Kubernetes wants, what FLARE's chart would run, and who may reach whom."""

import os
import re
import shutil
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from nvflare.app_opt.job_launcher.k8s_launcher import K8sJobHandle

from fedseg.deployment.kits.equip import equip
from prepared_kits import KUBERNETES, SERVER, SITE, USER, WORKSPACE, load

SCHEMA = "1.37"


def documents(path):
    return [document for document in yaml.safe_load_all(path.read_text("utf-8")) if document]


def of_kind(path, kind):
    return [document for document in documents(path) if document["kind"] == kind]


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

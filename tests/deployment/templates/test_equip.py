"""``fedseg equip`` mends what FLARE's own tools leave of a kit."""

import json
import shutil
from pathlib import Path

import pytest
from nvflare.apis.app_validation import AppValidationKey
from nvflare.private.fed.utils.app_authz import AppAuthzService

from fedseg.cli import main
from fedseg.deployment.kits.container_runtime import runtime_of
from fedseg.deployment.kits.equip import equip, role_of_kit
from fedseg.deployment.kits.installed_kit import read_kit
from fedseg.deployment.operation.checks.kit import check_files
from fedseg.deployment.operation.checks.result import CheckOptions, Colour
from fedseg.errors import UsageError
from fedseg.jobs.allowed_components import site_resources
from fedseg.version import __version__
from prepared_kits import POLICY, SERVER, SITE, WORKSPACE, load


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

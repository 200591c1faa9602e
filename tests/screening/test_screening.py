"""FLARE's own code with fedseg's components in it: nothing of a hostile job is read, asked or stored."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from nvflare.apis.fl_constant import FLContextKey, SiteType, WorkspaceConstants
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl import job_def_manager
from nvflare.apis.impl.job_def_manager import SimpleJobDefManager
from nvflare.apis.job_def import Job
from nvflare.apis.workspace import Workspace
from nvflare.fuel.utils.config_factory import ConfigFactory
from nvflare.fuel.utils.zip_utils import zip_directory_to_bytes
from nvflare.private.admin_defs import Message
from nvflare.private.defs import RequestHeader, TrainingTopic
from nvflare.private.fed.app.fl_app_validator import FLAppValidator
from nvflare.private.fed.client import training_cmds
from nvflare.private.fed.client.client_engine_internal_spec import ClientEngineInternalSpec
from nvflare.private.fed.server import job_cmds
from nvflare.private.fed.server.job_meta_validator import JobMetaValidator
from nvflare.private.fed.utils.app_deployer import AppDeployer

import fedseg
from canary import attacks, canary
from fedseg.errors import ConfigurationError
from fedseg.jobs.allowed_components import allowed_classes, server_components, site_components
from fedseg.resilience.lost_jobs import LostJobs
from fedseg.resilience.steady_memory import SteadyMemory
from fedseg.resilience.supervised_launcher import SupervisedLauncher
from fedseg.screening.deployer import ScreeningDeployer
from fedseg.screening.job_store import ScreeningJobStore
from fedseg.screening.json_only import JsonOnly, reads_json_only

JOB = Path(__file__).parents[2] / "jobs" / "hippocampus_partial"
ASKING = ("client asks", "server asks", "meta asks")
READING = ("meta reads", "client reads", "hocon environment")
PARENTS = [Path(fedseg.__file__).parent / name for name in ("screening", "resilience")]
PLAIN = ("environment", "kit", "more configuration")
# Before any test has changed it.
LOADERS = dict(ConfigFactory._fmt2Loader)
PROCESS = training_cmds.DeployProcessor.process


@pytest.fixture
def open_process(monkeypatch):
    """FLARE as it is; what a test changes in it is put back."""
    monkeypatch.setattr(job_cmds, "JobMetaValidator", JobMetaValidator)
    monkeypatch.setattr(training_cmds.DeployProcessor, "process", PROCESS)
    monkeypatch.setattr(ConfigFactory, "_fmt2Loader", dict(LOADERS))


@pytest.fixture
def closed_process(open_process):
    JsonOnly()


@pytest.fixture
def hostile(tmp_path):
    """Jobs by what they do, and what was asked of the address that they name."""
    (tmp_path / "secret.json").write_text('{"training": [{"patient": "PATIENT-7"}]}')
    job = Path(shutil.copytree(JOB, tmp_path / "jobs" / "job"))
    with canary() as (address, asked):
        yield SimpleNamespace(jobs=attacks(job, address, tmp_path / "secret.json"), asked=asked)


def submitted(job):
    return JobMetaValidator().validate(job.name, zip_directory_to_bytes(str(job.parent), job.name))


def app(job):
    return zip_directory_to_bytes(str(job / "app"), "")


def test_flare_by_itself_reads_and_asks_at_submission_and_at_deployment(open_process, hostile):
    """Else the tests below would show nothing."""
    assert not reads_json_only()
    for kind in ("server asks", "meta asks"):
        assert submitted(hostile.jobs[kind])[0]
    assert sorted(set(hostile.asked)) == ["/meta", "/server"]
    assert FLAppValidator(SiteType.CLIENT).validate(str(hostile.jobs["client asks"] / "app"))[0] == ""
    assert "/client" in hostile.asked
    assert submitted(hostile.jobs["meta reads"])[2]["training"] == [{"patient": "PATIENT-7"}]


@pytest.mark.parametrize("kind", ["server asks", "meta asks", "meta reads"])
def test_a_server_that_reads_json_only_refuses_another_form_at_submission(closed_process, hostile, kind):
    assert reads_json_only()
    valid, why, _ = submitted(hostile.jobs[kind])
    assert not valid
    assert "A job is written in JSON, not in PYHOCON" in why
    assert hostile.asked == []


@pytest.mark.parametrize("part", [SupervisedLauncher, LostJobs, SteadyMemory, JsonOnly])
def test_every_component_that_lives_as_long_as_a_process_lets_it_read_json_only(open_process, part):
    """A kit that lacks what screens jobs, since it was changed by hand, reads no HOCON while it has any of these."""
    assert not reads_json_only()
    part()
    assert reads_json_only()


def test_nor_does_such_a_process_read_another_form_anywhere(closed_process, tmp_path):
    for ending in (".conf", ".yml", ".yaml", ".conf.default"):
        (tmp_path / f"settings{ending}").write_text("a = 1")
        with pytest.raises(ValueError, match="written in JSON"):
            ConfigFactory.load_config(str(tmp_path / "settings.json"))
        (tmp_path / f"settings{ending}").unlink()
    (tmp_path / "settings.json").write_text('{"a": 1}')
    assert ConfigFactory.load_config(str(tmp_path / "settings.json")).to_dict() == {"a": 1}


@pytest.mark.parametrize("kind", [*ASKING, *READING, *PLAIN])
def test_the_server_tells_whoever_submits_such_a_job_why(open_process, hostile, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ScreeningJobStore(str(tmp_path / "store"))
    job = hostile.jobs[kind]
    content = zip_directory_to_bytes(str(job.parent), job.name)
    valid, why, _ = job_cmds.JobMetaValidator().validate(job.name, content)
    assert not valid
    assert re.search(r"is not known: a job holds|without \{, \}, \$ and @", why)
    assert hostile.asked == []
    assert job_cmds.JobMetaValidator().validate(JOB.name, zip_directory_to_bytes(str(JOB.parent), JOB.name))[0]


@pytest.mark.parametrize("kind", [*ASKING, *READING, *PLAIN])
def test_the_server_stores_no_job_that_is_not_plain_json(open_process, hostile, kind, tmp_path, monkeypatch):
    """The store by itself, whatever the process can read."""
    monkeypatch.chdir(tmp_path)
    job, stored = hostile.jobs[kind], []
    monkeypatch.setattr(SimpleJobDefManager, "create", lambda *facts: stored.append(facts))
    store, content = ScreeningJobStore(str(tmp_path / "store")), zip_directory_to_bytes(str(job.parent), job.name)
    (tmp_path / "upload").write_bytes(content)
    for uploaded in (content, str(tmp_path / "upload")):
        with pytest.raises(ConfigurationError, match=r"is not known|must be"):
            store.create({}, uploaded, FLContext())
    assert stored == []
    assert hostile.asked == []
    store.create({}, zip_directory_to_bytes(str(JOB.parent), JOB.name), FLContext())
    assert len(stored) == 1


@pytest.mark.parametrize("kind", ["client asks", "server asks", *READING[1:], *PLAIN])
def test_the_server_deploys_none_that_came_into_its_store_another_way(
    open_process, hostile, kind, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(SimpleJobDefManager, "get_app", lambda *facts: app(hostile.jobs[kind]))
    store, context, detail = ScreeningJobStore(str(tmp_path / "store")), FLContext(), []
    context.set_prop(FLContextKey.JOB_DEPLOY_DETAIL, detail)
    with pytest.raises(ConfigurationError) as raised:
        store.get_app(Job("1", {}, {}, {}), "app", context)
    assert detail == [f"server: {raised.value}"], "what the coordinator reads"
    assert hostile.asked == []
    monkeypatch.setattr(SimpleJobDefManager, "get_app", lambda *facts: app(JOB))
    assert store.get_app(Job("1", {}, {}, {}), "app", context) == app(JOB)


@pytest.mark.parametrize("kind", ["client asks", *READING[1:], *PLAIN])
def test_a_site_unpacks_no_such_job(open_process, hostile, kind, tmp_path, monkeypatch):
    for folder in (WorkspaceConstants.STARTUP_FOLDER_NAME, WorkspaceConstants.SITE_FOLDER_NAME):
        (tmp_path / "kit" / folder).mkdir(parents=True)
    workspace, deployed = Workspace(str(tmp_path / "kit"), "alpha"), []
    monkeypatch.setattr(AppDeployer, "deploy", lambda *facts: deployed.append(facts))
    monkeypatch.setenv("FEDSEG_TEST_SECRET", "MARKER-3")
    why = ScreeningDeployer().deploy(workspace, "1", {}, "app", app(hostile.jobs[kind]), FLContext())
    assert "is not known: a job holds" in why or "without {, }, $ and @" in why
    assert not any(secret in why for secret in ("MARKER", "PATIENT", str(tmp_path / "kit")))
    assert deployed == []
    assert not Path(workspace.get_run_dir("1")).exists()
    assert hostile.asked == []
    assert ScreeningDeployer().deploy(workspace, "1", {}, "app", app(JOB), FLContext()) is None
    assert len(deployed) == 1


def bombs(tmp_path):
    """Apps that would fill the disk of a site, by what they do."""
    whole = {p.relative_to(JOB / "app").as_posix(): p.read_bytes() for p in (JOB / "app").rglob("*") if p.is_file()}
    many = {f"custom/m{number}.py": b"" for number in range(10_000)}
    small = {f"custom/m{number}.py": bytes(2**20) for number in range(100)}
    deep = {"custom/" + "d/" * 500 + "x.py": b""}
    for kind, files in {"many": many, "small": small, "deep": deep, "twice": {"custom/./x.py": b""}}.items():
        path = tmp_path / f"{kind}.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as content:
            for name, data in {**whole, **files}.items():
                content.writestr(name, data)
        yield kind, path.read_bytes()


class Engine:
    """As much of FLARE's client as a deployment asks."""

    def __init__(self, kit):
        self.args, self.deployed = SimpleNamespace(workspace=str(kit)), []

    def get_client_name(self):
        return "alpha"

    def deploy_app(self, **facts):
        self.deployed.append(facts["app_data"])
        return ""


ClientEngineInternalSpec.register(Engine)


def test_a_site_has_nothing_of_an_archive_on_its_disk_before_it_is_looked_at(open_process, tmp_path, monkeypatch):
    """FLARE's client unpacks an app to look for a signature, before it asks any component to deploy it."""
    for folder in (WorkspaceConstants.STARTUP_FOLDER_NAME, WorkspaceConstants.SITE_FOLDER_NAME):
        (tmp_path / "kit" / folder).mkdir(parents=True)
    (tmp_path / "kit" / "startup" / "fed_client.json").write_text("{}")
    unpacked, engine = [], Engine(tmp_path / "kit")
    monkeypatch.setattr(training_cmds, "unzip_all_from_bytes", lambda data, folder: unpacked.append(data))

    def sent(content):
        request = Message(TrainingTopic.DEPLOY, content)
        headers = {RequestHeader.JOB_ID: "1", RequestHeader.JOB_META: {"name": "x"}, RequestHeader.APP_NAME: "app"}
        for name, value in headers.items():
            request.set_header(name, value)
        return training_cmds.DeployProcessor().process(request, engine)

    content = dict(bombs(tmp_path))
    sent(content["many"])
    assert len(unpacked) == 1, "FLARE by itself"
    unpacked.clear()
    engine.deployed.clear()
    ScreeningDeployer()
    ScreeningDeployer()
    whys = {kind: sent(data).body for kind, data in content.items()}
    assert unpacked == engine.deployed == []
    assert "10000 at most" in whys["many"]
    assert "at most 20 times what it takes in the archive" in whys["small"]
    assert "at most 20 folders deep" in whys["deep"]
    assert "a place inside of it" in whys["twice"]
    sent(app(JOB))
    assert unpacked == engine.deployed == [app(JOB)]


def test_the_server_unpacks_no_stored_job_that_would_fill_its_disk(open_process, tmp_path, monkeypatch):
    """One that came into its store another way than by submission."""
    monkeypatch.chdir(tmp_path)
    bomb = dict(bombs(tmp_path))["small"]
    monkeypatch.setattr(SimpleJobDefManager, "get_content", lambda *facts: bomb)
    monkeypatch.setattr(job_def_manager, "unzip_all_from_bytes", lambda *facts: pytest.fail("unpacked"))
    context, detail = FLContext(), []
    context.set_prop(FLContextKey.JOB_DEPLOY_DETAIL, detail)
    with pytest.raises(ConfigurationError, match="20 times"):
        ScreeningJobStore(str(tmp_path / "store")).get_app(Job("1", {}, {}, {}), "app", context)
    assert len(detail) == 1


@pytest.mark.parametrize("name", ["hippocampus_p\u0430rtial", "a\x1b[2J", "../x"])
def test_a_site_takes_no_job_whose_name_is_made_to_deceive(open_process, tmp_path, monkeypatch, name):
    """The server says what a job is called, and need not have looked at it."""
    monkeypatch.setattr(AppDeployer, "deploy", lambda *facts: pytest.fail("deployed"))
    why = ScreeningDeployer().deploy(None, "1", {"name": name}, "app", app(JOB), FLContext())
    assert "meta.json: name is" in why
    assert why.isprintable()


def test_what_screens_jobs_is_declared_by_server_and_sites_and_by_no_job():
    declared = {part["path"] for part in (*server_components(), *site_components())}
    classes = (JsonOnly, ScreeningDeployer)
    assert {f"{kind.__module__}.{kind.__name__}" for kind in classes} <= declared
    assert not any(path.startswith("fedseg.screening") for path in allowed_classes())


def test_a_kit_of_a_server_and_of_a_site_have_it(tmp_path):
    from fedseg.deployment.kits.policy_files import write_policy

    policy = Path(__file__).parents[2] / "workspace_templates" / "site_policy" / "local"
    flare = {
        "client": [{"id": "process_launcher", "path": "x", "args": {}}],
        "server": [{"id": "job_manager", "path": "y", "args": {"uri_root": "/z"}}],
    }
    for role, parts in flare.items():
        local = tmp_path / role / "local"
        local.mkdir(parents=True)
        resources = {
            "components": parts,
            "servers": [{}],
            "snapshot_persistor": {"args": {"storage": {"args": {"root_dir": ""}}}},
        }
        (local / "resources.json.default").write_text(json.dumps(resources))
        write_policy(tmp_path / role, role, policy)
    contents = [json.loads((tmp_path / role / "local" / "resources.json").read_text()) for role in flare]
    site, server = ({part["id"]: part["path"] for part in content["components"]} for content in contents)
    assert site["json_only"] == server["json_only"] == "fedseg.screening.json_only.JsonOnly"
    assert site["app_deployer"] == "fedseg.screening.deployer.ScreeningDeployer"
    assert server["job_manager"] == "fedseg.screening.job_store.ScreeningJobStore"


def test_flares_parent_processes_load_no_training():
    """They live as long as the site does, and start with every kit: without PyTorch they need a third of the memory."""
    parts = [f"fedseg.{package.name}.{module.stem}" for package in PARENTS for module in package.glob("*.py")]
    found = f"import sys, {', '.join(parts)}; print([name for name in ('torch', 'monai') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", found], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""Every job folder, taken through FLARE's own steps from the submitted archive to the built components.

The kits are those that ``fedseg provision`` makes: their list of classes is in force, and code in jobs is forbidden.
"""

import contextlib
import importlib
import json
import shutil
from argparse import Namespace
from functools import partial
from pathlib import Path

import pytest
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.workspace import Workspace
from nvflare.fuel.common.excepts import ComponentNotAuthorized, ConfigError
from nvflare.fuel.sec.authz import AuthorizationService
from nvflare.fuel.utils.config_service import ConfigService
from nvflare.fuel.utils.zip_utils import zip_directory_to_bytes
from nvflare.private.fed.app.default_app_validator import DefaultAppValidator
from nvflare.private.fed.app.fl_conf import create_privacy_manager
from nvflare.private.fed.client.client_json_config import ClientJsonConfigurator
from nvflare.private.fed.server.job_meta_validator import JobMetaValidator
from nvflare.private.fed.server.server_json_config import ServerJsonConfigurator
from nvflare.private.fed.utils.app_authz import AppAuthzService
from nvflare.private.fed.utils.app_deployer import AppDeployer
from nvflare.private.fed.utils.fed_utils import authorize_build_component
from nvflare.private.privacy_manager import PrivacyService
from nvflare.security.security import FLAuthorizer

from fedseg.deployment.kits.project_file import read_project
from fedseg.deployment.kits.provisioning import provision
from fedseg.filters.guard.guard import Guard
from fedseg.jobs import allowed_components
from fedseg.jobs.allowed_components import allowed_classes
from fedseg.jobs.components import components
from fedseg.jobs.job import CLIENT_FILE, SERVER_FILE
from fedseg.resilience.supervised_launcher import SupervisedLauncher

ROOT = Path(__file__).parents[2]
TEMPLATES = ROOT / "workspace_templates"
JOBS = sorted(path.parent for path in (ROOT / "jobs").glob("*/meta.json"))
SERVER, SITE = "server.example.org", "hospital-a"
SUBMITTER = {
    "submitter_name": "coordinator@example.org",
    "submitter_org": "coordination",
    "submitter_role": "project_admin",
}
BUILDERS = {
    SERVER: ("server", SERVER_FILE, ServerJsonConfigurator),
    SITE: ("client", CLIENT_FILE, ClientJsonConfigurator),
}


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    """The kits of a server and a site, as they are sent to them."""
    folder = tmp_path_factory.mktemp("kits") / "out"
    policy = TEMPLATES / "site_policy" / "local"
    federation = provision(read_project(TEMPLATES / "three_hospitals"), policy, folder, with_wheel=False)
    return {kit.name: kit.folder for kit in federation.kits if kit.name in BUILDERS}


class Refused(Exception):
    """A job did not get through."""


def accept(folder):
    """What the server does with an archive that somebody submits: its meta."""
    archive = zip_directory_to_bytes(str(folder.parent), folder.name)
    valid, message, meta = JobMetaValidator().validate(folder.name, archive)
    if not valid:
        raise Refused(message)
    return meta


def deploy(kit, name, folder, meta):
    """What server and site do before they start a job: signed rights, code, privacy scope. Gives the workspace."""
    workspace = Workspace(str(kit), site_name=name)
    policy = json.loads(Path(workspace.get_authorization_file_path()).read_text("utf-8"))
    AuthorizationService.the_authorizer = FLAuthorizer("hospital_a", policy)
    AppAuthzService.app_validator = DefaultAppValidator(BUILDERS[name][0])
    PrivacyService.initialize(create_privacy_manager(workspace, names_only=True))
    app = zip_directory_to_bytes(str(folder / "app"), "")
    error = AppDeployer().deploy(workspace, "job", {**meta, **SUBMITTER}, "app", app, FLContext())
    if error:
        raise Refused(error)
    return workspace


def build(workspace, name):
    """What the job's process does first: FLARE's own configurator builds everything. Gives it and the classes asked."""
    _, file, configurator = BUILDERS[name]
    root = workspace.get_app_dir("job")
    args = Namespace(
        job_id="job", workspace=workspace.get_root_dir(), client_name=name, sp_scheme="grpc", sp_target="localhost:1"
    )
    context = FLContext()
    for key, value in ((FLContextKey.WORKSPACE_OBJECT, workspace), (FLContextKey.APP_ROOT, root)):
        context.set_prop(key, value, private=True)
    context.set_prop(FLContextKey.CURRENT_JOB_ID, "job", private=False)
    asked = []

    def authorize(component, *others, **more):
        asked.append(next(component[key] for key in ("path", "class_path", "name") if key in component))
        return authorize_build_component(component, *others, **more)

    made = configurator(workspace_obj=workspace, config_file_name=f"{root}/config/{file}", args=args, app_root=root)
    made.set_component_build_authorizer(authorize, fl_ctx=context, event_handlers=[])
    made.configure()
    return made.runner_config, asked


@pytest.fixture
def take(kits, tmp_path):
    """Takes a job folder through all steps at the server and at a site; FLARE's global services are put back."""
    places = {name: Path(shutil.copytree(kit, tmp_path / name)) for name, kit in kits.items()}
    before = AuthorizationService.the_authorizer, AppAuthzService.app_validator, PrivacyService.manager

    def steps(folder):
        meta = accept(folder)
        spaces = {name: deploy(place, name, folder, meta) for name, place in places.items()}
        return {name: build(space, name) for name, space in spaces.items()}

    yield steps
    AuthorizationService.the_authorizer, AppAuthzService.app_validator, PrivacyService.manager = before
    ConfigService.reset()


def declared(folder, file):
    """The class paths that a configuration file names, nested ones included."""
    content = json.loads((folder / "app" / "config" / file).read_text("utf-8"))
    return sorted(component["path"] for component in components(content))


@pytest.mark.parametrize("folder", JOBS, ids=lambda folder: folder.name)
def test_a_job_is_accepted_deployed_and_built_at_server_and_site(take, folder):
    built = take(folder)
    for name, (config, asked) in built.items():
        paths = declared(folder, BUILDERS[name][1])
        assert sorted(asked) == paths, "every component has been built, and nothing else"
        assert set(paths) <= set(allowed_classes()), "exactly, not by prefix"
        chains = [*config.task_data_filters.values(), *config.task_result_filters.values()]
        classes = {type(part) for part in (*config.components.values(), *(f for chain in chains for f in chain))}
        if name == SITE:
            classes |= {type(executor) for executor in config.task_router.task_table.values()}
            assert all(isinstance(executor, Executor) for executor in config.task_router.task_table.values())
        else:
            assert [type(workflow.controller) in classes for workflow in config.workflows] == [True]
        for path in paths:
            module, _, kind = path.rpartition(".")
            found = getattr(importlib.import_module(module), kind)
            nested = path not in {f"{c.__module__}.{c.__qualname__}" for c in classes}
            assert isinstance(found, type)
            assert nested == (path in parts_of_workflow(folder)), path


def parts_of_workflow(folder):
    """Class paths inside the arguments of the workflow, which FLARE builds and hands over."""
    workflow = json.loads((folder / "app" / "config" / SERVER_FILE).read_text("utf-8"))["workflows"][0]
    return {component["path"] for component in components(workflow["args"])}


# --------------------------------------------------- the same steps find what is wrong


def change(folder, file, edit):
    path = folder / "app" / "config" / file
    content = json.loads(path.read_text("utf-8"))
    edit(content)
    path.write_text(json.dumps(content), "utf-8")


def executor(content):
    return content["executors"][0]["executor"]


def with_path(path):
    return partial(change, file=CLIENT_FILE, edit=lambda content: executor(content).update(path=path))


def with_aggregator(path, **arguments):
    def edit(content):
        content["workflows"][0]["args"]["aggregator"] = {"path": path, "args": arguments}

    return partial(change, file=SERVER_FILE, edit=edit)


def with_code(folder):
    (folder / "app" / "custom").mkdir()
    (folder / "app" / "custom" / "x.py").write_text("class X: ...\n")


def without_site_config(folder):
    (folder / "app" / "config" / CLIENT_FILE).unlink()


def without_server(folder):
    meta = json.loads((folder / "meta.json").read_text("utf-8"))
    (folder / "meta.json").write_text(json.dumps({**meta, "deploy_map": {"app": ["hospital-a"]}}))


def with_scope(folder):
    meta = json.loads((folder / "meta.json").read_text("utf-8"))
    (folder / "meta.json").write_text(json.dumps({**meta, "scope": "of the job"}))


@pytest.mark.parametrize(
    ("spoil", "kind", "said"),
    [
        (with_path("fedseg.cli.main"), ComponentNotAuthorized, r"'fedseg\.cli\.main'.*is not in allow_list"),
        (with_path("nvflare.app_common.np.np_trainer.NPTrainer"), ComponentNotAuthorized, "is not in allow_list"),
        (with_path("fedseg.filters.guard.guard.Guard"), ComponentNotAuthorized, "is not in allow_list"),
        (with_path("fedseg.filters.norm_clip.NormClip"), ConfigError, "missing 1 required positional argument: 'norm'"),
        (with_path("fedseg.executors.training.SegmentationExecutorX"), ComponentNotAuthorized, "not in allow_list"),
        (with_path("fedseg.executors.training.SegmentationExecutor.execute"), ConfigError, "is not a package"),
        (with_aggregator("os.system", command="true"), ComponentNotAuthorized, r"'os\.system'.*not in allow_list"),
        (with_aggregator("fedseg.aggregators.fedavg.FedAvg", weight_by="wishes"), ConfigError, "weight_by is 'wishes'"),
        (
            with_aggregator("fedseg.aggregators.fedavg.FedAvg", alpha=1),
            ConfigError,
            "unexpected keyword argument 'alpha'",
        ),
        (with_code, Refused, "BYOC not permitted"),
        (without_site_config, Refused, "client config is missing"),
        (without_server, Refused, "Missing server site in deploy_map"),
        (with_scope, Refused, "privacy scope 'of the job' is not allowed"),
    ],
)
def test_a_spoilt_job_does_not_get_through(take, tmp_path, spoil, kind, said):
    folder = Path(shutil.copytree(ROOT / "jobs" / "brats_fedavg", tmp_path / "brats_fedavg"))
    spoil(folder)
    with pytest.raises(kind, match=said):
        take(folder)


def hidden(call):
    """Ways to hide a call in the sites' part of a job, by name: what is changed in the part, or in its executor."""
    target, own = call["path"], "fedseg.executors.training.SegmentationExecutor"
    arguments = {
        "an argument": {"hooks": call},
        "a list": {"hooks": [call]},
        "a list in a list": {"hooks": [[call]]},
        "an object": {"hooks": {"a": call}},
        "an object in a list": {"hooks": [{"a": {"b": call}}]},
        "an unknown argument": {"x": call},
        "an argument called args": {"args": call},
        "class_attributes": {"class_attributes": call},
        "a target": {"hooks": [{"_target_": target, **call["args"]}]},
        "a class path in a list": {"hooks": [{"class_path": target, "args": call["args"]}]},
    }
    executors = {
        "a path": call,
        "class_path": {"class_path": target, "args": call["args"]},
        "a name": {"name": target.rpartition(".")[2], "args": call["args"]},
        "_target_": {"_target_": target, **call["args"]},
        "class_attributes beside the path": {"path": own, "class_attributes": {"train": call}},
        "class_path beside the path": {"path": own, "class_path": target, "args": call["args"]},
        "an empty path": {"path": "", "class_path": target, "args": call["args"]},
        "no path": {"path": None, "class_path": target, "args": call["args"]},
        "a list as path": {"path": [target], "args": call["args"]},
        "a comment in the path": {"path": f"{own}#{target}", "args": call["args"]},
        "a comment behind the path": {"path": f"{target}#{own}", "args": call["args"]},
        "a blank": {"path": f" {target}", "args": call["args"]},
        "a full-width dot": {"path": target.replace(".", "\uff0e"), "args": call["args"]},
        "a full-width letter": {"path": target.replace("o", "\uff4f", 1), "args": call["args"]},
        "a longer name": {"path": f"{own}X", "args": call["args"]},
        "a name below": {"path": f"{own}.__class__", "args": call["args"]},
        "a module's import": {"path": f"fedseg.executors.job_identity.json.{target}", "args": call["args"]},
        "a variable": {"path": "{CALL}", "args": call["args"]},
        "a variable of the environment": {"path": "{$FEDSEG_TEST_CALL}", "args": call["args"]},
        "a definition": {"path": "{@CALL:a=1}", "args": call["args"]},
    }
    guard, launcher = allowed_components.GUARD, allowed_components.LAUNCHER
    parts = {
        "a component": {"components": [{"id": "x", **call}]},
        "a component in a list": {"components": [[{"id": "x", **call}]]},
        "a handler": {"handlers": [call]},
        "a guard": {"components": [{"id": "guard", "path": guard, "args": {}}]},
        "a launcher": {"components": [{"id": "process_launcher", "path": launcher, "args": {"restarts": 100}}]},
        "a deployer": {"components": [{"id": "app_deployer", "path": allowed_components.DEPLOYER, "args": {}}]},
        "a filter": {"task_result_filters": [{"tasks": ["train"], "filters": [call]}]},
        "a filter of the data": {"task_data_filters": [{"tasks": ["train"], "filters": [call]}]},
        "a list of classes": {"class_allow_list": ["os."], "components": [{"id": "x", **call}]},
        "an executor more": {"executors": [{"tasks": ["train"], "executor": call}]},
    }
    ways = {name: {"executors": [{"tasks": ["train"], "executor": part}]} for name, part in executors.items()}
    ways |= {
        name: {"executors": [{"tasks": ["train"], "executor": {"path": own, "args": part}}]}
        for name, part in arguments.items()
    }
    return {name: {"CALL": target, "@CALL": call, **part} for name, part in {**ways, **parts}.items()}


def with_call(tmp_path, way):
    """A job in which a call that makes the folder ``trace`` is hidden."""
    folder = Path(shutil.copytree(ROOT / "jobs" / "brats_fedavg", tmp_path / "brats_fedavg"))
    call = {"path": "os.mkdir", "args": {"path": str(tmp_path / "trace")}}
    change(folder, CLIENT_FILE, lambda content: content.update(hidden(call)[way]))
    return folder


@pytest.mark.parametrize("way", hidden({"path": "os.mkdir", "args": {}}))
def test_no_way_to_name_a_class_that_is_not_listed_gets_it_built(take, tmp_path, monkeypatch, way):
    """What FLARE refuses is refused, and what it takes for plain data stays plain data: the call is never made."""
    monkeypatch.setenv("FEDSEG_TEST_CALL", "os.mkdir")
    built = {}
    with contextlib.suppress(Exception):
        built = take(with_call(tmp_path, way))
    assert not (tmp_path / "trace").exists(), "the call was made"
    for config, asked in built.values():
        assert set(asked) <= set(allowed_classes())
        assert not any(isinstance(part, Guard | SupervisedLauncher) for part in config.components.values())


@pytest.mark.parametrize("way", ["a path", "class_path", "an argument", "a variable", "a component", "a filter"])
def test_it_is_the_list_that_keeps_the_call_from_being_made(take, tmp_path, way):
    for kit in (SERVER, SITE):
        path = tmp_path / kit / "local" / "resources.json"
        content = json.loads(path.read_text("utf-8"))
        path.write_text(json.dumps({**content, "class_allow_list": [*content["class_allow_list"], "os.mkdir"]}))
    with contextlib.suppress(Exception):
        take(with_call(tmp_path, way))
    assert (tmp_path / "trace").exists()


def permit_code(kit):
    path = kit / "local" / "authorization.json"
    content = json.loads(path.read_text("utf-8"))
    content["permissions"]["project_admin"]["byoc"] = "any"
    path.write_text(json.dumps(content))


def test_a_site_refuses_code_that_the_server_permits(take, tmp_path):
    """And it is the right that refuses it: with the site's own permission the job gets through."""
    folder = Path(shutil.copytree(ROOT / "jobs" / "brats_fedavg", tmp_path / "brats_fedavg"))
    with_code(folder)
    permit_code(tmp_path / SERVER)
    with pytest.raises(Refused, match="BYOC not permitted"):
        take(folder)
    permit_code(tmp_path / SITE)
    assert set(take(folder)) == set(BUILDERS)

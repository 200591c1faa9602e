"""A kit that was filled in as the page for site engineers says, and the federation's server."""

import shutil

import pytest

from checked_site import GIB, POLICY, TEMPLATES, Server, Usage, fill_in
from fedseg.deployment.kits.installed_kit import read_kit
from fedseg.deployment.kits.project_file import on_this_machine, read_project
from fedseg.deployment.kits.provisioning import provision
from fedseg.deployment.local.processes import free_port
from fedseg.deployment.operation.checks import folders as site_checks_folders
from fedseg.deployment.operation.checks import machine as site_checks_machine
from tiny import make_sites


@pytest.fixture(scope="session")
def federation(tmp_path_factory):
    project = on_this_machine(read_project(TEMPLATES / "three_hospitals"), ["alpha", "beta"], free_port())
    return provision(project, POLICY, tmp_path_factory.mktemp("kits") / "out", with_wheel=False).folder


@pytest.fixture(scope="session")
def other(tmp_path_factory):
    """Another federation with the same names, and encryption."""
    project = on_this_machine(read_project(TEMPLATES / "three_hospitals_he"), ["alpha"], free_port())
    return provision(project, POLICY, tmp_path_factory.mktemp("other") / "out", with_wheel=False).folder


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return make_sites(tmp_path_factory.mktemp("data"), {"alpha": (10, 3)})


@pytest.fixture
def kit(federation, data, tmp_path):
    """The kit of alpha, filled in as the page for site engineers says, in a folder of its own."""
    folder = tmp_path / "alpha"
    shutil.copytree(federation / "kits" / "alpha", folder)
    fill_in(folder, data)
    return folder


@pytest.fixture
def server(federation):
    """The federation's server, as long as a test runs."""
    kit = federation / "kits" / "localhost"
    running = Server(kit / "startup", read_kit(kit).port)
    yield running
    running.close()


@pytest.fixture(autouse=True)
def room(monkeypatch):
    """The same free disk on every machine, and no more rights for whom the tests run."""
    monkeypatch.setattr(site_checks_machine, "is_root", lambda: False)
    monkeypatch.setattr(site_checks_folders.shutil, "disk_usage", lambda path: Usage(200 * GIB, 0, 100 * GIB))

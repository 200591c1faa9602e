"""The list of components follows from the classes, and everything that is printed of it agrees with it."""

import importlib
import inspect
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from nvflare.apis.controller_spec import ControllerSpec as Controller
from nvflare.apis.executor import Executor
from nvflare.apis.filter import Filter

from fedseg.aggregators.base import Aggregator
from fedseg.aggregators.server_optimizers import ServerOptimizer
from fedseg.aggregators.shared_state import SharedState
from fedseg.jobs import allowed_components
from fedseg.jobs.allowed_components import (
    FLARE_CLASSES,
    GUARD,
    LAUNCHER,
    LOST_JOBS,
    STEADY_MEMORY,
    allowed_classes,
    component_classes,
    site_resources,
)
from fedseg.jobs.job import read_job
from fedseg.training.hooks import TrainingHook
from fedseg.workflows.run.selection_base import SiteSelection

ROOT = Path(__file__).parents[2]
WRITER = runpy.run_path(str(ROOT / "scripts" / "write_component_lists.py"))


def test_the_allow_list_is_what_the_jobs_use_and_the_method_table_offers():
    folders = sorted(path.parent for path in (ROOT / "jobs").glob("*/meta.json"))
    used = {component["path"] for folder in folders for component in read_job(folder).components()}
    assert used >= set(FLARE_CLASSES)
    assert used <= set(allowed_classes())
    table = (ROOT / "docs" / "reference" / "method-table.md").read_text("utf-8")
    offered = {path for path in component_classes() if f"`{path}`" in table}
    assert used | offered == set(allowed_classes())


@pytest.mark.parametrize("path", component_classes())
def test_every_listed_class_is_a_component_and_no_function(path):
    module, _, name = path.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    bases = (Aggregator, ServerOptimizer, SharedState, SiteSelection, TrainingHook, Executor, Controller, Filter)
    assert inspect.isclass(found)
    assert issubclass(found, bases)
    assert not inspect.isabstract(found)


@pytest.mark.parametrize("path", allowed_classes())
def test_no_listed_path_permits_another_name_of_its_module(path):
    """FLARE permits everything below a listed path, and everything that begins with one that ends in a dot."""
    assert not path.endswith(".")
    assert not any(other.startswith(f"{path}.") for other in allowed_classes())
    with pytest.raises(ImportError):
        importlib.import_module(path)


@pytest.mark.parametrize("name", [*allowed_components.PACKAGES, "fedseg.filters.guard", "fedseg.resilience"])
def test_the_packages_are_those_of_fedseg(name):
    assert Path(importlib.import_module(name).__file__).is_relative_to(ROOT / "custom" / "fedseg")


@pytest.mark.parametrize("path", [GUARD, LAUNCHER, LOST_JOBS, STEADY_MEMORY])
def test_what_a_site_declares_itself_is_no_component_of_a_job(path):
    assert path not in allowed_classes()


def test_a_class_is_listed_by_what_it_is(tmp_path, monkeypatch):
    """A package of strangers, imported names, abstract and private classes: only the public concrete one is found."""
    package = tmp_path / "toys"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "inner" / "__init__.py").write_text("")
    (package / "inner" / "deep.py").write_text(
        "from fedseg.training.hooks import TrainingHook\nclass Deep(TrainingHook): ..."
    )
    (package / "hook.py").write_text(
        "from abc import ABC, abstractmethod\n"
        "from fedseg.training.hooks import TrainingHook\n"
        "from fedseg.training.methods.fedprox import FedProx\n"
        "class Toy(TrainingHook): ...\n"
        "class _Private(TrainingHook): ...\n"
        "class Open(TrainingHook, ABC):\n"
        "    @abstractmethod\n"
        "    def fill(self): ...\n"
        "class Stranger: ...\n"
        "Other = Toy\n"
        "def function(): ...\n"
        "class Outer:\n"
        "    class Nested(TrainingHook): ...\n"
        "Nested = Outer.Nested\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(allowed_components, "PACKAGES", ("toys",))
    assert list(component_classes.__wrapped__()) == ["toys.hook.Toy"]


def test_the_list_is_the_same_in_every_process():
    ask = "from fedseg.jobs.allowed_components import allowed_classes; print(*allowed_classes())"
    answer = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert tuple(answer.stdout.split()) == allowed_classes() == tuple(sorted(set(allowed_classes())))


@pytest.mark.parametrize(("path", "content"), WRITER["written"]().items(), ids=lambda value: Path(value).name[:30])
def test_what_is_written_from_the_list_is_up_to_date(path, content):
    remedy = "python scripts/write_component_lists.py"
    assert (ROOT / path).read_text("utf-8") == content, remedy


def test_the_simulator_workspace_template_holds_the_allow_list():
    path = ROOT / "workspace_templates" / "simulator" / "local" / "resources.json"
    assert json.loads(path.read_text("utf-8")) == site_resources()


def test_the_page_of_components_names_each_once():
    page = (ROOT / "docs" / "reference" / "components.md").read_text("utf-8")
    for path in allowed_classes():
        assert page.count(f"`{path}`") == 1

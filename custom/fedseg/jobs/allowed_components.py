"""The component classes that a job may name: what a site allows a job to load, and nothing else."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache
from typing import Any

PACKAGES = (
    "fedseg.aggregators",
    "fedseg.executors",
    "fedseg.executors.peers",
    "fedseg.executors.split",
    "fedseg.filters",
    "fedseg.training.methods",
    "fedseg.workflows",
)
"""Packages whose modules define the components; their sub-packages count only where they are named here."""
FLARE_CLASSES = ("nvflare.app_opt.tracking.tb.tb_receiver.TBAnalyticsReceiver",)
SERVER_RECEIVERS = (
    "nvflare.app_opt.tracking.mlflow.mlflow_receiver.MLflowReceiver",
    "nvflare.app_opt.tracking.wandb.wandb_receiver.WandBReceiver",
)
"""What a job may name among the server's components, if the server's own list has it, which it has not by itself: these
pass the sites' curves on to an address that the job names."""

GUARD = "fedseg.filters.guard.guard.Guard"
"""Not among the classes that a job may name: the site declares it."""
LAUNCHER = "fedseg.resilience.supervised_launcher.SupervisedLauncher"
"""Starts the processes of jobs; the site declares it too."""
LOST_JOBS = "fedseg.resilience.lost_jobs.LostJobs"
"""Finds jobs that ended with the server's process; the server declares it."""
STEADY_MEMORY = "fedseg.resilience.steady_memory.SteadyMemory"
"""Gives freed memory of FLARE's processes back; server and sites declare it."""
JSON_ONLY = "fedseg.screening.json_only.JsonOnly"
"""Lets FLARE read no form of configuration but JSON; server and sites declare it."""
DEPLOYER = "fedseg.screening.deployer.ScreeningDeployer"
"""Looks at a job before a site unpacks it; the site declares it under the name by which FLARE asks for it."""
JOB_STORE = "fedseg.screening.job_store.ScreeningJobStore"
"""Looks at a job before the server stores or deploys it; in the place of FLARE's own store of jobs."""


@cache
def bases() -> dict[str, type]:
    """What each component is, by the class from which it derives."""
    from nvflare.apis.controller_spec import ControllerSpec
    from nvflare.apis.executor import Executor
    from nvflare.apis.filter import Filter

    from fedseg.aggregators.base import Aggregator
    from fedseg.aggregators.server_optimizers import ServerOptimizer
    from fedseg.aggregators.shared_state import SharedState
    from fedseg.training.hooks import TrainingHook
    from fedseg.workflows.run.selection_base import SiteSelection

    return {
        "aggregator": Aggregator,
        "server optimizer": ServerOptimizer,
        "shared arrays": SharedState,
        "selection of sites": SiteSelection,
        "training hook": TrainingHook,
        "filter": Filter,
        "executor": Executor,
        "workflow": ControllerSpec,
    }


@cache
def component_classes() -> dict[str, type]:
    """Every component of fedseg by its whole path, in alphabetical order.

    A component is a public, concrete class that derives from one of ``bases`` and is defined in a module of one of
    ``PACKAGES``. A class that jobs must not name is abstract, begins with an underscore, or lies elsewhere; there is
    no list besides.
    """
    kinds, found = tuple(bases().values()), {}
    for package in map(importlib.import_module, PACKAGES):
        for entry in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            if entry.ispkg:
                continue
            for name, value in vars(importlib.import_module(entry.name)).items():
                own = inspect.isclass(value) and value.__module__ == entry.name and value.__qualname__ == name
                if own and issubclass(value, kinds) and not name.startswith("_") and not inspect.isabstract(value):
                    found[f"{entry.name}.{name}"] = value
    return dict(sorted(found.items()))


def filter_meanings() -> dict[str, str]:
    """What each filter over updates is to somebody who reads a report, by its class."""
    from fedseg.filters.base import UpdateFilter

    return {found.__name__: found.meaning for found in component_classes().values() if issubclass(found, UpdateFilter)}


def allowed_classes() -> tuple[str, ...]:
    """The whole paths of all classes that a job may name, in alphabetical order."""
    return tuple(sorted((*component_classes(), *FLARE_CLASSES)))


def site_resources() -> dict[str, Any]:
    """Content of ``local/resources.json``: the exact allow-list (FLARE matches by prefix, so whole class paths).

    No log is streamed to the server: logs hold paths, and FLARE would let any job ask for them. For the same reason
    no class of FLARE is listed that sends a site's local events on, since log messages are among these.
    """
    return {
        "format_version": 2,
        "allow_log_streaming": False,
        "class_allow_list": list(allowed_classes()),
        "components": [],
    }


def site_launcher(part_id: str) -> dict[str, Any]:
    """The component of ``local/resources.json`` in place of FLARE's own starter of job processes.

    Args:
        part_id: under which FLARE declares its own.
    """
    return {"id": part_id, "path": LAUNCHER, "args": {"restarts": 3, "pause": 5.0}}


def server_components() -> list[dict[str, Any]]:
    """The components that a server's ``local/resources.json`` has besides FLARE's own."""
    return [{"id": "lost_jobs", "path": LOST_JOBS, "args": {}}, *_common_components()]


def site_components() -> list[dict[str, Any]]:
    """The components that a site's ``local/resources.json`` has besides FLARE's own and the launcher."""
    return [*_common_components(), {"id": "app_deployer", "path": DEPLOYER, "args": {}}]


def _common_components() -> list[dict[str, Any]]:
    parts = {"json_only": JSON_ONLY, "steady_memory": STEADY_MEMORY}
    return [{"id": name, "path": path, "args": {}} for name, path in parts.items()]


def site_privacy() -> dict[str, Any]:
    """Content of ``local/privacy.json``: the guard, and a scope, without which FLARE ignores the guard."""
    return {
        "scopes": [{"name": "fedseg"}],
        "default_scope": "fedseg",
        "components": [{"id": "guard", "path": GUARD, "args": {}}],
    }

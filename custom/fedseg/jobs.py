"""Job folders: read, checked, changed by what a user sets, and written as the copy that runs."""

from __future__ import annotations

import copy
import importlib
import inspect
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedseg.component_policy import FEDSEG_CLASSES, FLARE_CLASSES
from fedseg.errors import ConfigurationError, UsageError
from fedseg.training.hooks import TrainingHook
from fedseg.training.plan import PLAN_FILE, Plan, parse_plan, read_json

_PARTS = ("aggregator", "server_optimizer", "shared_arrays", "selection")
SERVER_FILE, CLIENT_FILE = "config_fed_server.json", "config_fed_client.json"


@dataclass
class Job:
    """A job folder in memory.

    Attributes:
        folder: where it was read from.
        name: from ``meta.json``.
        declaration: content of the plan file.
        server, client: contents of FLARE's two configuration files.
    """

    folder: Path
    name: str
    declaration: dict[str, Any]
    server: dict[str, Any]
    client: dict[str, Any]

    @property
    def plan(self) -> Plan:
        """The checked plan."""
        return parse_plan(self.declaration)

    @property
    def workflow(self) -> dict[str, Any]:
        """Arguments of the job's workflow."""
        arguments: dict[str, Any] = self.server["workflows"][0].setdefault("args", {})
        return arguments

    def components(self) -> Iterator[dict[str, Any]]:
        """Every ``{"path": ..., "args": ...}`` of server and client, nested ones included."""
        yield from _components([self.server, self.client])

    def set(self, key: str, value: Any) -> None:
        """Change one setting.

        Args:
            key: a path into the plan (``seed``, ``training.local_epochs``, ``task.patch_size``, ``network.channels``)
                or into the arguments of the workflow (``workflow.min_sites``), of one of its parts
                (``aggregator.weight_by``, ``selection.k``...) or of a training hook (``hook.fedprox.mu``).
            value: the new value; checked by ``check``.

        Raises:
            UsageError: there is no such place.
        """
        first, *rest = key.split(".")
        if first in ("workflow", "hook", *_PARTS):
            component = self._component(key, first, rest)
            component.setdefault("args", {})[rest[-1]] = value
            return
        if not rest:
            self.declaration[first] = value
            return
        part = self.declaration.get(first, {})
        part = {"name": part} if isinstance(part, str) else part
        if first not in ("task", "network", "training") or len(rest) != 1 or not isinstance(part, dict):
            raise UsageError(
                f"--set {key}: no such setting. Write seed, task.FIELD, network.ARGUMENT, training.SETTING, "
                f"workflow.ARGUMENT, {', '.join(f'{part}.ARGUMENT' for part in _PARTS)} or hook.ID.ARGUMENT."
            )
        part[rest[0]] = value
        self.declaration[first] = part

    def _component(self, key: str, first: str, rest: list[str]) -> dict[str, Any]:
        """The component whose argument ``key`` names."""
        if first == "hook":
            ids = {c["id"]: c for c in self.client.get("components", []) if isinstance(c, dict) and "id" in c}
            if len(rest) != 2 or rest[0] not in ids:
                raise UsageError(f"--set {key}: write hook.ID.ARGUMENT=VALUE; components of this job: {sorted(ids)}.")
            return ids[rest[0]]
        part = {"args": self.workflow} if first == "workflow" else self.workflow.get(first)
        if len(rest) != 1 or not isinstance(part, dict):
            why = "" if isinstance(part, dict) else f" This job has no {first}; set workflow.{first} as a whole."
            raise UsageError(f"--set {key}: write {first}.ARGUMENT=VALUE.{why}")
        return part

    def check(self) -> Plan:
        """Check the plan, every class path and the names of every argument.

        Raises:
            ConfigurationError: something does not fit.
        """
        plan = self.plan
        for component in self.components():
            _check_component(component)
        executors = [entry.get("executor") for entry in self.client.get("executors", []) if isinstance(entry, dict)]
        for component in (self.server["workflows"][0], *executors):
            if not isinstance(component, dict) or not isinstance(component.get("path"), str):
                raise ConfigurationError(f"{self.name}: component", component, "an object with path and args")
            _build(component)
        for hook in self.build_hooks():
            if not isinstance(hook, TrainingHook):
                raise ConfigurationError("executor.hooks", type(hook).__name__, "a training hook")
            hook.check_plan(plan)
        self.build_workflow().model.aggregator.check_plan(plan)
        return plan

    def build_workflow(self) -> Any:
        """The workflow with all its parts, as FLARE's server builds it."""
        return _build(self.server["workflows"][0])

    def hooks(self) -> list[dict[str, Any]]:
        """The components that the job's executor names as training hooks.

        Raises:
            ConfigurationError: an id is not that of a component.
        """
        components = {c["id"]: c for c in self.client.get("components", []) if isinstance(c, dict) and "id" in c}
        names = [n for e in self.client.get("executors", []) for n in e["executor"].get("args", {}).get("hooks", [])]
        for name in names:
            if name not in components:
                raise ConfigurationError(
                    "executor.hooks", name, f"the id of a component of the job: {sorted(components)}"
                )
        return [components[name] for name in names]

    def build_hooks(self) -> list[Any]:
        """A fresh set of the job's training hooks."""
        return [_build(component) for component in self.hooks()]

    def write(self, folder: Path) -> Path:
        """Copy the job with its changes to ``folder`` (which must not exist)."""
        shutil.copytree(self.folder, folder)
        config = folder / "app" / "config"
        for name, content in ((PLAN_FILE, self.declaration), (SERVER_FILE, self.server), (CLIENT_FILE, self.client)):
            (config / name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
        return folder


def read_job(folder: Path) -> Job:
    """Read a job folder of fedseg.

    Raises:
        UsageError: it is none.
        ConfigurationError: one of its files is not JSON.
    """
    config = folder / "app" / "config"
    files = (folder / "meta.json", config / PLAN_FILE, config / SERVER_FILE, config / CLIENT_FILE)
    for path in files:
        if not path.is_file():
            raise UsageError(
                f"{folder} is not a job of fedseg: it lacks {path.relative_to(folder)}. Jobs lie in jobs/."
            )
    meta, declaration, server, client = (read_json(path) for path in files)
    for path, content in zip(files, (meta, declaration, server, client), strict=True):
        if not isinstance(content, dict):
            raise ConfigurationError(path.name, type(content).__name__, "a JSON object")
    workflows = server.get("workflows")
    if not isinstance(workflows, list) or len(workflows) != 1 or not isinstance(workflows[0], dict):
        raise ConfigurationError(f"{SERVER_FILE}: workflows", workflows, "a list with one workflow")
    return Job(folder, str(meta.get("name", folder.name)), declaration, copy.deepcopy(server), client)


def parse_setting(text: str) -> tuple[str, Any]:
    """``key=value`` as typed on the command line; the value is JSON where it parses as such, else text."""
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise UsageError(f"--set {text}: write key=value, e.g. --set training.local_epochs=2.")
    try:
        return key.strip(), json.loads(value)
    except json.JSONDecodeError:
        return key.strip(), value


def apply_settings(
    job: Job, rounds: int | None, threads: int | None, seed: int | None, settings: Sequence[str]
) -> None:
    """Apply the options of the command line; later ones win."""
    for key, value in (("workflow.num_rounds", rounds), ("training.threads", threads), ("seed", seed)):
        if value is not None:
            job.set(key, value)
    for text in settings:
        job.set(*parse_setting(text))


def _build(component: dict[str, Any]) -> Any:
    """Build one of our own components as FLARE will, so that a wrong value is refused here and not in the job."""
    arguments = {
        key: _build(value) if isinstance(value, dict) and "path" in value else value
        for key, value in component.get("args", {}).items()
    }
    module, _, name = component["path"].rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(name, arguments, f"arguments with which it can be built ({error})") from None


def _components(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if isinstance(value.get("path"), str):
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _components(item)


def _check_component(component: dict[str, Any]) -> None:
    path = component["path"]
    if path not in FEDSEG_CLASSES + FLARE_CLASSES:
        # Asked before anything is imported: importing a module that a job names would already run its code.
        remedy = "docs/reference/method-table.md lists them; sites load no other."
        raise ConfigurationError("path", path, "a component class that fedseg.component_policy lists", remedy)
    module, _, name = path.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    arguments = component.get("args", {})
    if not isinstance(arguments, dict):
        raise ConfigurationError(f"{name}: args", arguments, "an object of arguments")
    known = inspect.signature(found.__init__).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
    for key, value in arguments.items():
        if key not in known and not takes_any:
            allowed = [k for k in known if k != "self"]
            raise ConfigurationError(f"{name}.{key}", value, f"absent: {name} takes {allowed}")

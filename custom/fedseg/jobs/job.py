"""Job folders: read, checked, changed by what a user sets, and written as the copy that runs."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedseg.contract.allowed_job_files import (
    INITIAL_FILE,
    META_FILE,
    MODEL_ENDING,
    MODELS_FOLDER,
    SERVER_FILE,
    check_job_folder,
    check_values,
    model_files,
)
from fedseg.contract.combinations import check_parts
from fedseg.contract.plan import Plan, parse_plan
from fedseg.contract.protocol import CLIENT_FILE, PLAN_FILE, SHARE
from fedseg.contract.report import named_classes
from fedseg.contract.task_argument import task_declaration
from fedseg.errors import ConfigurationError, UsageError
from fedseg.files.documents import parse_json, read_json, write_json
from fedseg.files.names import JOB
from fedseg.filters.base import hooks_of
from fedseg.filters.chain import UPDATE_TASKS, is_guaranteed
from fedseg.jobs.allowed_components import filter_meanings
from fedseg.jobs.components import build_component, check_component, check_receiver, components, receivers
from fedseg.jobs.filter_chain import (
    DATA,
    RESULTS,
    check_chain,
    check_tasks,
    declared_filters,
    filter_paths,
    filters_of,
    restores,
)
from fedseg.jobs.scored_models import check_models
from fedseg.jobs.shape import check_shape
from fedseg.models.model_file import initial_weights
from fedseg.training.hooks import check_hooks
from fedseg.workflows.federated_statistics import FederatedStatistics
from fedseg.workflows.run.flare_workflow import FlareWorkflow
from fedseg.workflows.run.round_protocol import JobParts
from fedseg.workflows.run.workflow import Workflow

RUN_PROPERTY = "fedseg_run_id"
"""Among the ``custom_props`` that FLARE tells of a job: the run that it continues, where its workflow names one."""
_PARTS = ("aggregator", "server_optimizer", "shared_arrays", "selection")


@dataclass
class Job:
    """A job folder in memory.

    Attributes:
        folder: where it was read from.
        name: from ``meta.json``.
        declaration: content of the plan file.
        server, client: contents of FLARE's two configuration files.
        initial: a model file to start from; None for the plan's seeded network.
        models: model files that are scored across sites, by name.
    """

    folder: Path
    name: str
    declaration: dict[str, Any]
    server: dict[str, Any]
    client: dict[str, Any]
    initial: Path | None = None
    models: dict[str, Path] = field(default_factory=dict)

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
        yield from components([self.server, self.client])

    def set(self, key: str, value: Any) -> None:
        """Change one setting.

        Args:
            key: a path into the plan (``seed``, ``training.local_epochs``, ``task.patch_size``, ``network.channels``)
                or into the arguments of the workflow (``workflow.min_sites``), of one of its parts
                (``aggregator.weight_by``, ``selection.k``...), of a training hook (``hook.fedprox.mu``), of a filter
                at the sites (``filter.ShareFraction.fraction``) or of their executors (``executor.noise``).
            value: the new value, of which the job keeps a copy; checked by ``check``.

        Raises:
            UsageError: there is no such place.
        """
        first, *rest = key.split(".")
        value = copy.deepcopy(value)
        if first in ("workflow", "hook", "filter", "executor", *_PARTS):
            for component in self._components(key, first, rest):
                component.setdefault("args", {})[rest[-1]] = value
            return
        if not rest:
            self.declaration[first] = value
            return
        part = self.declaration.get(first, {})
        part = {"name": part} if isinstance(part, str) else part
        if first not in ("task", "network", "training", "split") or len(rest) != 1 or not isinstance(part, dict):
            raise UsageError(
                f"--set {key}: no such setting. Write seed, task.FIELD, network.ARGUMENT, training.SETTING, "
                "split.SETTING, "
                f"workflow.ARGUMENT, {', '.join(f'{part}.ARGUMENT' for part in _PARTS)}, hook.ID.ARGUMENT, "
                "filter.CLASS.ARGUMENT or executor.ARGUMENT."
            )
        part[rest[0]] = value
        self.declaration[first] = part

    def _components(self, key: str, first: str, rest: list[str]) -> list[dict[str, Any]]:
        """The components whose argument ``key`` names."""
        if first in ("hook", "filter"):
            found = self._named(first)
            if len(rest) != 2 or rest[0] not in found:
                form = "hook.ID" if first == "hook" else "filter.CLASS"
                raise UsageError(f"--set {key}: write {form}.ARGUMENT=VALUE; this job has: {sorted(found)}.")
            return found[rest[0]]
        if first == "executor" and len(rest) == 1:
            return [entry["executor"] for entry in self.client.get("executors", [])]
        part = {"args": self.workflow} if first == "workflow" else self.workflow.get(first)
        if len(rest) != 1 or not isinstance(part, dict):
            why = "" if isinstance(part, dict) else f" This job has no {first}; set workflow.{first} as a whole."
            raise UsageError(f"--set {key}: write {first}.ARGUMENT=VALUE.{why}")
        return [part]

    def _named(self, kind: str) -> dict[str, list[dict[str, Any]]]:
        """Components of the sites by the id of a ``hook``, or by the class of a ``filter``."""
        if kind == "hook":
            return {c["id"]: [c] for c in self.client.get("components", []) if isinstance(c, dict) and "id" in c}
        found: dict[str, list[dict[str, Any]]] = {}
        for component in declared_filters(self.client):
            found.setdefault(component["path"].rpartition(".")[2], []).append(component)
        return found

    def _files(self) -> tuple[tuple[str, dict[str, Any]], ...]:
        """What is written into the job's configuration folder: names and contents."""
        return (PLAN_FILE, self.declaration), (SERVER_FILE, self.server), (CLIENT_FILE, self.client)

    def check(self) -> Plan:
        """Check the plan, every class path and the names of every argument.

        Raises:
            ConfigurationError: something does not fit.
        """
        JOB.check(f"{META_FILE}: name", self.name)
        for name, content in self._files():
            check_values(name, content)
        check_shape(SERVER_FILE, self.server, CLIENT_FILE, self.client)
        plan = self.plan
        trackers = receivers(self.server)
        for component in trackers:
            check_receiver(component)
        for component in self.components():
            if not any(component is tracker for tracker in trackers):
                check_component(component)
        workflow = self.build_workflow()
        for entry in self.client.get("executors", []):
            build_component(entry["executor"])
        if isinstance(workflow, Workflow):
            self._check_training(workflow, plan)
        elif isinstance(workflow, FederatedStatistics):
            workflow.check_job(self._parts(plan))
        return plan

    def _check_training(self, workflow: Workflow, plan: Plan) -> None:
        """The checks of a job that trains."""
        check_hooks(self.build_hooks(), plan)
        check_parts([*workflow.parts, *named_classes(self.client)])
        workflow.model.check_plan(plan)
        workflow.model.check_hooks(self.build_hooks())
        check_tasks(self.client)
        for task in (*UPDATE_TASKS, SHARE):
            further = task == SHARE or workflow.model.takes_shared_arrays
            check_chain(plan, self.build_filters(task), further, restores(self.server, task))
        check_hooks([*self.build_hooks(), *hooks_of(self.build_filters())], plan)
        parts = self._parts(plan)
        workflow.protocol.check_job(parts)
        if workflow.model.before_rounds:
            self._check_before_rounds(parts.tasks)
        if self.initial is not None:
            initial_weights(plan, self.initial)
        check_models(plan, self.models, workflow.settings)

    def _check_before_rounds(self, tasks: Sequence[str]) -> None:
        """Refuse a job in which sites could not send arrays before the first round, or would send them unprotected."""
        if SHARE not in tasks:
            allowed = f"a list with {SHARE!r}, since workflow.shared_arrays needs arrays before the first round"
            raise ConfigurationError("executors: tasks", tasks, allowed)
        guarded = [task for task in (*UPDATE_TASKS, SHARE) if is_guaranteed(self.build_filters(task))]
        if guarded and SHARE not in guarded:
            why = (
                "What sites send before the first round are statistics of their data, which a guarantee must cover too."
            )
            raise ConfigurationError(f"{RESULTS}: tasks", guarded, f"a list with {SHARE!r}", why)

    def _parts(self, plan: Plan) -> JobParts:
        """The job as far as its kind of round depends on it."""
        entries = self.client.get("executors", [])
        return JobParts(
            plan,
            workflow=self.server["workflows"][0]["path"],
            executors=[entry["executor"]["path"] for entry in entries],
            tasks=[task for entry in entries for task in entry.get("tasks", [])],
            filters=self.build_filters,
            result_filters=filter_paths(self.client, RESULTS),
            data_filters=filter_paths(self.client, DATA),
            initial=self.initial is not None,
        )

    def build_workflow(self) -> FlareWorkflow:
        """The workflow with all its parts, as FLARE's server builds it."""
        declared = self.server["workflows"][0]
        workflow = build_component(declared)
        if not isinstance(workflow, FlareWorkflow):
            raise ConfigurationError(f"{SERVER_FILE}: workflows[0].path", declared["path"], "the class of a workflow")
        return workflow

    def meanings(self) -> dict[str, str]:
        """What each filter is to somebody who reads a report, by its class."""
        return filter_meanings()

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
        return [build_component(component) for component in self.hooks()]

    def build_filters(self, task: str = "train") -> list[Any]:
        """A fresh set of the filters through which a site's results of ``task`` go, in order."""
        return [build_component(component) for component in filters_of(self.client, task)]

    def write(self, folder: Path) -> Path:
        """Copy the job with its changes to ``folder`` (which must not exist)."""
        shutil.copytree(self.folder, folder)
        config = folder / "app" / "config"
        if self.initial is not None and self.initial != self.folder / "app" / "config" / INITIAL_FILE:
            shutil.copyfile(self.initial, config / INITIAL_FILE)
        for name, path in self.models.items():
            target = config / MODELS_FOLDER / f"{name}{MODEL_ENDING}"
            if not target.exists():
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, target)
        for name, content in self._files():
            write_json(config / name, content)
        # FLARE reads no other encoding.
        meta = read_json(folder / META_FILE, "a file of a job")
        if run_id := self.server["workflows"][0].get("args", {}).get("run_id"):
            meta["custom_props"] = {**meta.get("custom_props", {}), RUN_PROPERTY: run_id}
        write_json(folder / META_FILE, meta)
        return folder


def read_job(folder: Path) -> Job:
    """Read a job folder of fedseg.

    Raises:
        UsageError: it is none.
        ConfigurationError: one of its files is not JSON with plain values, or is none of a job's.
    """
    config = folder / "app" / "config"
    files = (folder / META_FILE, config / PLAN_FILE, config / SERVER_FILE, config / CLIENT_FILE)
    for path in files:
        if not path.is_file():
            raise UsageError(
                f"{folder} is not a job of fedseg: it lacks {path.relative_to(folder)}. `fedseg files --out DIR` "
                "writes the jobs of this version to DIR/jobs."
            )
    check_job_folder(folder)
    meta, declaration, server, client = (read_json(path, "a file of a job") for path in files)
    for path, content in zip(files, (meta, declaration, server, client), strict=True):
        if not isinstance(content, dict):
            raise ConfigurationError(path.name, type(content).__name__, "a JSON object")
    check_shape(SERVER_FILE, server, CLIENT_FILE, client)
    initial = config / INITIAL_FILE if (config / INITIAL_FILE).is_file() else None
    name = str(meta.get("name", folder.name))
    return Job(folder, name, declaration, copy.deepcopy(server), client, initial, model_files(config))


def parse_setting(text: str) -> tuple[str, Any]:
    """``key=value`` as typed on the command line; the value is JSON where it parses as such, else text."""
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise UsageError(f"--set {text}: write key=value, e.g. --set training.local_epochs=2.")
    try:
        return key.strip(), parse_json(value)
    except ValueError:
        return key.strip(), value


def apply_settings(
    job: Job, rounds: int | None, threads: int | None, seed: int | None, settings: Sequence[str]
) -> None:
    """Apply the options of the command line; later ones win."""
    for key, value in (("workflow.num_rounds", rounds), ("training.threads", threads), ("seed", seed)):
        if value is not None:
            job.set(key, value)
    for text in settings:
        key, value = parse_setting(text)
        job.set(key, task_declaration(value) if key == "task" and isinstance(value, str) else value)

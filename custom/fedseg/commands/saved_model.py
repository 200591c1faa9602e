"""What ``evaluate`` and ``predict`` have in common: a model, a task, a datalist and a folder for the result."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from fedseg.commands.arguments import Command
from fedseg.console import err, tell
from fedseg.contract.task_argument import TASK_HELP, task_files, task_from_argument
from fedseg.data.datalist import SPLITS, Case, Datalist, find_datalist
from fedseg.data.intake.image_folders import read_cases
from fedseg.errors import DataError, UsageError
from fedseg.models.note import ModelNote, check_against_note, note_path
from fedseg.version import __version__

if TYPE_CHECKING:
    from fedseg.models.model_file import ModelFile
    from fedseg.tasks.task import Task


def add_model_arguments(command: Command, default_split: str) -> None:
    """Add a model, a task, a datalist, a folder for the result, and how to compute."""
    add_model_and_data(command, default_split)
    command.path("--out", "folder for the result", required=True)
    command.path("--components", "file of `fedseg choose-components` (default: the task's own rules)", "FILE")
    add_computing(command)
    experts = "further models of the same network, to be mixed with it by gates that the images adapt"
    command.path("--route", experts, "FILE", nargs="+", default=[])
    command.value("--route-epochs", "passes over the images that adapt the gates (default 10)", int, metavar="N")


def add_model_and_data(command: Command, default_split: str) -> None:
    """Add a model, a task, and the cases of a datalist."""
    command.path("model", "model file (.safetensors) of a run")
    command.value("--task", f"{TASK_HELP}; or the name of the model's own task", required=True)
    command.path("--data", "a datalist or its folder; a folder of images; or one image", required=True)
    command.value("--split", "which cases", choices=("final", "all", *SPLITS), default=default_split)


def add_computing(command: Command) -> None:
    """Add how to compute."""
    windows = "overlap of sliding windows (default: as in the run that made the model)"
    command.value("--overlap", windows, float)
    command.value("--threads", "torch threads (default: torch's own choice)", int)
    command.value("--device", "torch device, e.g. cpu or cuda:0", default="auto")
    command.flag("--adapt-statistics", "batch normalisation: first take the statistics of these cases' images")
    command.changed_model("use")


def load(options: argparse.Namespace) -> tuple[ModelFile, Datalist, tuple[Case, ...]]:
    """Read and check everything before any work is done.

    Raises:
        UsageError: the model is of another task, or an argument is out of range.
        DataError: model or datalist cannot be used, or the model is not the one that its provenance file is about.
    """
    if options.overlap is not None and not 0 <= options.overlap < 1:
        raise UsageError(f"--overlap {options.overlap}: give a fraction from 0 to below 1.")
    if options.threads is not None and options.threads < 1:
        raise UsageError(f"--threads {options.threads}: give a whole number of at least 1.")
    stated = _stated_task(options)
    import torch

    from fedseg.evaluation.scoring import check_model_task, choose_cases
    from fedseg.files.digest import model_digest
    from fedseg.models.model_file import read_model

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        torch.zeros(1, device="cpu" if options.device == "auto" else options.device)
    except (RuntimeError, AssertionError):
        raise UsageError(
            f"--device {options.device}: torch cannot use that here; name cpu, or a GPU it sees."
        ) from None
    model = read_model(options.model)
    origin(options.model, model_digest(model.weights), options.accept_changed_model)
    if stated is None and options.task != model.task.name:
        raise UsageError(
            f"--task {options.task}: the model's task is called {model.task.name}. Write that, or name {TASK_HELP}."
        )
    check_model_task(model, stated or model.task)
    if own := model.notes.get("own_arrays"):
        tell(
            f"{options.model.name} is the global model of a job in which each site keeps {len(own)} of its arrays for "
            "itself. In this file they are as the run began, so it is no site's model. A site's own one lies in its "
            "state folder (own.safetensors), after a simulation in models/SITE-own.safetensors.",
            warning=True,
        )
    if options.adapt_statistics and model.network.arguments.norm != "batch":
        raise UsageError(
            f"--adapt-statistics: the network {model.network.name} of this model has {model.network.arguments.norm} "
            "normalisation, which keeps no statistics of other images; only batch normalisation has some to adapt."
        )
    if options.overlap is None:
        options.overlap = model.overlap
    if getattr(options, "components", None) is not None:
        from fedseg.evaluation.component_choice import with_components

        digest, adapted = model_digest(model.weights), options.adapt_statistics
        model, options.chosen_components = with_components(model, digest, options.components, adapted)
    datalist = read_cases(options.data, model.task, options.out)
    if getattr(options, "profile", None) is not None:
        datalist = _as_profile_says(datalist, options.profile, options.data, model.task.name)
    return model, datalist, choose_cases(datalist, options.split)


def _as_profile_says(datalist: Datalist, path: Path, data: Path, task: str) -> Datalist:
    """The datalist with the regions drawn that a site's profile names for it: for the data set whose datalist it is, or
    else for the one that is called like the task.

    Raises:
        UsageError: there is no such profile.
        ConfigurationError: it is wrong.
    """
    from fedseg.site.profile import PROFILE_FILE, read_profile

    folder = path if path.is_dir() else path.parent
    if not (folder / PROFILE_FILE).is_file() or (path.is_file() and path.name != PROFILE_FILE):
        raise UsageError(f"--profile {path}: give the {PROFILE_FILE} of a site, or the folder that holds it.")
    profile = read_profile("", folder, folder)
    listed = find_datalist(data).resolve()
    names = [name for name, place in profile.datasets.items() if find_datalist(place).resolve() == listed]
    drawn = next((found for name in names if (found := profile.drawn.get(name))), None)
    return datalist.with_drawn(drawn or profile.drawn_regions(task))


def _stated_task(options: argparse.Namespace) -> Task | None:
    """The task that the user names; None where that may be the name of the task which the model file holds."""
    try:
        return task_from_argument(options.task)
    except UsageError:
        if options.model.is_file():
            return None
        raise


def describe(options: argparse.Namespace, model: ModelFile, datalist: Datalist) -> dict[str, Any]:
    """What a result says of the model and the cases that it is of; it stays where the cases are."""
    from fedseg.files.digest import model_digest

    listed = find_datalist(options.data)
    digest = hashlib.sha256(listed.read_bytes()).hexdigest() if listed.is_file() else None
    told = {key: model.notes[key] for key in ("method", "seed", "round", "plan") if key in model.notes}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "fedseg": __version__,
        "model": {"file": str(options.model), "digest": model_digest(model.weights), **told},
        "data": {"file": str(listed), "sha256": digest, "split": options.split, "phantoms": datalist.phantoms},
        "adapted_statistics": options.adapt_statistics,
        "components": getattr(options, "chosen_components", {"rules": dict(model.task.components), "file": None}),
    }


def read_files(options: argparse.Namespace, datalist: Datalist) -> list[Path]:
    """Every file that the command reads, or that the datalist names."""
    given = (getattr(options, name, None) for name in ("components", "profile"))
    further = [path for path in given if path is not None and path.is_file()]
    models = [options.model, *getattr(options, "route", [])]
    return [*models, *map(note_path, models), *further, *task_files(options.task), *datalist.files]


def report_failed(failed: Mapping[str, str]) -> int:
    """Say which cases are left out, and why; the exit code."""
    for name, reason in failed.items():
        err().print(f"[red]left out:[/red] {escape(f'{name}: {reason}')}")
    return int(bool(failed))


def origin(path: Path, digest: str, accept_changed: bool) -> ModelNote | None:
    """Compare a model with its provenance file; a model without one is taken, and the user told.

    Args:
        path: the model file, encrypted or not.
        digest: of its content.
        accept_changed: take another model all the same; it has no provenance then.

    Returns:
        The content of the provenance file, where it is about this model.

    Raises:
        DataError: the model is another one, and that is not accepted.
    """
    try:
        note = check_against_note(path, digest)
    except DataError as error:
        if not accept_changed:
            raise
        err().print(escape(f"Used all the same: {error}"))
        return None
    if note is None:
        err().print(escape(f"{path.name} has no provenance file beside it, so nothing says which run made it."))
    return note

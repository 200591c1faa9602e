"""``fedseg export``: give a run or an experiment to a tool that keeps experiments.

Give the settings and numbers of a run or of an experiment, and what may be shown of it, to another tool.

example: fedseg export mlflow runs/first
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.markup import escape

from fedseg.commands.arguments import Command
from fedseg.console import out, tell
from fedseg.errors import UsageError


def add_parser(subparsers: Any) -> None:
    """Declare the command and its forms."""
    mlflow = Command(Command(subparsers, None, __doc__).actions("mlflow"), run_mlflow)
    mlflow.path("folder", "folder of a run, or of an experiment: each of its units is a run of MLflow", "RUN")
    mlflow.value("--tracking-uri", "where MLflow keeps runs (default: the file mlflow.db here)", metavar="URI")
    mlflow.value(
        "--experiment", "of MLflow; made if it is missing (default: the name of job or experiment)", metavar="NAME"
    )
    mlflow.flag("--pictures", "also what shows images of cases")
    mlflow.flag("--models", "also the model files")


def run_mlflow(options: argparse.Namespace) -> int:
    """``fedseg export mlflow``: give a run or an experiment to MLflow.

    Give a run to MLflow: parameters, numbers round by round, and the report; or an experiment, each unit as a run. It
    needs MLflow beside fedseg.

    example: fedseg export mlflow runs/first --tracking-uri https://mlflow.example.org --experiment hippocampus
    """
    from fedseg.evaluation.experiment_folder import is_experiment
    from fedseg.evaluation.mlflow_store import local_store

    if options.tracking_uri == "":
        raise UsageError("--tracking-uri is empty; leave it out for the file mlflow.db here, or name a URI.")
    uri = options.tracking_uri or local_store(Path.cwd())
    return (_export_units if is_experiment(options.folder) else _export_run)(options, uri)


def _export_run(options: argparse.Namespace, uri: str) -> int:
    from fedseg.evaluation.mlflow_store import export_run
    from fedseg.evaluation.tracking import tracked_run

    tracked = tracked_run(options.folder, options.pictures, options.models)
    exported = export_run(tracked, uri, options.experiment or tracked.name)
    if not options.pictures and not any(path.name == "report.html" for path, _ in tracked.files):
        tell("The report shows images of cases and stayed here; --pictures sends it, too.", warning=True)
    out().print(f"MLflow run {escape(exported)} in {escape(uri)}")
    return 0


def _export_units(options: argparse.Namespace, uri: str) -> int:
    """Every finished unit that is not there yet, so that an experiment that went on can be exported again."""
    from fedseg.evaluation.mlflow_store import ExportedBeforeError, export_run
    from fedseg.experiments.tracking import tracked_units

    if options.pictures:
        raise UsageError("--pictures: the units of an experiment have none. Leave it out.")
    units = tracked_units(options.folder, options.models)
    study, before = options.experiment or units[0].parameters["experiment"], 0
    for tracked in units:
        try:
            export_run(tracked, uri, study)
        except ExportedBeforeError:
            before += 1
    if before == len(units):
        raise UsageError(f"All {before} units are in the experiment {study} already. Name another --experiment.")
    kept = f", {before} were there before" if before else ""
    out().print(f"MLflow experiment {escape(study)} in {escape(uri)}: {len(units) - before} runs{kept}")
    return 0

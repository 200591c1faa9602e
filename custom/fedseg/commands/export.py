"""``fedseg export``: give a run to a tool that keeps experiments.

Give the settings and numbers of a run, and what may be shown of it, to another tool.

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
    mlflow.path("folder", "folder of a run", "RUN")
    mlflow.value("--tracking-uri", "where MLflow keeps runs (default: the file mlflow.db here)", metavar="URI")
    mlflow.value("--experiment", "of MLflow; made if it is missing (default: the job's name)", metavar="NAME")
    mlflow.flag("--pictures", "also what shows images of cases")
    mlflow.flag("--models", "also the model files")


def run_mlflow(options: argparse.Namespace) -> int:
    """``fedseg export mlflow``: give a run to MLflow.

    Give a run to MLflow: parameters, numbers round by round, and the report. It needs MLflow beside fedseg.

    example: fedseg export mlflow runs/first --tracking-uri https://mlflow.example.org --experiment hippocampus
    """
    from fedseg.evaluation.mlflow_store import export_run, local_store
    from fedseg.evaluation.tracking import tracked_run

    if options.tracking_uri == "":
        raise UsageError("--tracking-uri is empty; leave it out for the file mlflow.db here, or name a URI.")
    tracked = tracked_run(options.folder, options.pictures, options.models)
    uri = options.tracking_uri or local_store(Path.cwd())
    exported = export_run(tracked, uri, options.experiment or tracked.name)
    if not options.pictures and not any(path.name == "report.html" for path, _ in tracked.files):
        tell("The report shows images of cases and stayed here; --pictures sends it, too.", warning=True)
    out().print(f"MLflow run {escape(exported)} in {escape(uri)}")
    return 0

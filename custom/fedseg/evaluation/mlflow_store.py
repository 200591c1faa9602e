"""Runs in a store of MLflow, which is no dependency of this software: whoever exports to it has it."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fedseg.errors import FedsegError, UsageError
from fedseg.evaluation.tracking import Tracked

TAG = "fedseg.run_id"
# The most that MLflow takes at a time, and the longest value of a parameter.
_METRICS, _PARAMETERS, _LONGEST = 1000, 100, 6000
_SQLITE = "sqlite:///"


class ExportedBeforeError(UsageError):
    """The run is in the experiment of MLflow already."""


def local_store(folder: Path) -> str:
    """The URI of a store in a folder: a database of SQLite, with the files of runs in ``mlartifacts`` beside it."""
    return f"{_SQLITE}{folder.resolve() / 'mlflow.db'}"


def export_run(tracked: Tracked, uri: str, experiment: str) -> str:
    """Write a run, and return the id that MLflow gave it.

    Args:
        tracked: see ``tracked_run``, and ``experiments.tracking.tracked_units``.
        uri: of the store, as MLflow names it: ``sqlite:///...``, ``file:///...``, ``https://...``.
        experiment: of MLflow, made if it is missing.

    Raises:
        ExportedBeforeError: the run is there already.
        UsageError: MLflow is not installed.
        FedsegError: the store cannot be written into; the text is MLflow's.
    """
    try:
        from mlflow.entities import Metric, Param, RunTag
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
    except ImportError:
        raise UsageError(
            "export mlflow needs MLflow, which is not installed: pip install 'fedseg[mlflow]', or mlflow-skinny alone."
        ) from None
    if uri.startswith("file:"):
        # MLflow does not develop this kind any more, and asks whoever wants it to say so: the URI does.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    now = int(time.time() * 1000)
    try:
        client = MlflowClient(tracking_uri=uri)
        number = _experiment(client, uri, experiment)
        _refuse_twice(client, number, experiment, tracked)
        run = client.create_run(number, run_name=tracked.name, tags=_tags(tracked)).info.run_id
        for part in _blocks(tracked.parameters.items(), _PARAMETERS):
            client.log_batch(run, params=[Param(name, value[:_LONGEST]) for name, value in part])
        for some in _blocks(tracked.points, _METRICS):
            client.log_batch(run, metrics=[Metric(p.name, p.value, now, p.step) for p in some])
        for path, folder in tracked.files:
            client.log_artifact(run, str(path), folder)
        # The tag stands for a whole run only: one that was stopped half-way may be exported again.
        client.log_batch(run, tags=[RunTag(TAG, tracked.tags["run_id"])])
        client.set_terminated(run)
    except MlflowException as error:
        raise FedsegError(f"MLflow at {uri} refused: {error}") from None
    return str(run)


def _experiment(client: Any, uri: str, name: str) -> str:
    """The number of an experiment, which is made if it is missing."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    # Else MLflow would put the files of a database into whatever folder one happens to be in.
    place = Path(uri.removeprefix(_SQLITE)).parent / "mlartifacts" if uri.startswith(_SQLITE) else None
    return str(client.create_experiment(name, artifact_location=None if place is None else place.as_uri()))


def _refuse_twice(client: Any, number: str, experiment: str, tracked: Tracked) -> None:
    """A second copy would count twice in every table of MLflow."""
    run_id = tracked.tags["run_id"]
    found = client.search_runs([number], f"tags.`{TAG}` = '{run_id}'", max_results=1)
    if run_id and found:
        raise ExportedBeforeError(
            f"This run is in the experiment {experiment} already, as {found[0].info.run_id}. Delete it there, or name "
            "another --experiment."
        )


def _tags(tracked: Tracked) -> dict[str, str]:
    return {name: value for name, value in tracked.tags.items() if name != "run_id"}


def _blocks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while block := list(itertools.islice(iterator, size)):
        yield block

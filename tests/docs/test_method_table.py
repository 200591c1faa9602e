"""The method table against the components, their arguments and the job folders."""

import inspect
import re
from pathlib import Path

import pytest

from fedseg.jobs.allowed_components import component_classes
from fedseg.jobs.job import read_job
from fedseg.tasks.objective import objective_of

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "reference" / "method-table.md"
JOBS = {path.parent.name: read_job(path.parent) for path in sorted((ROOT / "jobs").glob("*/meta.json"))}
DEFAULT = "fedseg.workflows.selection.AllSites"
"""Named by no job: it is what happens without a selection."""
SEGMENTATION = "fedseg.tasks.segmentation.objective.Segmentation"
"""Named by no job either: it is the kind of every task that names none."""


def rows():
    """The rows that describe a method: cells, and the component classes that they name."""
    for line in TABLE.read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        classes = re.findall(r"`(fedseg\.[\w.]+)`", line)
        if line.startswith("|") and classes:
            yield cells, classes


ROWS = list(rows())


def used_by(job):
    return {component["path"] for component in job.components()}


@pytest.mark.parametrize(("cells", "classes"), ROWS, ids=[cells[0] for cells, _ in ROWS])
def test_a_method_has_a_job_that_uses_it(cells, classes):
    named = re.findall(r"`jobs/(\w+)`", cells[-1])
    assert named or classes in ([DEFAULT], [SEGMENTATION])
    for name in named:
        kind = type(objective_of(JOBS[name].plan.task))
        assert set(classes) <= {*used_by(JOBS[name]), f"{kind.__module__}.{kind.__qualname__}"}, name


def test_every_component_is_used_by_a_job():
    used = {path for job in JOBS.values() for path in used_by(job)}
    assert set(component_classes()) - used == {DEFAULT}


def test_every_job_stands_in_a_row():
    named = {name for cells, _ in ROWS for name in re.findall(r"`jobs/(\w+)`", cells[-1])}
    assert named == set(JOBS)


@pytest.mark.parametrize(("cells", "classes"), ROWS, ids=[cells[0] for cells, _ in ROWS])
def test_a_default_that_the_table_states_is_that_of_the_class(cells, classes):
    """Of the form `name` value; what follows a colon or a comma says more."""
    parameters = {}
    for path in filter(component_classes().get, classes):
        for base in reversed(component_classes()[path].__mro__[:-1]):
            if "__init__" in vars(base):
                parameters |= inspect.signature(base.__init__).parameters
    position = next(index for index, cell in enumerate(cells) if f"`{classes[0]}`" in cell) + 1
    for name, value in re.findall(
        r"`(\w+)` ([\d.]+(?:e-\d+)?)(?=[,;: ]|$)", cells[position] if position < len(cells) else ""
    ):
        if name in parameters:
            assert parameters[name].default == pytest.approx(float(value)), name

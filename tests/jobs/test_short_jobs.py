"""A job folder says what differs from the defaults, and nothing else."""

import copy
import importlib
import inspect
import json
from pathlib import Path

import pytest

from fedseg.contract.plan import parse_plan
from fedseg.errors import ConfigurationError
from fedseg.jobs.components import components

ROOT = Path(__file__).parents[2]
JOBS = sorted(path.parent for path in (ROOT / "jobs").glob("*/meta.json"))
FILES = (
    "meta.json",
    "app/config/fedseg.json",
    "app/config/config_fed_server.json",
    "app/config/config_fed_client.json",
)


def contents(folder):
    return [json.loads((folder / name).read_text("utf-8")) for name in FILES]


def empty(value):
    """Empty objects and lists anywhere in a piece of configuration; ``split`` says by being there."""
    if isinstance(value, dict):
        return [key for key, part in value.items() if (part in ({}, []) and key != "split") or empty(part)]
    return [part for part in value if empty(part)] if isinstance(value, list) else []


def places(plan):
    """The key, or key and name, of everything that a plan sets."""
    for key, value in plan.items():
        yield (key,)
        if isinstance(value, dict):
            yield from ((key, name) for name in value)


@pytest.mark.parametrize("folder", JOBS, ids=lambda folder: folder.name)
def test_nothing_in_a_plan_could_be_left_out(folder):
    plan = contents(folder)[1]
    needless = []
    for *where, last in places(plan):
        without = copy.deepcopy(plan)
        del (without[where[0]] if where else without)[last]
        try:
            same = parse_plan(without) == parse_plan(plan)
        except ConfigurationError:
            continue
        if same and last != "method":
            needless.append((*where, last))
    assert needless == []


def default(path, name):
    """The default of an argument, looked for in the class and, where that passes it on, in those above."""
    module, _, kind = path.rpartition(".")
    for found in getattr(importlib.import_module(module), kind).__mro__:
        parameter = inspect.signature(found.__init__).parameters.get(name) if "__init__" in vars(found) else None
        if parameter is not None:
            return parameter.default
    return inspect.Parameter.empty


@pytest.mark.parametrize("folder", JOBS, ids=lambda folder: folder.name)
def test_no_argument_equals_its_default(folder):
    needless = [
        (part["path"], name)
        for content in contents(folder)[2:]
        for part in components(content)
        for name, value in part.get("args", {}).items()
        if default(part["path"], name) == value
    ]
    assert needless == []


@pytest.mark.parametrize("folder", JOBS, ids=lambda folder: folder.name)
def test_nothing_is_said_that_flare_takes_for_granted(folder):
    meta, _, server, client = contents(folder)
    assert not any(map(empty, contents(folder)))
    assert set(meta) <= {"name", "min_clients", "deploy_map"}
    assert meta.get("min_clients") != 1
    assert "default_task_fetch_interval" not in client
    for config, direction in ((server, "in"), (client, "out")):
        assert direction not in [chain.get("direction") for chain in config.get("task_result_filters", [])]


def test_the_folders_are_short():
    lines = [len((folder / name).read_text("utf-8").splitlines()) for folder in JOBS for name in FILES]
    assert sum(lines) < 40 * len(JOBS)

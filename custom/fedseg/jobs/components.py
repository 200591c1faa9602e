"""Components as a job declares them, ``{"path": ..., "args": {...}}``: found, checked, and built as FLARE will."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from typing import Any

from fedseg.errors import ConfigurationError
from fedseg.filters.guard.guard import CURVES
from fedseg.jobs.allowed_components import SERVER_RECEIVERS, allowed_classes


def build_component(component: dict[str, Any]) -> Any:
    """Build one of our own components as FLARE will, so that a wrong value is refused here and not in the job."""
    arguments = {
        key: build_component(value) if isinstance(value, dict) and "path" in value else value
        for key, value in component.get("args", {}).items()
    }
    module, _, name = component["path"].rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)(**arguments)
    except (TypeError, ValueError) as error:
        # As the job has them: objects that were built of nested ones would show where they lie in memory.
        declared = component.get("args", {})
        raise ConfigurationError(name, declared, f"arguments with which it can be built ({error})") from None


def components(value: Any) -> Iterator[dict[str, Any]]:
    """Every component in a piece of configuration, nested ones included."""
    if isinstance(value, dict):
        if isinstance(value.get("path"), str):
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from components(item)


def check_component(component: dict[str, Any]) -> None:
    """Refuse a component that sites would not load, and arguments that it does not take.

    Raises:
        ConfigurationError: names the class or the argument.
    """
    path = component["path"]
    if path not in allowed_classes():
        # Asked before anything is imported: importing a module that a job names would already run its code.
        remedy = "docs/reference/method-table.md lists them; sites load no other."
        raise ConfigurationError("path", path, "a component class that fedseg.jobs.allowed_components lists", remedy)
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


def receivers(server: dict[str, Any]) -> list[dict[str, Any]]:
    """Components of the server that pass curves on to a tracker, see ``SERVER_RECEIVERS``; only the outermost count."""
    declared = server.get("components", [])
    return [each for each in declared if isinstance(each, dict) and each.get("path") in SERVER_RECEIVERS]


def check_receiver(component: dict[str, Any]) -> None:
    """Refuse a receiver of curves that hears of none; its library need not be installed here.

    Raises:
        ConfigurationError: names the argument.
    """
    name, arguments = component["path"].rpartition(".")[2], component.get("args", {})
    # Without this FLARE's receivers also write down what the server says of itself.
    if arguments.get("events") != [CURVES]:
        raise ConfigurationError(f"{name}.events", arguments.get("events"), f"{[CURVES]}, as sites send their curves")

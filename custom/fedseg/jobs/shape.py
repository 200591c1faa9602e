"""The form of FLARE's two files of a job: lists and objects where the rest of the code expects them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedseg import allowed
from fedseg.errors import ConfigurationError

_COMPONENT = '{"path": ..., "args": {...}}'


def check_shape(server_file: str, server: Mapping[str, Any], client_file: str, client: Mapping[str, Any]) -> None:
    """Refuse files in which a workflow, an executor or another component is no such thing; what they are called, and
    which arguments they take, is for later checks.

    Args:
        server_file, client_file: names of the files, for messages.
        server, client: their contents.

    Raises:
        ConfigurationError: names the place.
    """
    workflows = server.get("workflows")
    if not isinstance(workflows, list) or len(workflows) != 1:
        raise ConfigurationError(f"{server_file}: workflows", workflows, "a list with one workflow")
    _check_component(f"{server_file}: workflows[0]", workflows[0])
    for index, entry in enumerate(_entries(client_file, client, "executors")):
        where = f"{client_file}: executors[{index}]"
        if not isinstance(entry, dict):
            raise ConfigurationError(where, entry, f'{{"tasks": [names], "executor": {_COMPONENT}}}')
        allowed.texts(f"{where}.tasks", entry.get("tasks"))
        arguments = _check_component(f"{where}.executor", entry.get("executor"))
        if arguments.get("hooks"):
            allowed.texts(f"{where}.executor.hooks", arguments["hooks"])
    for file, content in ((server_file, server), (client_file, client)):
        for index, entry in enumerate(_entries(file, content, "components")):
            _check_component(f"{file}: components[{index}]", entry)
            allowed.text(f"{file}: components[{index}].id", entry.get("id"))


def _entries(file: str, content: Mapping[str, Any], key: str) -> list[Any]:
    entries = content.get(key, [])
    if not isinstance(entries, list):
        raise ConfigurationError(f"{file}: {key}", entries, "a list")
    return entries


def _check_component(where: str, component: Any) -> dict[str, Any]:
    """Refuse what is no component, in its arguments, too; gives the arguments."""
    if not isinstance(component, dict):
        raise ConfigurationError(where, component, _COMPONENT)
    allowed.text(f"{where}.path", component.get("path"))
    arguments = component.get("args", {})
    if not isinstance(arguments, dict):
        raise ConfigurationError(f"{where}.args", arguments, "an object of arguments")
    for name, value in arguments.items():
        if isinstance(value, dict) and "path" in value:
            _check_component(f"{where}.args.{name}", value)
    return arguments

"""FLARE's project file, which says who takes part in a federation: read, checked, and moved to one machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nvflare.lighter.utils import load_yaml

from fedseg import allowed
from fedseg.errors import ConfigurationError, UsageError
from fedseg.files import names

PROJECT_FILE = "project.yml"
SERVER, SITE, PERSON = "server", "client", "admin"
COORDINATOR = "project_admin"
HOST = "localhost"
EVALUATE_ONLY = "evaluate_only"
"""Of a site in a project file: it scores models and never trains. The rule of its policy has the same name."""


def read_project(template: Path) -> dict[str, Any]:
    """The content of a template's project file, with its participants checked.

    Args:
        template: a folder with ``project.yml``.

    Raises:
        UsageError: there is no project file.
        ConfigurationError: it is no project with one server, a site and a coordinator.
    """
    path = template / PROJECT_FILE
    if not path.is_file():
        raise UsageError(
            f"{template} is no template: it has no {PROJECT_FILE}. `fedseg files --out DIR` writes the templates "
            "of this version to DIR/workspace_templates: name a copy of one."
        )
    try:
        content = load_yaml(str(path))
    except Exception as error:
        raise ConfigurationError(PROJECT_FILE, " ".join(str(error).split()), "readable as YAML") from None
    check_project(content)
    return dict(content)


def check_project(content: Any) -> None:
    """Refuse a project that could not train.

    Raises:
        ConfigurationError: names what is wrong.
    """
    if not isinstance(content, dict):
        raise ConfigurationError(PROJECT_FILE, content, "a mapping with name, participants and builders")
    for key in ("name", "participants", "builders"):
        if not content.get(key):
            raise ConfigurationError(f"{PROJECT_FILE}: {key}", content.get(key), "given")
    names.PROJECT.check(f"{PROJECT_FILE}: name", content["name"])
    people = content["participants"]
    if not isinstance(people, list) or not all(isinstance(p, dict) and "name" in p and "type" in p for p in people):
        raise ConfigurationError(f"{PROJECT_FILE}: participants", people, "a list of entries with name and type")
    for entry in people:
        _check_participant(entry)
    roles = [role_of(entry) for entry in people]
    if alike := names.repeated(entry["name"] for entry in people):
        raise ConfigurationError(f"{PROJECT_FILE}: name", alike[0], "the name of one participant only")
    for role, needed, fits in (
        (SERVER, "exactly 1", roles.count(SERVER) == 1),
        (SITE, "at least 1 site", SITE in roles),
        (COORDINATOR, "at least 1 admin with this role, who coordinates", COORDINATOR in roles),
    ):
        if not fits:
            raise ConfigurationError(f"{PROJECT_FILE}: number of participants {role}", roles.count(role), needed)


def _check_participant(entry: Mapping[str, Any]) -> None:
    """Refuse what FLARE would refuse later, cut, or take as it is.

    Raises:
        ConfigurationError: names the participant.
    """
    kind = allowed.one_of(f"{PROJECT_FILE}: type of {entry['name']}", entry["type"], (SERVER, SITE, PERSON))
    rule = {SERVER: names.HOST, SITE: names.SITE, PERSON: names.PERSON}[kind]
    if kind == SERVER and isinstance(entry["name"], str) and len(entry["name"]) > names.LONGEST:
        remedy = "Take a short name, and write the long one under default_host."
        raise ConfigurationError(
            f"{PROJECT_FILE}: name", entry["name"], f"at most {names.LONGEST} letters long", remedy
        )
    rule.check(f"{PROJECT_FILE}: name", entry["name"])
    whose = f"{PROJECT_FILE}: {entry['name']}"
    if EVALUATE_ONLY in entry:
        fits = allowed.switch(f"{whose}: {EVALUATE_ONLY}", entry[EVALUATE_ONLY])
        if fits and kind != SITE:
            raise ConfigurationError(f"{whose}: {EVALUATE_ONLY}", True, f"left out but at a {SITE}")
    names.ORGANISATION.check(f"{whose}: org", entry.get("org"))
    for place in (entry, *(part for part in entry.values() if isinstance(part, dict))):
        for key, value in place.items():
            if str(key).endswith("port"):
                allowed.whole(f"{whose}: {key}", value, least=1, most=65535)


def role_of(entry: Mapping[str, Any]) -> str:
    """``server``, ``client``, or the role of a person."""
    return str(entry.get("role") if entry["type"] == PERSON else entry["type"])


def on_this_machine(project: Mapping[str, Any], sites: Sequence[str], port: int) -> dict[str, Any]:
    """A project with its server at ``localhost`` and other sites; people and builders stay.

    Args:
        project: content of a project file.
        sites: names in place of the project's own.
        port: of the server, for sites and people alike.
    """
    server = next(dict(entry) for entry in project["participants"] if entry["type"] == SERVER)
    server.update(name=HOST, fed_learn_port=port, admin_port=port)
    clients = [{"name": site, "type": SITE, "org": "".join(c if c.isalnum() else "_" for c in site)} for site in sites]
    people = [dict(entry) for entry in project["participants"] if entry["type"] == PERSON]
    return {**project, "participants": [server, *clients, *people]}

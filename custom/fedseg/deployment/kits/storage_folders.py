"""Where a server or a site keeps what must outlive its processes: read from its kit, and written into it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedseg.deployment.kits.installed_kit import LOCAL, RESOURCES_FILE
from fedseg.errors import FedsegError
from fedseg.files.documents import read_json, write_json
from fedseg.site.profile import PROFILE_FILE

SERVER_STORAGE = Path("/var/lib/fedseg")
"""Where a server keeps everything unless told otherwise."""


@dataclass(frozen=True)
class ServerFolders:
    """The folders of a server.

    Attributes:
        jobs: submitted jobs and results, of FLARE.
        snapshots: of FLARE.
        state: checkpoints and the record, of fedseg.
    """

    jobs: Path
    snapshots: Path
    state: Path


def read_folders(kit: Path) -> ServerFolders | None:
    """The folders that an equipped kit names; None where it does not name all of them."""
    try:
        content = read_json(kit / LOCAL / RESOURCES_FILE, "FLARE's settings of a kit")
        own = read_json(kit / LOCAL / PROFILE_FILE, "the profile of a server")
        return ServerFolders(
            Path(_job_manager(content)["uri_root"]), Path(_snapshots(content)["root_dir"]), Path(own["state"])
        )
    except (FedsegError, KeyError, TypeError, StopIteration):
        return None


def write_folders(kit: Path, folders: ServerFolders) -> None:
    """Name the folders in an equipped kit.

    Args:
        kit: of a server.
        folders: absolute (FLARE accepts no other).
    """
    content = read_json(kit / LOCAL / RESOURCES_FILE, "FLARE's settings of a kit")
    _job_manager(content)["uri_root"] = str(folders.jobs)
    _snapshots(content)["root_dir"] = str(folders.snapshots)
    write_local(kit, RESOURCES_FILE, content)
    place_state(kit, folders.state)


def place_server(kit: Path, storage: Path) -> None:
    """Let a server keep everything below one folder.

    FLARE's own default is a folder in ``/tmp``, which every user of the machine can read and a restart may empty.
    """
    write_folders(kit, ServerFolders(storage / "jobs", storage / "snapshots", storage / "state"))


def place_state(kit: Path, state: Path, **more: Any) -> None:
    """Write ``local/fedseg.json`` of a kit anew.

    Args:
        kit: of a server or a site.
        state: folder for what must survive the processes.
        more: the other keys of a site's profile: ``datasets``, ``policy``...
    """
    write_local(kit, PROFILE_FILE, {**more, "state": str(state)})


def write_local(kit: Path, name: str, content: dict[str, Any]) -> None:
    """Write a JSON file in ``local`` of a kit."""
    write_json(kit / LOCAL / name, content)


def _job_manager(resources: dict[str, Any]) -> dict[str, Any]:
    arguments: dict[str, Any] = next(part["args"] for part in resources["components"] if part["id"] == "job_manager")
    return arguments


def _snapshots(resources: dict[str, Any]) -> dict[str, Any]:
    arguments: dict[str, Any] = resources["snapshot_persistor"]["args"]["storage"]["args"]
    return arguments

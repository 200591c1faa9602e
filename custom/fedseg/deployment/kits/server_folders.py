"""Where a server keeps what must survive it: what its kit says, read and written back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedseg.deployment.kits.equipping import RESOURCES_FILE, place_state
from fedseg.errors import FedsegError
from fedseg.files.documents import read_json
from fedseg.site.profile import PROFILE_FILE


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
        content = read_json(kit / "local" / RESOURCES_FILE, "FLARE's settings of a kit")
        own = read_json(kit / "local" / PROFILE_FILE, "the profile of a server")
        return ServerFolders(
            Path(_job_manager(content)["uri_root"]), Path(_storage(content)["root_dir"]), Path(own["state"])
        )
    except (FedsegError, KeyError, TypeError, StopIteration):
        return None


def write_folders(kit: Path, folders: ServerFolders) -> None:
    """Name the folders in an equipped kit."""
    path = kit / "local" / RESOURCES_FILE
    content = read_json(path, "FLARE's settings of a kit")
    _job_manager(content)["uri_root"] = str(folders.jobs)
    _storage(content)["root_dir"] = str(folders.snapshots)
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    place_state(kit, folders.state)


def _job_manager(resources: dict[str, Any]) -> dict[str, Any]:
    arguments: dict[str, Any] = next(part["args"] for part in resources["components"] if part["id"] == "job_manager")
    return arguments


def _storage(resources: dict[str, Any]) -> dict[str, Any]:
    arguments: dict[str, Any] = resources["snapshot_persistor"]["args"]["storage"]["args"]
    return arguments

"""What fedseg adds to a kit that FLARE has provisioned: the policy of a site, and what a server may load and keep."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from fedseg.errors import UsageError
from fedseg.files.documents import read_json
from fedseg.jobs.allowed_components import server_components, site_components, site_launcher, site_resources
from fedseg.site.profile import PROFILE_FILE

RESOURCES_FILE = "resources.json"
POLICY_FILES = ("authorization.json", "privacy.json", PROFILE_FILE, "log_config.json")
SERVER_POLICY_FILES = ("authorization.json", "log_config.json")
SERVER_STORAGE = Path("/var/lib/fedseg")
# Seconds of silence after which the server drops a client, which gives a sign every 10 s and comes back with the next.
HEART_BEAT_TIMEOUT = 120
_LOG_SENDER, _LAUNCHER = "site_log_streamer", "process_launcher"


def check_policy_folder(policy: Path) -> None:
    """Refuse a folder that lacks a file of a site's policy.

    Raises:
        UsageError: names the file.
    """
    for name in POLICY_FILES:
        if not (policy / name).is_file():
            raise UsageError(
                f"--site-policy {policy} has no {name}. Name a folder like workspace_templates/site_policy/local."
            )


def equip_site(kit: Path, policy: Path) -> None:
    """Write the five files of ``local`` with which a site takes jobs of fedseg, and nothing else.

    Args:
        kit: the site's kit as FLARE made it.
        policy: folder with the files of a site's policy, see ``POLICY_FILES``.
    """
    resources = _provisioned_resources(kit)
    resources["allow_log_streaming"] = site_resources()["allow_log_streaming"]
    resources["components"] = [
        site_launcher(_LAUNCHER) if part["id"] == _LAUNCHER else part
        for part in resources["components"]
        if part["id"] != _LOG_SENDER
    ] + site_components()
    _write(kit / "local" / RESOURCES_FILE, resources)
    for name in POLICY_FILES:
        shutil.copyfile(policy / name, kit / "local" / name)


def equip_server(kit: Path, policy: Path) -> None:
    """Write what a server may load, who may do what, and where it keeps jobs and checkpoints.

    Args:
        kit: the server's kit as FLARE made it.
        policy: folder with ``SERVER_POLICY_FILES``.
    """
    resources = _provisioned_resources(kit)
    resources["components"] += server_components()
    for server in resources["servers"]:
        server["heart_beat_timeout"] = HEART_BEAT_TIMEOUT
    _write(kit / "local" / RESOURCES_FILE, resources)
    for name in SERVER_POLICY_FILES:
        shutil.copyfile(policy / name, kit / "local" / name)
    place_server(kit, SERVER_STORAGE)


def place_server(kit: Path, storage: Path) -> None:
    """Say where a server keeps what must survive it: submitted jobs, results and checkpoints.

    FLARE's own default is a folder in ``/tmp``, which every user of the machine can read and a restart may empty.

    Args:
        kit: an equipped server kit.
        storage: an absolute path (FLARE takes no other).
    """
    path = kit / "local" / RESOURCES_FILE
    resources = read_json(path, "FLARE's settings of a kit")
    resources["snapshot_persistor"]["args"]["storage"]["args"]["root_dir"] = str(storage / "snapshots")
    for part in resources["components"]:
        if part["id"] == "job_manager":
            part["args"]["uri_root"] = str(storage / "jobs")
    _write(path, resources)
    place_state(kit, storage / "state")


def place_state(kit: Path, state: Path, **more: Any) -> None:
    """Write ``local/fedseg.json`` of a kit anew.

    Args:
        kit: of a server or a site.
        state: folder for what must survive the processes.
        more: the other keys of a site's profile: ``datasets``, ``policy``...
    """
    _write(kit / "local" / PROFILE_FILE, {**more, "state": str(state)})


def _provisioned_resources(kit: Path) -> dict[str, Any]:
    """FLARE's own resources of a kit with the exact list of classes; ``resources.json`` replaces them as a whole."""
    resources: dict[str, Any] = read_json(kit / "local" / f"{RESOURCES_FILE}.default", "FLARE's settings of a kit")
    resources["class_allow_list"] = site_resources()["class_allow_list"]
    return resources


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")

"""The files that fedseg writes into a kit that FLARE has made: classes that jobs may load, rights, limits, logging."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from fedseg.deployment.kits.installed_kit import LOCAL, RESOURCES_FILE
from fedseg.deployment.kits.project_file import EVALUATE_ONLY, SERVER, SITE
from fedseg.deployment.kits.storage_folders import SERVER_STORAGE, place_server, write_local
from fedseg.errors import UsageError
from fedseg.files.documents import read_json
from fedseg.jobs.allowed_components import (
    JOB_STORE,
    server_components,
    site_components,
    site_launcher,
    site_resources,
)
from fedseg.site.profile import PROFILE_FILE

POLICY_FILES = {
    SITE: ("authorization.json", "privacy.json", PROFILE_FILE, "log_config.json"),
    SERVER: ("authorization.json", "log_config.json"),
}
# Seconds of silence after which the server drops a client, which gives a sign every 10 s and comes back with the next.
HEART_BEAT_TIMEOUT = 120
_LOG_SENDER, _LAUNCHER, _JOB_STORE = "site_log_streamer", "process_launcher", "job_manager"


def check_policy_folder(policy: Path) -> None:
    """Refuse a folder that lacks a file of a site's policy.

    Raises:
        UsageError: names the file.
    """
    for name in POLICY_FILES[SITE]:
        if not (policy / name).is_file():
            raise UsageError(
                f"--site-policy {policy} has no {name}. Name a folder like "
                "workspace_templates/site_policy/local; `fedseg files --out DIR` writes it into DIR."
            )


def write_policy(kit: Path, role: str, policy: Path) -> None:
    """Write into ``local`` with what a site or a server takes part in jobs of fedseg; nothing into a person's kit.

    Args:
        kit: as FLARE made it.
        role: whose kit it is.
        policy: folder with the files of ``POLICY_FILES``.
    """
    if role not in POLICY_FILES:
        return
    # FLARE's own resources; ``resources.json`` replaces them as a whole.
    resources: dict[str, Any] = read_json(kit / LOCAL / f"{RESOURCES_FILE}.default", "FLARE's settings of a kit")
    resources["class_allow_list"] = site_resources()["class_allow_list"]
    if role == SITE:
        resources["allow_log_streaming"] = site_resources()["allow_log_streaming"]
        resources["components"] = [
            site_launcher(_LAUNCHER) if part["id"] == _LAUNCHER else part
            for part in resources["components"]
            if part["id"] != _LOG_SENDER
        ] + site_components()
    else:
        own = [{**part, "path": JOB_STORE} if part["id"] == _JOB_STORE else part for part in resources["components"]]
        resources["components"] = own + server_components()
        for server in resources["servers"]:
            server["heart_beat_timeout"] = HEART_BEAT_TIMEOUT
    write_local(kit, RESOURCES_FILE, resources)
    for name in POLICY_FILES[role]:
        shutil.copyfile(policy / name, kit / LOCAL / name)
    if role == SERVER:
        place_server(kit, SERVER_STORAGE)


def forbid_training(kit: Path) -> None:
    """Let the policy of a site's kit say that the site scores models and never trains."""
    profile: dict[str, Any] = read_json(kit / LOCAL / PROFILE_FILE, "the profile of a kit")
    write_local(kit, PROFILE_FILE, {**profile, "policy": {**profile.get("policy", {}), EVALUATE_ONLY: True}})

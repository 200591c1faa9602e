"""The kit of one more site, and a kit made anew, in a federation that exists."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fedseg.deployment.kits.equipping import check_policy_folder
from fedseg.deployment.kits.federation_kits import KITS, Federation
from fedseg.deployment.kits.project_file import PROJECT_FILE, SITE, check_project
from fedseg.deployment.kits.single_kit import federation_authority, make_kit
from fedseg.errors import ConfigurationError, UsageError


def add_site(
    project: dict[str, Any], name: str, policy: Path, out: Path, wheel: Path | None = None, with_wheel: bool = True
) -> Federation:
    """Make the kit of one more site.

    The server knows its sites by their certificates only, so it goes on as it is. A site that the project file does
    not name yet gets an organisation of its own name.

    Args:
        project: content of the project file from which ``out`` was made; may name the site already.
        name: of the site.
        policy: folder with the files of a site's policy.
        out: the folder of the federation, with ``kits``, ``archives`` and ``authority``.
        wheel: fedseg as this site shall install it; None takes the one in ``out``, so that all sites have the same.
        with_wheel: False leaves the wheel out.

    Returns:
        The federation, with the kit of the new site only.

    Raises:
        UsageError: ``out`` is no provisioned federation of this project, the name has a kit already, or the wheel is of
            another version.
        ConfigurationError: the name is not fit for a site.
        ProvisioningError: FLARE refuses the project.
    """
    check_project(project)
    check_policy_folder(policy)
    out, entry = Path(os.path.abspath(out)), entry_of(project, name)
    if (out / KITS / name).exists():
        raise UsageError(f"--add-site {name}: this name has a kit in {out / KITS} already. `--renew` makes it anew.")
    return make_kit(project, entry, policy, out, wheel, with_wheel)


def entry_of(project: dict[str, Any], name: str) -> dict[str, Any]:
    """The site's entry in the project file; a new one where there is none.

    Raises:
        ConfigurationError: the name is somebody else's, or not fit for a site.
    """
    for entry in project["participants"]:
        if entry["name"] == name:
            if entry["type"] != SITE:
                raise ConfigurationError("--add-site", name, "the name of a site; in the project file it is another's")
            return dict(entry)
    if not name or not all(c.isascii() and (c.isalnum() or c in "-_") for c in name):
        raise ConfigurationError("--add-site", name, "made of letters, digits, - and _")
    return {"name": name, "type": SITE, "org": name.replace("-", "_"), "allow_log_streaming": False}


def renew_kit(
    project: dict[str, Any], name: str, policy: Path, out: Path, wheel: Path | None = None, with_wheel: bool = True
) -> Federation:
    """Make the kit of a participant anew: the server, a site or a person.

    Everybody knows the others by the root certificate and by names, so nobody else changes. The old certificate stays
    good until it ends, since FLARE has no list of revoked ones.

    Args:
        project: content of the project file from which ``out`` was made; must name the participant, since a person's
            role and an organisation's rights come from there.
        name: of the participant.
        policy: folder with the files of a site's policy.
        out: the folder of the federation, with ``kits``, ``archives`` and ``authority``.
        wheel: fedseg as the participant shall install it; None takes the one in ``out``, so that all have the same.
        with_wheel: False leaves the wheel out.

    Returns:
        The federation, with the new kit only.

    Raises:
        UsageError: ``out`` is no provisioned federation of this project, nobody of this name is in it, or the wheel is
            of another version.
        ProvisioningError: FLARE refuses the project.
    """
    check_project(project)
    check_policy_folder(policy)
    out = Path(os.path.abspath(out))
    entry = next((dict(each) for each in project["participants"] if each["name"] == name), None)
    if entry is None:
        raise UsageError(
            f"--renew {name}: {PROJECT_FILE} does not name it. Write its line there first; `--add-site` has printed it."
        )
    if name not in federation_authority(project, out).names:
        raise UsageError(f"--renew {name}: it never had a kit of the federation in {out}. For a site take --add-site.")
    return make_kit(project, entry, policy, out, wheel, with_wheel)

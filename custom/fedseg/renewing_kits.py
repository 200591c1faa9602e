"""A participant's kit made anew, with a new key and certificate of the same root, while all others keep theirs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fedseg.errors import UsageError
from fedseg.kits import Federation
from fedseg.project_file import PROJECT_FILE, check_project
from fedseg.single_kits import federation_authority, make_kit
from fedseg.site_kits import check_policy_folder


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

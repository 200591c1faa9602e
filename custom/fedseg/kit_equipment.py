"""The policy in a kit of FLARE's own tools: ``nvflare package`` made it, or ``nvflare deploy prepare`` changed it.

Both leave a kit with FLARE's generic list of classes and with log streaming on; ``deploy prepare`` even deletes the
``resources.json`` that was there.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from fedseg.errors import UsageError
from fedseg.project_file import SERVER, SITE
from fedseg.site_kits import (
    POLICY_FILES,
    RESOURCES_FILE,
    SERVER_STORAGE,
    equip_server,
    equip_site,
    place_server,
    place_state,
)

_ROLE_FILES = {"fed_server.json": SERVER, "fed_client.json": SITE}
_SERVER_POLICY = ("authorization.json",)


def role_of_kit(kit: Path) -> str:
    """``server`` or ``client``.

    Raises:
        UsageError: the folder is no kit of a server or a site, or FLARE's resources are missing in it.
    """
    found = [role for name, role in _ROLE_FILES.items() if (kit / "startup" / name).is_file()]
    if len(found) != 1:
        raise UsageError(f"{kit} is no kit of a server or a site: startup/ has neither {' nor '.join(_ROLE_FILES)}.")
    if not (kit / "local" / f"{RESOURCES_FILE}.default").is_file():
        raise UsageError(f"{kit} has no local/{RESOURCES_FILE}.default. Make the kit anew.")
    return found[0]


def equip(
    kit: Path,
    policy: Path | None = None,
    storage: Path = SERVER_STORAGE,
    state: Path | None = None,
    wheel: Path | None = None,
) -> str:
    """Write what fedseg needs into ``local`` of a kit; policy files that are there already stay as they are.

    Args:
        kit: of a server or a site.
        policy: folder with the files of a site's policy, for those that the kit lacks.
        storage: server only: where it keeps jobs and results; absolute.
        state: server only: where it keeps checkpoints; None is ``storage/state``.
        wheel: to be put into the kit.

    Returns:
        The role of the kit.

    Raises:
        UsageError: this is no such kit, or a file is missing.
    """
    role = role_of_kit(kit)
    for folder in (storage, state):
        if folder is not None and not folder.is_absolute():
            raise UsageError(f"{folder} is not absolute, and FLARE takes no other folder. Write it from / on.")
    if wheel is not None and not (wheel.is_file() and wheel.suffix == ".whl"):
        raise UsageError(f"--wheel {wheel} is no wheel.")
    with tempfile.TemporaryDirectory() as scratch:
        files = _gather(kit, policy, POLICY_FILES if role == SITE else _SERVER_POLICY, Path(scratch))
        if role == SITE:
            equip_site(kit, files)
        else:
            equip_server(kit, files)
            place_server(kit, storage)
            place_state(kit, state or storage / "state")
    if wheel is not None and wheel.resolve().parent != kit.resolve():
        shutil.copy2(wheel, kit)
    return role


def _gather(kit: Path, policy: Path | None, names: tuple[str, ...], target: Path) -> Path:
    """Copy the kit's own policy files, and from ``policy`` those that it lacks."""
    for name in names:
        own = kit / "local" / name
        given = own if own.is_file() or policy is None else policy / name
        if not given.is_file():
            raise UsageError(
                f"{kit} has no local/{name}, and neither has --site-policy {policy or ''}. "
                "Name a folder like workspace_templates/site_policy/local."
            )
        shutil.copyfile(given, target / name)
    return target

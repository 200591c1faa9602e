"""The policy in a kit of FLARE's own tools: ``nvflare package`` made it, or ``nvflare deploy prepare`` changed it.

Both leave a kit with FLARE's generic list of classes and with log streaming on; ``deploy prepare`` even deletes the
``resources.json`` that was there.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from fedseg.deployment.kits.equipping import (
    POLICY_FILES,
    RESOURCES_FILE,
    SERVER_POLICY_FILES,
    SERVER_STORAGE,
    equip_server,
    equip_site,
    place_server,
    place_state,
)
from fedseg.deployment.kits.prepared_kit import runtime_of
from fedseg.deployment.kits.project_file import SERVER, SITE
from fedseg.deployment.kits.server_folders import read_folders, write_folders
from fedseg.deployment.kits.wheel import check_wheel
from fedseg.errors import UsageError

_ROLE_FILES = {"fed_server.json": SERVER, "fed_client.json": SITE}
BEFORE = f"{RESOURCES_FILE}.before"


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
    storage: Path | None = None,
    state: Path | None = None,
    wheel: Path | None = None,
) -> str:
    """Write what fedseg needs into ``local`` of a kit; policy files that are there already stay as they are.

    ``resources.json`` is written anew; one that was there stays beside it as ``resources.json.before``.

    Args:
        kit: of a server or a site.
        policy: folder with the files of a site's policy, for those that the kit lacks.
        storage: server only: where it keeps jobs and results; absolute. None leaves all folders as they are, and is
            ``/var/lib/fedseg`` in a kit that has none yet.
        state: server only: where it keeps checkpoints; None is ``storage/state``.
        wheel: to be put into the kit.

    Returns:
        The role of the kit.

    Raises:
        UsageError: this is no such kit, a file is missing, or the storage of a server in a container is not named.
    """
    role = role_of_kit(kit)
    kept = read_folders(kit) if role == SERVER and storage is None else None
    runtime = runtime_of(kit)
    if role == SERVER and storage is None and kept is None and runtime is not None:
        raise UsageError(
            f"--storage is needed: {kit} was made ready for {runtime.name}, and what the server keeps must lie on a "
            "volume that outlives its container. Name the folder as it is called inside."
        )
    for folder in (storage, state):
        if folder is not None and not folder.is_absolute():
            raise UsageError(f"{folder} is not absolute, and FLARE takes no other folder. Write it from / on.")
    if wheel is not None:
        check_wheel(wheel)
    resources = kit / "local" / RESOURCES_FILE
    before = resources.read_bytes() if resources.is_file() else None
    with tempfile.TemporaryDirectory() as scratch:
        files = _gather(kit, policy, POLICY_FILES if role == SITE else SERVER_POLICY_FILES, Path(scratch))
        if role == SITE:
            equip_site(kit, files)
        else:
            equip_server(kit, files)
            place_server(kit, storage or SERVER_STORAGE)
            if kept is not None:
                write_folders(kit, kept)
            if state is not None:
                place_state(kit, state)
    if before is not None and before != resources.read_bytes():
        resources.with_name(BEFORE).write_bytes(before)
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

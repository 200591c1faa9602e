"""``fedseg equip``: the policy files in a kit of FLARE's own tools.

``nvflare package`` made the kit, or ``nvflare deploy prepare`` changed it. Both leave FLARE's generic list of classes
and log streaming on; ``deploy prepare`` even deletes the ``resources.json`` that was there.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from fedseg.deployment.kits.container_runtime import runtime_of
from fedseg.deployment.kits.installed_kit import CONFIGURATIONS, LOCAL, RESOURCES_FILE, role_on_disk
from fedseg.deployment.kits.policy_files import POLICY_FILES, write_policy
from fedseg.deployment.kits.project_file import SERVER
from fedseg.deployment.kits.storage_folders import place_server, place_state, read_folders, write_folders
from fedseg.deployment.kits.wheel import check_wheel
from fedseg.errors import UsageError

BEFORE = f"{RESOURCES_FILE}.before"


def role_of_kit(kit: Path) -> str:
    """``server`` or ``client``.

    Raises:
        UsageError: the folder is no kit of a server or a site, or FLARE's resources are missing in it.
    """
    role = role_on_disk(kit)
    if role is None:
        names = " nor ".join(CONFIGURATIONS.values())
        raise UsageError(f"{kit} is no kit of a server or a site: startup/ has neither {names}.")
    if not (kit / LOCAL / f"{RESOURCES_FILE}.default").is_file():
        raise UsageError(f"{kit} has no local/{RESOURCES_FILE}.default. Make the kit anew.")
    return role


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
    _check_folders(kit, role, storage, state)
    if wheel is not None:
        check_wheel(wheel)
    _write(kit, role, policy, storage, state)
    if wheel is not None and wheel.resolve().parent != kit.resolve():
        shutil.copy2(wheel, kit)
    return role


def _write(kit: Path, role: str, policy: Path | None, storage: Path | None, state: Path | None) -> None:
    resources = kit / LOCAL / RESOURCES_FILE
    before = resources.read_bytes() if resources.is_file() else None
    kept = read_folders(kit) if role == SERVER else None
    with tempfile.TemporaryDirectory() as scratch:
        write_policy(kit, role, _gather(kit, policy, POLICY_FILES[role], Path(scratch)))
    if storage is not None and role == SERVER:
        place_server(kit, storage)
    elif kept is not None:
        write_folders(kit, kept)
    if state is not None and role == SERVER:
        place_state(kit, state)
    if before is not None and before != resources.read_bytes():
        resources.with_name(BEFORE).write_bytes(before)


def _check_folders(kit: Path, role: str, storage: Path | None, state: Path | None) -> None:
    """Refuse folders that FLARE would not accept, and a server in a container that does not know its volume.

    Raises:
        UsageError: names the folder or the option.
    """
    runtime = runtime_of(kit)
    if role == SERVER and storage is None and runtime is not None and read_folders(kit) is None:
        raise UsageError(
            f"--storage is needed: {kit} was made ready for {runtime.name}, and what the server keeps must lie on a "
            "volume that outlives its container. Name the folder as it is called inside."
        )
    for folder in (storage, state):
        if folder is not None and not folder.is_absolute():
            raise UsageError(f"{folder} is not absolute, and FLARE takes no other folder. Write it from / on.")


def _gather(kit: Path, policy: Path | None, names: tuple[str, ...], target: Path) -> Path:
    """Copy the kit's own policy files, and from ``policy`` those that it lacks."""
    for name in names:
        own = kit / LOCAL / name
        given = own if own.is_file() or policy is None else policy / name
        if not given.is_file():
            raise UsageError(
                f"{kit} has no local/{name}, and neither has --site-policy {policy or ''}. "
                "Name a folder like workspace_templates/site_policy/local; `fedseg files --out DIR` writes it into DIR."
            )
        shutil.copyfile(given, target / name)
    return target

"""Checks of the folders in which a participant keeps things: room, the right to write, locks."""

from __future__ import annotations

import fcntl
import shlex
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fedseg.deployment.kits.container_runtime import runtime_of
from fedseg.deployment.kits.installed_kit import LOCAL, InstalledKit
from fedseg.deployment.kits.storage_folders import read_folders
from fedseg.deployment.operation.checks.result import CheckOptions, CheckResult, green, nearest_folder, red, yellow
from fedseg.deployment.operation.kit_processes import other_sites
from fedseg.errors import FedsegError
from fedseg.site.profile import read_profile, read_state_folder

LEAST_FREE, ENOUGH_FREE = 2 * 2**30, 20 * 2**30
_GIBIBYTE = 2**30
_FLARE_LOG = "log.txt"


def check_disk(kit: InstalledKit, options: CheckOptions) -> Iterator[CheckResult]:
    """There is room where the site keeps things."""
    for what, path in folders_of(kit).items():
        free = shutil.disk_usage(nearest_folder(path)).free
        found = f"{what}: {free / _GIBIBYTE:.1f} GiB free at {path}."
        if free < LEAST_FREE:
            least = f"{LEAST_FREE // _GIBIBYTE} GiB"
            yield red("disk", found, f"Make room: below {least} a job is likely to fail half-way.")
        elif free < ENOUGH_FREE:
            yield yellow("disk", found, f"Make room: {ENOUGH_FREE // _GIBIBYTE} GiB are advised for several jobs.")
        else:
            yield green("disk", found)


def check_folders(kit: InstalledKit, options: CheckOptions) -> Iterator[CheckResult]:
    """The site can write where it keeps things, and one process can lock out another."""
    folders, runtime = folders_of(kit), runtime_of(kit.folder)
    if runtime is not None:
        remedy = "Look at them by hand: room, rights and, for the state, locks."
        yield yellow("folders", f"State and data lie where {runtime.name} mounts them: not checked from here.", remedy)
    for what, path in folders.items():
        folder = nearest_folder(path)
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"x")
        except OSError as error:
            remedy = f"Give the user who runs FLARE the right to write in {folder}, or name another folder."
            yield red("folders", f"{what}: {path} cannot be written ({error.strerror}).", remedy)
            continue
        if what == "state" and not path.is_dir() and (kit.folder / _FLARE_LOG).is_file():
            remedy = "Is its disk mounted? If a job ran here before, the ledger of the privacy budget lies there."
            yield yellow("folders", f"state: {path} is not there, though FLARE has run from this kit.", remedy)
            continue
        yield green("folders", f"{what}: {path} can be written{'' if path.is_dir() else ', and will be made'}.")
    if "state" in folders:
        if kit.is_site:
            yield from _shared(kit, folders["state"])
            yield from _open_to_others(folders["state"])
        yield _locks(nearest_folder(folders["state"]))


def _shared(kit: InstalledKit, state: Path) -> Iterator[CheckResult]:
    """Two sites with one state folder would take each other's weights and spend each other's privacy budget."""
    for other in other_sites(kit):
        try:
            profile = read_profile(other.name, other / LOCAL, other)
        except (FedsegError, OSError):
            # Another user's kit, which this one may not read.
            continue
        if profile.state.resolve() == state.resolve():
            found = f"state: {state} is used by the site at {other}, too."
            yield red("folders", found, f"Name a folder of its own for each site in {LOCAL}/fedseg.json.")


def _open_to_others(state: Path) -> Iterator[CheckResult]:
    """A state folder that was there before the site first ran keeps the rights with which somebody made it."""
    mode = stat.S_IMODE(state.stat().st_mode) if state.is_dir() else 0
    if mode & 0o077:
        found = f"state: {state} is open to other users of this machine (mode {mode:04o})."
        remedy = f"{shlex.join(['chmod', '700', str(state)])}   It holds weights trained on patients, and the ledger."
        yield yellow("folders", found, remedy)


def _locks(folder: Path) -> CheckResult:
    """Whether a second opener of a file is locked out, as the privacy ledger needs it."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as first, open(first.name, "rb") as second:
            fcntl.flock(first, fcntl.LOCK_EX)
            try:
                fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return green("ledger", "The file system of the state folder locks files.")
            found = f"The file system at {folder} does not lock files: two jobs could spend the same privacy budget."
    except OSError as error:
        found = f"The file system at {folder} cannot lock files ({error.strerror})."
    return red("ledger", found, "Name a state folder on a local disk, or mount the share with locks.")


def folders_of(kit: InstalledKit) -> dict[str, Path]:
    """Where a participant keeps things on this machine; only the kit where its profile cannot be read."""
    folders = {"kit": kit.folder}
    if runtime_of(kit.folder) is not None:
        return folders
    try:
        if kit.is_site:
            profile = read_profile(kit.name, kit.local, kit.folder)
            folders |= {"state": profile.state, "cache": profile.cache}
        else:
            folders |= {"state": read_state_folder(kit.name, kit.local, kit.folder)}
            named = read_folders(kit.folder)
            folders |= {"jobs": named.jobs, "snapshots": named.snapshots} if named is not None else {}
    except FedsegError:
        # The check of the profile says what is wrong with it.
        return folders
    return folders

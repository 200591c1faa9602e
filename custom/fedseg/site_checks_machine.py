"""Checks of a machine: versions, packages, GPU, disk, folders."""

from __future__ import annotations

import fcntl
import importlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import torch

from fedseg.errors import FedsegError
from fedseg.executors.site_profile import read_profile, read_state_folder
from fedseg.installed_kit import InstalledKit
from fedseg.kit_manifest import read_manifest
from fedseg.site_check_result import CheckOptions, CheckResult, green, listed, nearest_folder, red, yellow
from fedseg.version import __version__

LEAST_FREE, ENOUGH_FREE = 2 * 2**30, 20 * 2**30
_PINNED = re.compile(r"^([\w.\-]+)==([^;\s]+)$")
_GIBIBYTE = 2**30


def check_versions(kit: InstalledKit, options: CheckOptions) -> Iterator[CheckResult]:
    """fedseg is the version of the federation: jobs of another one are refused."""
    wanted = _version_of(kit)
    wheel = next(iter(sorted(kit.folder.glob("fedseg-*.whl"))), None)
    if wanted is None:
        remedy = "Ask the coordinator which version the federation uses."
        yield yellow("fedseg", f"Version {__version__}; the kit does not say which one it needs.", remedy)
    elif wanted != __version__:
        remedy = f"pip install {wheel}" if wheel else f"Install fedseg {wanted}; the coordinator has its wheel."
        yield red("fedseg", f"Version {__version__} is installed, but the federation uses {wanted}.", remedy)
    else:
        yield green("fedseg", f"Version {__version__}, as the federation.")


def _version_of(kit: InstalledKit) -> str | None:
    """The version of the federation, by the kit's manifest or by the wheel in it."""
    try:
        manifest = read_manifest(kit.folder)
    except FedsegError:
        manifest = None
    if manifest is not None:
        return manifest.fedseg_version
    wheels = sorted(path.name.split("-")[1] for path in kit.folder.glob("fedseg-*.whl"))
    return wheels[0] if wheels else None


def check_packages(kit: InstalledKit, options: CheckOptions) -> Iterator[CheckResult]:
    """Every package that fedseg requires is there in the version with which it was tested, and can be imported."""
    wrong, broken = [], []
    pinned = pinned_packages()
    modules = _modules()
    for name, version in pinned.items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{name} {version} (missing)")
            continue
        # A build for one kind of GPU, such as 2.13.0+cu130, is the same version.
        if found.partition("+")[0] != version:
            wrong.append(f"{name} {version} (found {found})")
        try:
            importlib.import_module(modules.get(_normal(name), _normal(name)))
        except Exception as error:
            broken.append(f"{name} ({type(error).__name__}: {error})")
    if not pinned:
        remedy = "Install the wheel that lies in the kit: pip install fedseg-*.whl"
        yield red("packages", "fedseg is not installed as a package, so its requirements are not known.", remedy)
    if wrong:
        remedy = "Install the wheel that lies in the kit into an environment of its own: pip install fedseg-*.whl"
        yield red("packages", f"Missing or of another version: {listed(wrong)}.", remedy)
    if broken:
        yield red("packages", f"Installed, but cannot be used: {listed(broken)}.", "Install these packages again.")
    if pinned and not wrong and not broken:
        yield green("packages", f"All {len(pinned)} are there, nvflare {metadata.version('nvflare')} among them.")


def pinned_packages() -> dict[str, str]:
    """The packages that the installed fedseg requires, with their versions; empty if it is not installed."""
    try:
        required = metadata.requires("fedseg") or []
    except metadata.PackageNotFoundError:
        return {}
    return {m[1]: m[2] for line in required if (m := _PINNED.match(line.replace(" ", "")))}


def _modules() -> dict[str, str]:
    """Package -> the module by which it is imported."""
    found: dict[str, str] = {}
    for module, packages in metadata.packages_distributions().items():
        for package in packages:
            name = _normal(package)
            if not module.startswith("_") and (name not in found or module.lower() == name):
                found[name] = module
    return found


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "_", name).lower()


def check_gpu(kit: InstalledKit, options: CheckOptions) -> Iterator[CheckResult]:
    """The device on which the site wants to train is there."""
    if not kit.is_site:
        return
    try:
        device = read_profile(kit.name, kit.local, kit.folder).device
    except FedsegError:
        device = "auto"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu":
        yield green("GPU", "Trains on the CPU, as local/fedseg.json says.")
    elif device.startswith("cuda") and int(device.partition(":")[2] or 0) >= count:
        remedy = "Look at `nvidia-smi` and at the driver, or change device in local/fedseg.json."
        yield red("GPU", f"local/fedseg.json wants {device}, but PyTorch sees {count} GPU(s).", remedy)
    elif count == 0:
        remedy = 'Look at `nvidia-smi` and at the driver; if that is meant, write "device": "cpu" in local/fedseg.json.'
        yield yellow("GPU", "None: trains on the CPU, which is many times slower.", remedy)
    else:
        first = torch.cuda.get_device_properties(int(device.partition(":")[2] or 0))
        yield green("GPU", f"{first.name}, {first.total_memory / _GIBIBYTE:.0f} GiB of memory.")


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
    folders = folders_of(kit)
    for what, path in folders.items():
        folder = nearest_folder(path)
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"x")
        except OSError as error:
            remedy = f"Give the user who runs FLARE the right to write in {folder}, or name another folder."
            yield red("folders", f"{what}: {path} cannot be written ({error.strerror}).", remedy)
            continue
        yield green("folders", f"{what}: {path} can be written{'' if path.is_dir() else ', and will be made'}.")
    if "state" in folders:
        yield _locks(nearest_folder(folders["state"]))


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
    """Where a participant keeps things; only the kit's own folder where its profile cannot be read."""
    folders = {"kit": kit.folder}
    try:
        if kit.is_site:
            profile = read_profile(kit.name, kit.local, kit.folder)
            folders |= {"state": profile.state, "cache": profile.cache}
        else:
            folders |= {"state": read_state_folder(kit.name, kit.local, kit.folder)}
    except FedsegError:
        # The check of the profile says what is wrong with it.
        return folders
    return folders

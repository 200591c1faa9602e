"""Checks of a machine: user, versions, packages, GPU."""

from __future__ import annotations

import importlib
import os
import re
import shlex
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from fedseg.deployment.kits.installed_kit import InstalledKit
from fedseg.deployment.kits.manifest import read_manifest
from fedseg.deployment.kits.wheel import wheel_version
from fedseg.deployment.operation.checks.result import CheckOptions, CheckResult, green, listed, red, yellow
from fedseg.errors import FedsegError
from fedseg.site.profile import read_profile
from fedseg.version import __version__

_PINNED = re.compile(r"^([\w.\-]+)==([^;\s]+)$")
_GIBIBYTE = 2**30


def check_user(kit: InstalledKit, options: CheckOptions) -> Iterator[CheckResult]:
    """FLARE does not run with all rights on the machine."""
    if is_root():
        remedy = "Make a user of its own and give it the kit: docs/how-to/walkthrough.md, A user and folders."
        yield yellow("user", "You are root: a fault in a job would have every right on this machine.", remedy)


def is_root() -> bool:
    """Whether who runs this may do everything on the machine."""
    return os.geteuid() == 0


def check_versions(kit: InstalledKit, options: CheckOptions) -> Iterator[CheckResult]:
    """fedseg is the version of the federation: jobs of another one are refused."""
    wheels = _wheels_of(kit)
    wanted, wheel = next(iter(wheels.items()), (None, None))
    if wanted is None:
        remedy = "Ask the coordinator which version the federation uses."
        yield yellow("fedseg", f"Version {__version__}; the kit does not say which one it needs.", remedy)
    elif __version__ not in wheels:
        remedy = (
            f"pip install {shlex.quote(str(wheel))}"
            if wheel
            else f"Install fedseg {wanted}; the coordinator has its wheel."
        )
        yield red("fedseg", f"Version {__version__} is installed, but the federation uses {wanted}.", remedy)
    else:
        yield green("fedseg", f"Version {__version__}, as the federation.")


def _wheels_of(kit: InstalledKit) -> dict[str, Path | None]:
    """Version of the federation -> its wheel in the kit.

    A wheel that came later (`fedseg equip --wheel`) counts in place of the version with which the kit was made.
    """
    try:
        manifest = read_manifest(kit.folder)
    except FedsegError:
        manifest = None
    there = [(version, path) for path in sorted(kit.folder.glob("*.whl")) if (version := wheel_version(path))]
    if manifest is None:
        return dict(there)
    later = [(version, path) for version, path in there if path.name not in manifest.files]
    return dict(later) or {manifest.fedseg_version: dict(there).get(manifest.fedseg_version)}


def check_packages(kit: InstalledKit, options: CheckOptions) -> Iterator[CheckResult]:
    """Every package that fedseg requires is there in the version with which it was tested, and can be imported."""
    pinned, modules = pinned_packages(), _modules()
    versions = {name: _version(name) for name in pinned}
    # A build for one kind of GPU, such as 2.13.0+cu130, is the same version.
    wrong = [
        f"{name} {pinned[name]} ({'missing' if found is None else f'found {found}'})"
        for name, found in versions.items()
        if found is None or found.partition("+")[0] != pinned[name]
    ]
    there = [name for name, found in versions.items() if found is not None]
    broken = [f"{name} ({why})" for name in there if (why := _failure(modules.get(_normal(name), _normal(name))))]
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


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _failure(module: str) -> str:
    """Why a module cannot be imported; empty if it can."""
    try:
        importlib.import_module(module)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


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
    if device != "auto" and not _is_device(device):
        remedy = 'Write "auto", "cpu", "cuda" or "cuda:0" in local/fedseg.json.'
        yield red("GPU", f"local/fedseg.json wants {device!r}, which is no device of PyTorch's.", remedy)
        return
    import torch

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


def _is_device(name: str) -> bool:
    import torch

    try:
        torch.device(name)
    except RuntimeError:
        return False
    return True

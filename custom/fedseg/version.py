"""The version that jobs are stamped with and that sites compare, and those of the packages beside it."""

from importlib.metadata import PackageNotFoundError, version
from platform import python_version

__version__ = "0.6.0"

_PACKAGES = ("nvflare", "monai", "torch", "numpy", "nibabel", "SimpleITK")


def versions() -> dict[str, str]:
    """Versions of fedseg, Python and the packages that decide about results; ``not installed`` where one is missing."""
    found = {"fedseg": __version__, "python": python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found

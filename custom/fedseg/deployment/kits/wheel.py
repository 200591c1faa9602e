"""The wheel of this very package, for the kits: what every site installs."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import fedseg
from fedseg.errors import FedsegError, UsageError
from fedseg.files.shipped import SHIPPED
from fedseg.version import __version__

_NEEDED = ("pyproject.toml", "setup.py", "custom", *SHIPPED)
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", "*.egg-info")


def build_wheel(folder: Path) -> Path:
    """Build the wheel from the sources of the running package; nothing is written beside them.

    Args:
        folder: where the wheel goes.

    Raises:
        UsageError: fedseg was not installed from its repository, so there are no sources.
        FedsegError: pip could not build it.
    """
    root = Path(fedseg.__file__).parents[2]
    if not all((root / name).exists() for name in _NEEDED):
        raise UsageError("--wheel is needed: this fedseg was not installed from its repository, so none can be built.")
    with tempfile.TemporaryDirectory() as scratch:
        sources, built = Path(scratch) / "sources", Path(scratch) / "built"
        sources.mkdir()
        for name in _NEEDED:
            if (root / name).is_dir():
                shutil.copytree(root / name, sources / name, ignore=_LEFT_OUT)
            else:
                shutil.copyfile(root / name, sources / name)
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
        done = subprocess.run([*command, "-w", str(built), str(sources)], capture_output=True, text=True, check=False)
        wheels = sorted(built.glob("*.whl"))
        if done.returncode != 0 or len(wheels) != 1:
            raise FedsegError(f"pip could not build the wheel of fedseg: {done.stderr.strip()[-500:]}")
        return Path(shutil.copy2(wheels[0], folder / wheels[0].name))


def wheel_version(path: Path) -> str | None:
    """The version that the name of a wheel of fedseg states; None for every other file."""
    name, _, rest = path.name.partition("-")
    return rest.partition("-")[0] if name == "fedseg" and path.suffix == ".whl" and "-" in rest else None


def check_wheel(path: Path) -> Path:
    """Refuse a wheel that does not fit what this fedseg writes into a kit: version, list of classes, policy.

    Raises:
        UsageError: it is none, or of another version.
    """
    version = wheel_version(path) if path.is_file() else None
    if version is None:
        raise UsageError(f"--wheel {path} is no wheel of fedseg. Leave it out to build one.")
    if version != __version__:
        raise UsageError(
            f"--wheel {path} is fedseg {version}, and this is fedseg {__version__}, whose lists do not fit it. "
            "Run this command with the version of the wheel."
        )
    return path

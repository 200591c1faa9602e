"""The self-contained form of a job: with fedseg's own code inside, for sites that permit code in jobs (BYOC)."""

from __future__ import annotations

import shutil
from pathlib import Path

import fedseg
from fedseg.errors import ConfigurationError, UsageError
from fedseg.files.outputs import check_copied_folder
from fedseg.files.shipped import FOLDER
from fedseg.jobs.job import Job
from fedseg.version import __version__

# A job runs without the pages and templates that an installed package has.
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", ".*", FOLDER)


def package_job(job: Job, out: Path) -> Path:
    """Copy a job with the package in ``app/custom``.

    Sites need the requirements but not fedseg itself. A site that has fedseg installed uses its own copy, whatever
    lies in the job: Python finds that first. The version check of the executor holds in both cases.

    Args:
        job: the checked job.
        out: folder of the self-contained job; must not exist.

    Returns:
        ``out``.

    Raises:
        UsageError: ``out`` exists, or lies inside the job.
        ConfigurationError: the job was made for another version than the code that would be packed.
    """
    if out.exists():
        raise UsageError(f"--out {out} exists already. Name a new folder.")
    check_copied_folder("--out", out, job.folder)
    if job.plan.fedseg_version != __version__:
        raise ConfigurationError(
            "fedseg_version", job.plan.fedseg_version, f"{__version__}, the version that would be packed"
        )
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        job.write(temporary)
        shutil.copytree(Path(fedseg.__file__).parent, temporary / "app" / "custom" / "fedseg", ignore=_LEFT_OUT)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out

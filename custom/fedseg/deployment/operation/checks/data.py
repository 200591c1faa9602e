"""Checks of a site's profile and of the data that it offers."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from fedseg.data.checks.datalist_check import NO_CASES, check_datalist
from fedseg.data.checks.findings import CheckReport
from fedseg.data.datalist import SPLITS, Datalist, find_datalist, read_datalist
from fedseg.data.never_acquired import without_channels
from fedseg.deployment.kits.container_runtime import runtime_of
from fedseg.deployment.kits.installed_kit import LOCAL, InstalledKit
from fedseg.deployment.operation.checks.result import CheckOptions, CheckResult, green, red, yellow
from fedseg.errors import FedsegError
from fedseg.site.profile import PROFILE_FILE, SiteProfile, read_profile, read_state_folder
from fedseg.tasks.registry import get_task, task_names
from fedseg.tasks.task import Task

_PROFILE = f"{LOCAL}/{PROFILE_FILE}"
_ANY_TASK = "JOB_FOLDER_OR_FILE"
_HOW = "docs/reference/site-profile.md says what belongs there."


def check_profile(kit: InstalledKit, options: CheckOptions) -> Iterator[CheckResult]:
    """``local/fedseg.json`` can be read, and names data and folders."""
    try:
        if not kit.is_site:
            yield green("profile", f"State of the server: {read_state_folder(kit.name, kit.local, kit.folder)}.")
            return
        profile = read_profile(kit.name, kit.local, kit.folder)
    except FedsegError as error:
        yield red("profile", f"{_PROFILE}: {error}", f"Mend {_PROFILE}. {_HOW}")
        return
    if not profile.datasets:
        yield red("profile", f"{_PROFILE} names no data set.", f"Write it under datasets. {_HOW}")
        return
    yield green("profile", f"{_PROFILE} offers {', '.join(sorted(profile.datasets))}.")


def check_data(kit: InstalledKit, options: CheckOptions) -> Iterator[CheckResult]:
    """Every datalist fits its task, by the code of ``fedseg check-data``."""
    profile, runtime = _profile(kit), runtime_of(kit.folder)
    if profile is None:
        return
    for name, path in sorted(profile.datasets.items()):
        if runtime is not None and not find_datalist(path).exists():
            found = f"{path} is not here; in this kit it is a path where {runtime.name} mounts it: not checked."
            how = "fedseg check-data TASK, with the same folder as this machine calls it, and --quick for headers only"
            yield yellow(f"data: {name}", found, f"Check it by hand: {how}.")
        else:
            yield _datalist(name, path, options, profile)


def listed_files(kit: InstalledKit) -> list[Path]:
    """Every file that the site's datalists name, and the datalists; of one that cannot be read only itself."""
    profile, files = _profile(kit), []
    for path in profile.datasets.values() if profile else ():
        files.append(find_datalist(path))
        with contextlib.suppress(FedsegError):
            files += read_datalist(path).files
    return files


def _profile(kit: InstalledKit) -> SiteProfile | None:
    """The site's profile; None for the server, and where the check of the profile says what is wrong."""
    try:
        return read_profile(kit.name, kit.local, kit.folder) if kit.is_site else None
    except FedsegError:
        return None


def _datalist(name: str, path: Path, options: CheckOptions, profile: SiteProfile) -> CheckResult:
    """Of a site that scores only, the cases on which it scores."""
    check, evaluates = f"data: {name}", bool(profile.policy and profile.policy.evaluate_only)
    try:
        datalist = read_datalist(path).with_drawn(profile.drawn_regions(name))
    except FedsegError as error:
        return red(
            check, str(error), f"Mend the path in {_PROFILE}, or make the datalist; see docs/how-to/own-data.md."
        )
    except OSError as error:
        return red(check, f"{path} cannot be read ({error.strerror}).", "Give the user who runs FLARE the right to.")
    task = _task_of(name, datalist, options)
    if task is None:
        return _unchecked(check, name, datalist)
    try:
        datalist = without_channels(task, datalist, profile.lacking(name))
    except FedsegError as error:
        return red(check, str(error), f"Correct the datalist, or lacks in {_PROFILE}. {_HOW}")
    if evaluates:
        datalist = datalist.scored_only
    report = check_datalist(task, datalist, quick=not options.full_data)
    if evaluates and datalist.split(datalist.final_split):
        report = replace(report, findings=tuple(f for f in report.findings if f.code != NO_CASES))
    return _judged(check, path, datalist, report, options)


def _task_of(name: str, datalist: Datalist, options: CheckOptions) -> Task | None:
    """The task that was given for a data set, else the built-in one that its datalist, or its own name, states."""
    if name in options.tasks:
        return options.tasks[name]
    known = next((each for each in (datalist.task, name) if each in task_names()), None)
    return get_task(known) if known else None


def _judged(check: str, path: Path, datalist: Datalist, report: CheckReport, options: CheckOptions) -> CheckResult:
    depth = "every voxel" if options.full_data else "files and headers"
    found = f"{_counts(datalist)}; {depth} against the task {report.task}: {report.summary}."
    # A task that is not built in is known by its name here, and to the command by its file or job only.
    task = report.task if report.task in task_names() else _ANY_TASK
    command = ["fedseg", "check-data", task, str(find_datalist(path))]
    details = shlex.join(command if options.full_data else [*command, "--quick"])
    if not report.ok:
        codes = ", ".join(f"{code} ({count})" for code, count in report.error_counts().items())
        return red(check, f"{found} {codes}.", f"See which, and what to do: {details}")
    if report.warnings:
        codes = ", ".join(sorted({finding.code for finding in report.warnings}))
        return yellow(check, f"{found} {codes}.", f"See which: {details}")
    return green(check, found)


def _unchecked(check: str, name: str, datalist: Datalist) -> CheckResult:
    """Without a task there is only one question: are the files there?"""
    files = [f for s in SPLITS for c in datalist.split(s) for f in (*c.images, *([c.label] if c.label else []))]
    missing = sum(not file.is_file() for file in files)
    if missing:
        return red(check, f"{_counts(datalist)}; {missing} of {len(files)} files are missing.", "Bring them back.")
    found = (
        f"{_counts(datalist)}; all {len(files)} files are there. The task {datalist.task or 'of it'} is not built in."
    )
    return yellow(check, found, f"Check it against the job's task: --task {shlex.quote(name)}={_ANY_TASK}")


def _counts(datalist: Datalist) -> str:
    cases = {split: datalist.split(split) for split in SPLITS}
    parts = [f"{len({c.patient for c in own})} for {split}" for split, own in cases.items() if own]
    return f"Patients: {', '.join(parts) or 'none'}"

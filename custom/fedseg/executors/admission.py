"""Whether this site takes part in a job: asked once, before the first round, and answered with a reason."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from fedseg.contract.combinations import EVERY_REGION, MEANINGS, declared, name_of
from fedseg.contract.plan import Plan
from fedseg.data.checks.datalist_check import NO_CASES, check_datalist
from fedseg.data.datalist import Datalist, read_datalist
from fedseg.data.grid import Grid
from fedseg.data.label_convention import settled, with_convention
from fedseg.data.never_acquired import needed_channels, without_channels
from fedseg.data.problems import FileError
from fedseg.data.reading import read_label
from fedseg.errors import ConfigurationError, DataError, RefusalError
from fedseg.site.profile import SiteProfile
from fedseg.tasks.objective import objective_of
from fedseg.training.demand import check_scoring, check_training
from fedseg.training.hooks import TrainingHook
from fedseg.training.inference import choose_device
from fedseg.version import __version__

logger = logging.getLogger(__name__)
LABELS_LOOKED_AT = 8


def check_version(plan: Plan) -> None:
    """Refuse a job that was made for another version of fedseg."""
    if plan.fedseg_version != __version__:
        raise RefusalError(
            "version", f"The job was made for fedseg {plan.fedseg_version}, but this site runs fedseg {__version__}."
        )


def check_plan(plan: Plan, digest: str | None) -> None:
    """Refuse a server whose plan is not the one that this site was given."""
    if digest != plan.digest:
        raise RefusalError("plan", "The server's plan differs from the one in this site's copy of the job.")


def admit_data(
    plan: Plan, profile: SiteProfile, hooks: Sequence[TrainingHook] = (), evaluates: bool = False
) -> Datalist:
    """The site's datalist, once it is known to fit the task.

    Args:
        plan: of the job.
        profile: of the site.
        hooks: of the job's method, which may take memory.
        evaluates: whether the site scores models only. Then the list has the cases alone on which they are scored, and
            no file of another case is opened.

    Raises:
        RefusalError: the data is missing or damaged (``data``), its channels or labels are not the task's (``task``),
            or the job would not fit into memory (``memory``). The text counts problems; which files they are in stands
            in the site's own log.
    """
    path = profile.datalist(plan.dataset)
    _check_lacking(plan, profile)
    try:
        drawn = read_datalist(path).with_drawn(profile.drawn_regions(plan.dataset))
        datalist = without_channels(plan.task, drawn, profile.lacking(plan.dataset))
        if evaluates:
            datalist = _scored_only(datalist.scorable)
        report = check_datalist(plan.task, datalist, quick=True)
    except DataError as error:
        logger.error("The site's datalist cannot be used: %s", error)
        raise RefusalError("data", "The site's datalist is missing or cannot be read.") from None
    errors = [f for f in report.errors if not (evaluates and f.code == NO_CASES)]
    for finding in errors:
        logger.error("%s", finding)
    channels = [f for f in errors if f.code in ("channel-count", "channel-missing")]
    if channels:
        raise RefusalError("task", f"{len(channels)} case(s) do not have the channels {list(plan.task.channels)}.")
    if errors:
        raise RefusalError("data", f"The site's data has {len(errors)} error(s); `fedseg check-data` lists them.")
    if not evaluates and any(count < report.cases for count in report.statistics["cases_drawn"].values()):
        _check_partial(plan, hooks)
    _check_memory(plan, profile, report.grids, hooks, evaluates)
    return _check_labels(plan, datalist if evaluates else _taught(datalist, hooks))


def _taught(datalist: Datalist, hooks: Sequence[TrainingHook]) -> Datalist:
    """The cases that a job can use: those with weak labels for training alone, and only if its method takes them."""
    if any(hook.weak_labels for hook in hooks):
        return datalist.scorable
    for split in ("training", "validation"):
        if not datalist.labelled.split(split):
            text = f"No {split} case of this site is labelled voxel by voxel, and the job's method takes no others."
            raise RefusalError("task", text)
    if left := len(datalist.training) - len(datalist.labelled.training):
        logger.warning("%d training case(s) are not labelled voxel by voxel; this job leaves them out.", left)
    return datalist.labelled


def _check_partial(plan: Plan, hooks: Sequence[TrainingHook]) -> None:
    """Refuse a job that needs every region drawn; the server, which does not know the labels, cannot."""
    needing = [name_of(hook) for hook in hooks if EVERY_REGION in declared(hook, "needs")]
    needing += ["Split training"] if plan.split is not None else []
    if needing:
        raise RefusalError("task", f"{needing[0]} needs {MEANINGS[EVERY_REGION]}, and this site has others.")


def _check_lacking(plan: Plan, profile: SiteProfile) -> None:
    needed = needed_channels(plan.task, profile.lacking(plan.dataset))
    if needed:
        text = f"This site never has {', '.join(needed)}, without which the task {plan.task.name} takes no case."
        raise RefusalError("task", text)


def _scored_only(datalist: Datalist) -> Datalist:
    found = datalist.scored_only
    if not found.split(found.final_split):
        raise RefusalError("data", "This site has no test or validation cases on which a model could be scored.")
    return found


def _check_memory(
    plan: Plan, profile: SiteProfile, grids: Sequence[Grid], hooks: Sequence[TrainingHook], evaluates: bool
) -> None:
    device = choose_device(profile.device)
    on_gpu = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    try:
        if evaluates:
            check_scoring(plan, grids, profile.memory, on_gpu)
        else:
            check_training(plan, grids, profile.memory, on_gpu, hooks)
    except ConfigurationError as error:
        raise RefusalError("memory", str(error)) from None


def _check_labels(plan: Plan, datalist: Datalist) -> Datalist:
    """The datalist with its label convention, once some label files fit it; the others are looked at in use."""
    try:
        datalist = settled(plan.task, datalist)
        task = with_convention(plan.task, datalist.convention)
    except DataError as error:
        logger.error("%s", error)
        raise RefusalError("task", f"Label files do not follow one convention of the task {plan.task.name}.") from None
    for case in (*datalist.training, *datalist.validation, *datalist.test)[:LABELS_LOOKED_AT]:
        try:
            if case.label is not None:
                objective_of(task).check_label(read_label(case.label)[0])
        except DataError as error:
            logger.error("%s: %s", case.label, error)
            if isinstance(error, FileError) and error.code != "label-values":
                raise RefusalError("data", "A label file cannot be read; `fedseg check-data` tells which.") from None
            raise RefusalError(
                "task", f"Label files hold values that are not those of the task {plan.task.name}."
            ) from None
    return datalist

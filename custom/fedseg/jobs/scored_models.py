"""Models that a job brings as files, to be scored at every site."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fedseg.contract.allowed_job_files import MODEL_ENDING, MODELS_FOLDER, is_model_file
from fedseg.contract.plan import Plan
from fedseg.errors import ConfigurationError, UsageError
from fedseg.files.names import SITE
from fedseg.models.model_file import fitting_weights
from fedseg.workflows.run.settings import RunSettings


def models_in(folder: Path) -> dict[str, Path]:
    """The model files in a folder that a user names, by name.

    Raises:
        UsageError: the folder does not exist, or has no model file.
        ConfigurationError: a file has a name that a row of the matrix cannot have.
    """
    if not folder.is_dir():
        raise UsageError(f"--models {folder} is no folder. Name one that holds model files (*{MODEL_ENDING}).")
    found = {path.name.removesuffix(MODEL_ENDING): path for path in sorted(folder.glob(f"*{MODEL_ENDING}"))}
    if not found:
        raise UsageError(f"--models {folder} has no model file (*{MODEL_ENDING}).")
    for name, path in found.items():
        if not is_model_file(path.name):
            raise ConfigurationError(f"--models: {path.name}", name, f"made of {SITE.made_of}", "Rename the file.")
    return found


def check_models(plan: Plan, models: Mapping[str, Path], settings: RunSettings) -> None:
    """Refuse models that nothing scores, models that do not fit the plan, and a job that has none and trains none.

    Args:
        plan: of the job.
        models: that it brings, by name.
        settings: of its workflow.

    Raises:
        ConfigurationError: they have no meaning in this job, or are missing.
        DataError: a file is no model, or one of another task or network than the job's.
    """
    if models and not settings.cross_site:
        remedy = "Set workflow.cross_site to true to have them scored at every site."
        raise ConfigurationError("models of the job", sorted(models), "left out without workflow.cross_site", remedy)
    if not settings.num_rounds and not models:
        remedy = f"Name their folder with --models, or put them into app/config/{MODELS_FOLDER} of the job."
        raise ConfigurationError("models of the job", None, "given where workflow.num_rounds is 0", remedy)
    for path in models.values():
        fitting_weights(plan, path)

"""What the cases of an experiment's sites are like, counted once for the same cases."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from fedseg.data.progress import Progress, silent
from fedseg.errors import ConfigurationError
from fedseg.experiments.cohort import Cohort
from fedseg.files.documents import write_whole
from fedseg.statistics.document import FILE, write_statistics
from fedseg.statistics.of_datalists import counted_patients, statistics_of
from fedseg.tasks.task import Task
from fedseg.version import versions

KEPT = "statistics"


def check_minimum(cohort: Cohort, minimum: int | None) -> None:
    """Refuse a minimum that no site reaches, before anything is trained.

    Raises:
        ConfigurationError: says how many patients the largest site has.
    """
    most = max(map(counted_patients, cohort.sites.values()))
    if minimum is not None and minimum > most:
        raise ConfigurationError("statistics", minimum, f"at most {most}, what the largest site has, or left out")


def leave_statistics(task: Task, cohort: Cohort, minimum: int, out: Path, progress: Progress = silent) -> Path:
    """Write ``statistics.json`` as ``fedseg statistics`` writes it; what was counted of the same cases is used again.

    Args:
        task: of the experiment.
        cohort: its cases.
        minimum: fewest patients behind each number.
        out: folder of the experiment.
        progress: shows how far the reading is.

    Raises:
        DataError: no site has so many patients, or a case cannot be read.
    """
    digests = {site: cohort.digest(datalist) for site, datalist in cohort.sites.items()}
    said = json.dumps([task.to_dict(), digests, minimum, versions()], sort_keys=True)
    kept = out / KEPT / f"{hashlib.sha256(said.encode()).hexdigest()[:16]}.json"
    if not kept.is_file():
        write_statistics(statistics_of(task, cohort.sites, minimum, progress), kept)
    return write_whole(out / FILE, kept.read_bytes())

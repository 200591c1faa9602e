"""Statistics of data on this machine, in the form in which they would leave each site."""

from __future__ import annotations

from collections.abc import Mapping

from fedseg.data.datalist import Datalist
from fedseg.data.label_convention import settled, with_convention
from fedseg.data.progress import Progress, silent
from fedseg.errors import DataError
from fedseg.statistics.document import FederationStatistics
from fedseg.statistics.measuring import measure
from fedseg.statistics.site_statistics import Statistics, released
from fedseg.tasks.task import Task

SPLITS = ("training", "validation")


def statistics_of(
    task: Task, datalists: Mapping[str, Datalist], minimum: int, progress: Progress = silent
) -> FederationStatistics:
    """The statistics of the training and validation cases of several sites.

    Args:
        task: whose cases they are of.
        datalists: by site.
        minimum: fewest patients behind each number; a site with fewer tells nothing.
        progress: shows how far the reading is.

    Raises:
        DataError: no site has so many patients, or a case cannot be read.
    """
    sites, left_out = {}, {}
    for site, datalist in datalists.items():
        if counted_patients(datalist) < minimum:
            left_out[site] = f"fewer than {minimum} patients"
        else:
            sites[site] = _statistics(task, datalist, minimum, progress)
    if not sites:
        raise DataError(f"No site has {minimum} patients. Add cases, or lower the minimum where nothing leaves.")
    return FederationStatistics(task, sites, left_out)


def counted_patients(datalist: Datalist) -> int:
    """How many patients the statistics of a site are of."""
    return len({case.patient for split in SPLITS for case in datalist.split(split)})


def _statistics(task: Task, datalist: Datalist, minimum: int, progress: Progress) -> Statistics:
    task = with_convention(task, settled(task, datalist).convention)
    cases = [case for split in SPLITS for case in datalist.split(split)]
    return released(measure(task, cases, progress=progress), minimum)

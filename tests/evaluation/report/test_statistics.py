"""The tables of statistics: a median stands without its error only where that is a bin's."""

from fedseg.evaluation.report.statistics import statistics_tables
from fedseg.statistics.document import FederationStatistics
from fedseg.statistics.histogram import Histogram
from fedseg.statistics.quantities import quantities
from fedseg.statistics.site_statistics import Statistics
from statistics_of_tiny import TINY

NAME = f"intensity: {TINY.channels[0]}"
SCALE = quantities(TINY, fine=True).scales[NAME]


def shown(bins, noise=None):
    part = Statistics(4, 4, 0 if noise else 4, noise is None, {NAME: Histogram(SCALE, bins)}, noise=noise)
    tables = statistics_tables(FederationStatistics(TINY, {"a": part}))
    return next((table.rows[0][1] for caption, table in tables.items() if caption.startswith("Intensities")), None)


def test_a_median_of_single_bins_stands_alone():
    bin_of_500 = int(SCALE.index(500.0))
    assert shown({(bin_of_500, bin_of_500): 4.0}) == "499 (499 to 499)"


def test_a_median_of_joined_bins_has_its_error_beside_it():
    low, high = SCALE.bounds(1280, 1295)
    value, error = f"{(low + high) / 2:.3g}", f"{(high - low) / 2:.3g}"
    assert shown({(1280, 1295): 4.0}) == f"{value} +- {error} ({value} +- {error} to {value} +- {error})"


def test_what_may_be_anything_is_not_told():
    last = SCALE.ends[1]
    assert shown({(0, last): 4.0}) == "n/a"
    bin_of_500 = int(SCALE.index(500.0))
    assert shown({(bin_of_500, bin_of_500): 4.0, (bin_of_500 + 1, last): 1.0}) == "499 (499 to n/a)"


def test_zero_in_its_own_bin_is_told():
    assert shown({(0, 0): 4.0}) == "0 (0 to 0)"

"""The file of a federation's statistics, and the table made from it."""

import json

import pytest

from fedseg.errors import DataError
from fedseg.statistics.document import FederationStatistics, read_statistics, write_statistics
from fedseg.statistics.rows import COLUMNS, statistic_rows
from statistics_of_tiny import TINY, measured, tiny_cases


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sites")
    sites = {site: measured(tiny_cases(folder / site, range(4 * n, 4 * n + 4)), 2) for n, site in enumerate("ab")}
    return FederationStatistics(TINY, sites, {"c": "policy: too few patients"})


def test_what_is_written_is_read(federation, tmp_path):
    path = write_statistics(federation, tmp_path / "statistics.json")
    assert read_statistics(path) == read_statistics(tmp_path) == federation
    content = json.loads(path.read_text("utf-8"))
    assert content["pooled"]["cases"] == 8
    assert content["pairs"][0]["sites"] == ["a", "b"]
    assert content["left_out"] == {"c": "policy: too few patients"}


def test_rows_tell_each_number_with_its_error(federation):
    rows = statistic_rows(federation)
    assert all(len(row) == len(COLUMNS) for row in rows)
    found = {row[:4]: row[4:] for row in rows}
    assert found["all sites", "cases", "", "count"] == (8.0, 0.0)
    assert found["a", "spacing", "foot-head", "median"] == (pytest.approx(1.0), pytest.approx(0.0005))
    value, error = found["a", "volume", "whole", "median"]
    assert error > 0.004 * value
    assert found["a", "orientation", "RAS", "share"] == (1.0, 0.0)
    assert found["a - b", "normalised", "a", "wasserstein"][0] >= 0
    assert found["b", "present", "inner", "share of yes"] == (1.0, 0.0)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"schema": "fedseg-statistics-1", "sites": {}}', '{"schema": "other", "sites": {"a": 1}}'],
)
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "statistics.json").write_text(content)
    with pytest.raises(DataError, match="statistics"):
        read_statistics(tmp_path)


def test_a_changed_file_is_refused(federation, tmp_path):
    path = write_statistics(federation, tmp_path / "statistics.json")
    content = json.loads(path.read_text("utf-8"))
    content["sites"]["a"]["cases"] = "many"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="cannot be used"):
        read_statistics(path)
    with pytest.raises(DataError, match="does not exist"):
        read_statistics(tmp_path / "nowhere.json")

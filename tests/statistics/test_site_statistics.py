"""What a site's statistics look like when they travel, and what is refused on arrival."""

import json

import pytest

from fedseg.errors import DataError
from fedseg.statistics.site_statistics import parse_statistics, pooled
from statistics_of_tiny import TINY, measured, tiny_cases, with_spacings


@pytest.fixture(scope="module")
def statistics(tmp_path_factory):
    return measured(tiny_cases(tmp_path_factory.mktemp("cases"), range(6)), minimum=3)


def test_they_travel_as_json(statistics):
    assert parse_statistics(json.loads(json.dumps(statistics.to_dict())), TINY) == statistics


def test_below_the_minimum_nothing_is_left(tmp_path):
    found = measured(tiny_cases(tmp_path, range(2)), minimum=3)
    assert (found.histograms, found.moments, found.categories) == ({}, {}, {})


def test_merging_is_the_same_in_any_order(tmp_path):
    a, b, c = (measured(tiny_cases(tmp_path / str(n), range(n, n + 2))) for n in (0, 2, 4))
    left, right = a.merge(b).merge(c).to_dict(), c.merge(a.merge(b)).to_dict()
    for part in ("histograms", "categories"):
        assert left[part].keys() == right[part].keys()
    for name, entries in left["histograms"].items():
        assert [e[:2] for e in entries] == [e[:2] for e in right["histograms"][name]]
        assert [e[2] for e in entries] == pytest.approx([e[2] for e in right["histograms"][name]])
    for name, moments in left["moments"].items():
        assert moments == pytest.approx(right["moments"][name], rel=1e-6, abs=1e-6)
    assert pooled({"x": b, "y": a, "z": c}).cases == 6


def test_the_pooled_minimum_is_the_smallest(statistics):
    assert statistics.merge(with_spacings([1.0])).minimum == 1


WRONG = {
    "unknown key": lambda c: c.update(names=["Mr Smith"]),
    "missing key": lambda c: c.pop("moments"),
    "negative count": lambda c: c.update(cases=-1),
    "more patients than cases": lambda c: c.update(patients=c["cases"] + 1),
    "truth as a number": lambda c: c.update(minimum=True),
    "unknown histogram": lambda c: c["histograms"].update({"age": [[1, 1, 2.0]]}),
    "text in a histogram": lambda c: c["histograms"].update({"shape: foot-head": [[20, 20, "Mr Smith"]]}),
    "bin outside": lambda c: c["histograms"].update({"shape: foot-head": [[0, 10**9, 1.0]]}),
    "bins turned round": lambda c: c["histograms"].update({"shape: foot-head": [[30, 20, 1.0]]}),
    "bin twice": lambda c: c["histograms"].update({"shape: foot-head": [[20, 20, 1.0]] * 2}),
    "weight not finite": lambda c: c["histograms"].update({"shape: foot-head": [[20, 20, float("inf")]]}),
    "unknown category": lambda c: c["categories"].update({"maker": {"St. Elsewhere": 5.0}}),
    "category not finite": lambda c: c["categories"].update({"maker": {"GE": float("nan")}}),
    "moments of nothing": lambda c: c["moments"].update({"volume: inner": [0.0, 1.0, 1.0]}),
    "negative deviation": lambda c: c["moments"].update({"volume: inner": [1.0, 1.0, -1.0]}),
    "mean beyond reason": lambda c: c["moments"].update({"volume: inner": [1.0, -1e308, 0.0]}),
    "deviation beyond reason": lambda c: c["moments"].update({"volume: inner": [5e-324, 0.0, 1e30]}),
    "noise beyond reason": lambda c: c.update(noise={"variance": 1e308}),
    "unknown noise": lambda c: c.update(noise={"mechanism": "hope", "variance": 1.0}),
    "noise with more": lambda c: c.update(noise={"variance": 1.0, "site": 3}),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG.keys())
def test_what_is_not_described_is_refused(statistics, change):
    content = json.loads(json.dumps(statistics.to_dict()))
    change(content)
    with pytest.raises(DataError, match="statistics cannot be used") as error:
        parse_statistics(content, TINY)
    assert "Smith" not in str(error.value)

"""The guard before statistics: their closed form, enough patients behind each number, and the site's budget."""

import json

import pytest
from nvflare.apis.dxo import DXO, DataKind

from fedseg.contract.protocol import COUNT
from fedseg.statistics.measuring import measure
from fedseg.statistics.site_statistics import released
from filters.guard.test_guard import Watched, assert_emptied, assert_passes
from statistics_of_tiny import TINY, tiny_cases
from tiny import make_sites


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    return released(measure(TINY, tiny_cases(tmp_path_factory.mktemp("cases"), range(6))), 5).to_dict()


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSEG_DATA", str(make_sites(tmp_path / "data", {"a": (4, 2)})))
    monkeypatch.setenv("FEDSEG_STATE", str(tmp_path / "state"))
    return Watched(tmp_path / "site", monkeypatch, tmp_path / "data" / "a" / "policy.json")


def leaving(content):
    return DXO(DataKind.METRICS, data=content).to_shareable()


def changed(told, **more):
    return {"statistics": {**json.loads(json.dumps(told)), **more}}


def test_statistics_leave_as_they_are(site, told):
    content = changed(told)
    assert_passes(site.look(leaving(content), COUNT))
    site.policy(statistics=True)
    result = site.look(leaving(content), COUNT)
    assert assert_passes(result)["DXO"]["data"] == content


@pytest.mark.parametrize(
    "more",
    [
        {"patients_by_name": ["a-0"]},
        {"histograms": {"age": [[1, 1, 2.0]]}},
        {"categories": {"maker": {"a-0": 1.0}}},
        {"cases": "a-0"},
        {"moments": {"volume: inner": [1.0, "a-0", 1.0]}},
    ],
)
def test_what_is_not_of_the_closed_form_stays(site, told, more):
    assert_emptied(site.look(leaving(changed(told, **more)), COUNT), "guard", "another form than fedseg's")


def test_nothing_may_stand_beside_them(site, told):
    assert_emptied(site.look(leaving({**changed(told), "a-0": 1.0}), COUNT), "guard", "more than statistics")


def test_the_policy_decides(site, told):
    site.policy(tasks=["tiny"])
    assert_emptied(site.look(leaving(changed(told)), COUNT), "policy", "rule statistics")
    site.policy(statistics=True, min_patients=7)
    assert_emptied(site.look(leaving(changed(told)), COUNT), "policy", "rule min_patients")
    site.policy(statistics=True, min_patients=6)
    assert_emptied(site.look(leaving(changed(told)), COUNT), "policy", "rule min_patients")
    site.policy(statistics=True, epsilon_budget={"*": {"epsilon": 1, "delta": 1e-5}})
    assert_emptied(site.look(leaving(changed(told)), COUNT), "policy", "no epsilon for its statistics")


def test_numbers_of_fewer_patients_than_five_stay_without_a_policy_too(site, told):
    assert_emptied(site.look(leaving(changed(told, minimum=4)), COUNT), "policy", "tells those of 5 at least")


def test_statistics_answer_no_other_task(site, told):
    result = site.look(leaving(changed(told)), "validate")
    assert result.get_return_code() != "OK"

"""Arrays before the first round, and arrays that parts of a network keep at the site: executor, filters and guard."""

import json

import numpy as np
import pytest
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.fl_constant import FLContextKey
from nvflare.app_common.abstract.fl_model import FLModel

from executors.test_training import assert_refused
from fedseg.contract.protocol import RUN_ID, STEPS
from fedseg.contract.report import parse_report
from fedseg.filters.noise import GaussianNoise
from fedseg.filters.norm_clip import NormClip
from fedseg.filters.share_fraction import ShareFraction
from fedseg.training.methods.harmofl import HarmoFL
from filters.guard.test_guard import Watched, assert_emptied, assert_passes, data
from tiny import PLAN, make_sites
from toy_parts import NAMES, declare

HARMONISED = {**PLAN, "network": {**PLAN["network"], "parts": [{"name": "amplitude", "mode": "window"}]}}
SPECTRUM = "shared:amplitude/spectrum"


class ExtrasClip(NormClip):
    accepts_shared_arrays = True


@pytest.fixture
def make_site(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSEG_DATA", str(make_sites(tmp_path / "data", {"a": (3, 2)})))
    monkeypatch.setenv("FEDSEG_STATE", str(tmp_path / "state"))

    def make(declaration):
        return Watched(tmp_path / "site", monkeypatch, tmp_path / "data" / "a" / "policy.json", declaration)

    return make


@pytest.fixture
def site(make_site):
    site = make_site(HARMONISED)
    site.executor.session.hooks, site.hook = ["harmofl"], HarmoFL()
    engine = site.context.get_engine()
    engine.get_component = {"harmofl": site.hook}.get
    engine.get_all_components = lambda: {"guard": site.guard, "harmofl": site.hook}
    site.shared = []
    site.context.get_prop(FLContextKey.RUNNER).task_result_filters["share/out"] = site.shared
    return site


def share(site, chain=()):
    """The answer of the site's executor to ``share``, after the filters of that task."""
    site.shared[:] = chain
    result = site.ask("share", FLModel(metrics={"share": 1.0}, meta={RUN_ID: "run"}))
    for each in chain:
        result = each.process(result, site.context)
    return result


def test_the_arrays_leave_as_an_update_that_holds_nothing_else(site):
    result = assert_passes(site.look(share(site), "share"))
    dxo = from_shareable(result)
    assert (dxo.data_kind, set(dxo.data)) == (DataKind.WEIGHT_DIFF, {SPECTRUM})
    expected = site.executor.session.trainer.arrays_before_rounds()["amplitude/spectrum"]
    np.testing.assert_array_equal(dxo.data[SPECTRUM], expected)
    assert expected.shape == (1, 1, 3, 3, 3)


def test_filters_of_the_task_see_them_and_the_guard_wants_to_know(site):
    result = share(site, [ExtrasClip(0.01)])
    assert np.linalg.norm(from_shareable(result).data[SPECTRUM]) == pytest.approx(0.01)
    assert [step["filter"] for step in from_shareable(result).meta[STEPS]] == ["ExtrasClip"]
    assert_passes(site.look(result, "share"))
    bare = share(site)
    site.shared[:] = [ExtrasClip(0.01)]
    assert_emptied(site.look(bare, "share"), "guard", "did not go through the job's filters")


def test_a_filter_that_cannot_protect_them_lets_nothing_out(site, tmp_path):
    assert_refused(share(site, [NormClip(1.0)]), "privacy", "NormClip cannot protect the shared arrays", tmp_path)


def test_a_site_whose_policy_gives_no_statistics_refuses_by_that_name(site, tmp_path):
    result = share(site)
    site.policy()
    assert_emptied(site.look(result, "share"), "policy", "rule statistics: the job asks for statistics of the data")
    assert_refused(site.prepare(), "policy", "rule statistics: the job asks for statistics of the data", tmp_path)
    site.policy(statistics=True)
    assert_passes(site.look(share(site), "share"))


@pytest.mark.parametrize(
    ("rules", "said"), [({"require_clip": True}, "rule require_clip"), ({"max_bytes": 99}, "max_b")]
)
def test_the_policy_of_updates_holds_for_them(site, rules, said):
    result = share(site)
    site.policy(statistics=True, **rules)
    assert_emptied(site.look(result, "share"), "policy", said)


def test_a_guarantee_of_the_updates_does_not_cover_them(site, tmp_path):
    result = share(site)
    site.filters[:] = [GaussianNoise(1.0, 5.0)]
    assert_emptied(site.look(result, "share"), "privacy", "guarantee does not cover")
    assert_refused(share(site), "privacy", "guarantee does not cover", tmp_path)


@pytest.mark.parametrize(
    "tamper",
    [
        lambda content, weights: content.update(weights),
        lambda content, weights: content.update({"voxels": np.ones(3, np.float32)}),
    ],
)
def test_nothing_else_leaves_in_this_task(site, tamper):
    result = share(site)
    tamper(data(result), site.weights())
    assert_emptied(site.look(result, "share"), "guard", "more than a method's shared arrays before the first round")


def test_the_amplitudes_of_the_model_do_not_leave_again(site):
    site.weights = lambda weights=site.weights: {n: v + 1 if "spectrum" in n else v for n, v in weights().items()}
    result = site.update()
    assert set(data(result)) == {name for name in site.weights() if "spectrum" not in name}
    data(result)["parts.amplitude.spectrum"] = np.zeros((1, 1, 3, 3, 3), np.float32)
    assert_emptied(site.look(result), "guard", "arrays that this site does not share")


@pytest.mark.parametrize("arguments", [{"private": True}, {"sites": ["b"]}, {"from_round": 1}])
@pytest.mark.parametrize("chain", [[], [ShareFraction(0.5)]])
def test_an_array_that_a_part_keeps_is_in_no_update(make_site, monkeypatch, arguments, chain):
    site = make_site(declare(monkeypatch, **arguments))
    result = assert_passes(site.look(site.update(chain)))
    assert not any(name in str(value) for name in NAMES for value in data(result))
    dense = site.update()
    data(dense).update({NAMES[0]: np.zeros((1, 1, 1, 1, 1), np.float32)})
    assert_emptied(site.look(dense), "guard", "arrays that this site does not share")


def test_a_sparse_update_cannot_hide_them(make_site, monkeypatch):
    """The names stand in the layout of such an update: one that was made without the part is known by them."""
    plan = declare(monkeypatch)
    site = make_site(plan)
    result = site.update([ShareFraction(0.5)])
    own = {**plan, "network": {**plan["network"], "parts": [{"name": "affine", "private": True}]}}
    (site.folder / "app" / "config" / "fedseg.json").write_text(json.dumps(own))
    assert_emptied(site.look(result), "guard", "arrays that this site does not share")


def test_a_model_with_private_arrays_does_not_leave_as_a_whole(make_site, monkeypatch, tmp_path):
    site = make_site(declare(monkeypatch, private=True))
    site.update()
    reply = site.ask("submit_model", FLModel(metrics={"x": 1.0}))
    assert_refused(reply, "privacy", "keeps arrays at its sites", tmp_path)
    model = DXO(DataKind.WEIGHTS, data=site.weights()).to_shareable()
    assert_emptied(site.look(model, "submit_model"), "policy", "rule submit_model")


def test_noise_with_a_guarantee_may_cover_them(site):
    """The filter of this task clips, adds noise and charges the ledger, also where the updates have a guarantee."""
    site.filters[:] = [GaussianNoise(1.0, 5.0)]
    result = share(site, [GaussianNoise(0.1, 5.0)])
    report = parse_report(from_shareable(result).meta)
    assert report.epsilon > 0
    bare = site.executor.session.trainer.arrays_before_rounds()["amplitude/spectrum"]
    assert not np.allclose(from_shareable(result).data[SPECTRUM], bare, atol=0.1)
    assert_passes(site.look(result, "share"))

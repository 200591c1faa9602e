"""A site that scores only, and one with fewer cases than it tells of: what it answers, refuses and keeps back."""

import json

import numpy as np
import pytest
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.fl_constant import ReturnCode
from nvflare.app_common.abstract.fl_model import FLModel

from executors.test_training import Site, assert_refused
from fedseg.contract.protocol import AS_IT_IS, EVALUATE, OWN_MODEL, PLAN_DIGEST, REASON, RUN_ID, SPLITS, TEXT
from fedseg.contract.report import META_KEY
from fedseg.data.datalist import Datalist, read_datalist, write_datalist
from fedseg.executors.scoring import _summary
from fedseg.executors.training import SegmentationExecutor
from fedseg.filters.guard.guard import Guard
from fedseg.tasks.objective import ScoredCase
from fedseg.tasks.segmentation.metrics import CaseScore
from fedseg.training.trainer import SiteTrainer
from tiny import make_sites


@pytest.fixture
def site(tmp_path, monkeypatch):
    data = make_sites(tmp_path / "data", {"a": (3, 2)}, with_test=True)
    monkeypatch.setenv("FEDSEG_DATA", str(data))
    monkeypatch.setenv("FEDSEG_STATE", str(tmp_path / "state"))
    site = Site(tmp_path / "site", monkeypatch)
    site.context.get_engine().get_all_components = lambda: {"guard": Guard()}
    return site


def allow(tmp_path, **rules):
    (tmp_path / "data" / "a" / "policy.json").write_text(json.dumps(rules))


def prepare(site, evaluate=()):
    meta = {PLAN_DIGEST: site.plan.digest, RUN_ID: "run", **({EVALUATE: list(evaluate)} if evaluate else {})}
    return site.ask("prepare", FLModel(metrics={"prepare": 1.0}, meta=meta))


def score(site, splits=("final", "validation")):
    meta = {RUN_ID: "run", SPLITS: list(splits)}
    return site.ask("validate", DXO(DataKind.WEIGHTS, data=site.weights(), meta=meta))


def test_it_tells_that_it_scores_and_no_count(site, tmp_path):
    allow(tmp_path, evaluate_only=True)
    assert from_shareable(prepare(site)).data == {"evaluates": True}
    assert from_shareable(score(site, ["final"])).data["final"]["cases"] == 1


def test_it_refuses_to_train_with_its_reason_and_goes_on_scoring(site, tmp_path):
    allow(tmp_path, evaluate_only=True)
    assert prepare(site).get_return_code() == ReturnCode.OK
    for reply in (
        site.train(),
        site.ask("submit_model", FLModel(metrics={"x": 1.0})),
        site.ask("share", FLModel(metrics={"x": 1.0})),
    ):
        said = "rule evaluate_only: the job asks it to train, or for more than scores; this site scores models and "
        said += "never trains"
        assert_refused(reply, "policy", said, tmp_path)
    assert not list((tmp_path / "state").rglob("round-*"))
    assert score(site).get_return_code() == ReturnCode.OK


def test_the_trainer_of_such_a_site_has_no_training_case(site, tmp_path):
    allow(tmp_path, evaluate_only=True)
    prepare(site)
    trainer = site.executor.session.trainer
    assert [trainer.count(split) for split in ("training", "validation", "test")] == [0, 0, 1]


def test_a_site_that_a_job_leaves_out_does_not_train_in_this_run(site, tmp_path):
    assert from_shareable(prepare(site, ["a", "z"])).data == {"evaluates": True}
    assert_refused(site.train(), "state", "asked this site to score models only", tmp_path)
    assert from_shareable(prepare(site, ["z"])).data["training"] == 0, "of the run that was begun"


def test_min_cases_are_training_cases_and_bind_no_site_that_scores_only(site, tmp_path):
    allow(tmp_path, evaluate_only=True, min_cases=50)
    assert prepare(site).get_return_code() == ReturnCode.OK


def test_a_site_with_test_cases_only_may_score_and_one_without_any_may_not(site, tmp_path):
    allow(tmp_path, evaluate_only=True)
    path = tmp_path / "data" / "a" / "datalist.json"
    listed = read_datalist(path)
    write_datalist(Datalist(test=listed.test, task="tiny"), path)
    assert prepare(site).get_return_code() == ReturnCode.OK
    site.executor.session.trainer = None
    write_datalist(Datalist(training=listed.training, task="tiny"), path)
    assert_refused(prepare(site), "data", "no test or validation cases", tmp_path)


def test_scores_of_too_few_cases_are_withheld_and_their_number_too(site, tmp_path):
    allow(tmp_path, min_scored_cases=2)
    data = from_shareable(score(site)).data
    assert data["final"] == {"split": "test", "withheld": True, "fewer_than": 2, "of": "cases"}
    assert data["validation"]["cases"] == 2
    allow(tmp_path, min_scored_cases=3)
    assert from_shareable(score(site)).data["validation"]["fewer_than"] == 3


def test_cases_of_too_few_patients_are_too_few(site, tmp_path):
    path = tmp_path / "data" / "a" / "datalist.json"
    content = json.loads(path.read_text("utf-8"))
    content["validation"] = [{**case, "patient": "one"} for case in content["validation"]]
    path.write_text(json.dumps(content))
    allow(tmp_path, min_scored_cases=2)
    part = from_shareable(score(site)).data["validation"]
    assert part == {"split": "validation", "withheld": True, "fewer_than": 2, "of": "patients"}


def test_a_report_of_a_round_tells_no_score_of_too_few_cases(site, tmp_path):
    allow(tmp_path, min_scored_cases=3)
    report = from_shareable(site.train()).meta[META_KEY]
    assert report["val_loss"] is None
    assert not report["val_scores"]
    assert report["train_loss"] is not None
    allow(tmp_path, min_scored_cases=2)
    assert from_shareable(site.train(round_number=1)).meta[META_KEY]["val_scores"]["mean"] is not None


def test_a_report_of_a_round_tells_no_mean_of_a_region_that_too_few_cases_have(site, tmp_path, monkeypatch):
    """Two validation cases, one without the inner region: its mean over one case would be that patient's score."""
    scored = [
        ScoredCase("one", 0.5, CaseScore(dice={"inner": 0.9, "whole": 0.6}, empty={}), "one"),
        ScoredCase("two", 0.7, CaseScore(dice={"inner": None, "whole": 0.2}, empty={}), "two"),
    ]
    monkeypatch.setattr(SiteTrainer, "validate", lambda *a, **k: scored)
    report = from_shareable(site.train()).meta[META_KEY]
    assert report["val_scores"] == {"inner": 0.9, "whole": pytest.approx(0.4), "mean": pytest.approx(0.65)}
    allow(tmp_path, min_scored_cases=2)
    report = from_shareable(site.train(round_number=1)).meta[META_KEY]
    assert report["val_scores"] == {"inner": None, "whole": pytest.approx(0.4), "mean": pytest.approx(0.4)}
    assert report["val_loss"] == pytest.approx(0.6), "over both"


def test_a_report_of_a_round_tells_no_mean_of_a_region_that_too_few_patients_have(site, tmp_path, monkeypatch):
    """Three cases of two patients; the inner region is in both cases of one patient only."""
    scored = [
        ScoredCase("one", 0.5, CaseScore(dice={"inner": 0.9, "whole": 0.6}, empty={}), "p"),
        ScoredCase("two", 0.7, CaseScore(dice={"inner": 0.5, "whole": 0.2}, empty={}), "p"),
        ScoredCase("three", 0.6, CaseScore(dice={"inner": None, "whole": 0.1}, empty={}), "q"),
    ]
    monkeypatch.setattr(SiteTrainer, "validate", lambda *a, **k: scored)
    allow(tmp_path, min_scored_cases=2)
    report = from_shareable(site.train()).meta[META_KEY]
    assert report["val_scores"] == {"inner": None, "whole": pytest.approx(0.3), "mean": pytest.approx(0.3)}
    told = _summary(site.executor.session, site.executor.session.trainer.objective, scored)
    assert (told["dice"]["inner"], told["defined"]) == (None, {"inner": 0, "whole": 3})


def test_a_number_of_too_few_cases_does_not_leave_where_scores_are_withheld_anyway(site, tmp_path):
    allow(tmp_path, scores=False)
    assert from_shareable(score(site)).data == {"final": {"split": "test", "cases": 1, "withheld": True}}
    allow(tmp_path, scores=False, min_scored_cases=2)
    few = {"split": "test", "withheld": True, "fewer_than": 2, "of": "cases"}
    assert from_shareable(score(site)).data == {"final": few}


def test_a_site_that_is_left_out_opens_no_training_case_though_its_process_was_started_anew(site):
    assert from_shareable(prepare(site, ["a"])).data == {"evaluates": True}
    site.executor = SegmentationExecutor()
    meta = {RUN_ID: "run", SPLITS: ["final"], EVALUATE: ["a"]}
    reply = site.ask("validate", DXO(DataKind.WEIGHTS, data=site.weights(), meta=meta))
    assert from_shareable(reply).data["final"]["cases"] == 1
    trainer = site.executor.session.trainer
    assert [trainer.count(split) for split in ("training", "validation", "test")] == [0, 0, 1]
    assert site.train().get_return_code() != ReturnCode.OK


def test_a_model_that_lacks_layers_is_not_scored_where_nothing_is_trained(site, tmp_path):
    assert score(site, ["final"]).get_return_code() == ReturnCode.OK
    allow(tmp_path, evaluate_only=True)
    assert prepare(site).get_return_code() == ReturnCode.OK
    trainer = site.executor.session.trainer
    trainer.private = frozenset(list(site.weights())[:1])
    assert_refused(score(site, ["final"]), "state", "has layers that stay at the sites that train", tmp_path)


def test_a_model_that_is_to_be_scored_as_it_is_gets_no_layer_of_the_site(site, tmp_path, monkeypatch):
    """The site's own layers are zeros; of a model of the run they take the places of what was sent."""
    prepare(site)
    trainer, sent, scored = site.executor.session.trainer, site.weights(), []
    name = next(iter(sent))
    trainer.private, trainer.state, trainer._own = frozenset({name}), None, {name: np.zeros_like(sent[name])}
    validate = SiteTrainer.validate

    def noting(self, weights, *more, **named):
        scored.append(weights)
        return validate(self, weights, *more, **named)

    monkeypatch.setattr(SiteTrainer, "validate", noting)
    for as_it_is in (False, True):
        meta = {RUN_ID: "run", SPLITS: ["final"], AS_IT_IS: as_it_is}
        assert site.ask("validate", DXO(DataKind.WEIGHTS, data=sent, meta=meta)).get_return_code() == ReturnCode.OK
    assert not scored[0][name].any()
    np.testing.assert_array_equal(scored[1][name], sent[name])
    allow(tmp_path, evaluate_only=True)
    prepare(site)
    site.executor.session.trainer.private = frozenset({name})
    assert site.ask("validate", DXO(DataKind.WEIGHTS, data=sent, meta=meta)).get_return_code() == ReturnCode.OK


def test_a_personal_model_needs_a_method_that_keeps_one_and_a_rule_of_its_own(site, tmp_path):
    ask = FLModel(metrics={"x": 1.0}, meta={OWN_MODEL: "personal"})
    assert_refused(site.ask("submit_model", ask), "weights", "keeps no personal model", tmp_path)
    allow(tmp_path, submit_model=True)
    reply = site.ask("submit_model", FLModel(metrics={"x": 1.0}, meta={OWN_MODEL: "personal"}))
    assert (reply.get_header(REASON), "rule submit_personal_model" in reply.get_header(TEXT)) == ("policy", True)

"""What a job asks, read from FLARE's objects, and each rule of a site's policy against it."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.fl_constant import FLContextKey, ReservedKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.widgets.convert_to_fed_event import ConvertToFedEvent

from executors.test_training import Site
from fedseg.contract.plan import parse_plan
from fedseg.contract.protocol import REASON, TEXT
from fedseg.contract.report import META_KEY
from fedseg.errors import RefusalError
from fedseg.executors.refusals import (
    JobTerms,
    check_cases,
    check_features,
    check_gift,
    check_job,
    check_statistics,
    check_submission,
    curves_leave,
    job_terms,
)
from fedseg.executors.statistics import StatisticsExecutor
from fedseg.executors.training import SegmentationExecutor
from fedseg.filters.dp_sgd import DPSGD
from fedseg.filters.encrypt import EncryptUpdate
from fedseg.filters.guard.guard import Guard
from fedseg.filters.layers import PrivateLayers
from fedseg.filters.noise import GaussianNoise
from fedseg.filters.norm_clip import NormClip
from fedseg.filters.share_fraction import ShareFraction
from fedseg.networks.weights import get_weights
from fedseg.site.policy import SitePolicy, parse_policy
from fedseg.training.methods.class_weights import ClassWeights
from fedseg.training.methods.fedprox import FedProx
from tiny import PLAN, make_sites

TERMS = JobTerms("brats_partial", "brats", "brats", fraction=0.1, guarded=True)
BUDGET = {"*": {"epsilon": 8, "delta": 1e-5}}


class Foreign:
    """A component that fedseg does not know."""


def context(filters=(), components=(), task="train", name="job"):
    fl_ctx = FLContext()
    runner = SimpleNamespace(
        task_result_filters={f"{task}/out": list(filters)},
        task_data_filters={},
        task_router=SimpleNamespace(task_table={"train": SegmentationExecutor()}),
    )
    engine = SimpleNamespace(get_all_components=lambda: dict(enumerate(components)))
    fl_ctx.set_prop(ReservedKey.ENGINE, engine, private=True)
    fl_ctx.set_prop(FLContextKey.RUNNER, runner, private=True)
    fl_ctx.set_prop(FLContextKey.JOB_META, {"name": name}, private=True)
    return fl_ctx


def refusal(policy, terms):
    with pytest.raises(RefusalError) as caught:
        check_job(parse_policy(policy), terms)
    assert caught.value.reason == "policy"
    return str(caught.value)


@pytest.mark.parametrize(
    ("policy", "good", "bad", "said"),
    [
        ({}, TERMS, replace(TERMS, guarded=False), "rule guard: the job would run unwatched"),
        ({}, TERMS, replace(TERMS, foreign=("Foreign",)), "rule components: the job brings Foreign"),
        ({"jobs": ["x", "brats_*"]}, TERMS, replace(TERMS, job="pancreas"), "rule jobs: the job is called 'pancreas'"),
        ({"tasks": ["brats"]}, TERMS, replace(TERMS, task="tiny"), "rule tasks: the job trains the task 'tiny'"),
        ({"max_fraction": 0.1}, TERMS, replace(TERMS, fraction=0.11), "rule max_fraction: the job sends 0.11"),
        ({"epsilon_budget": BUDGET}, replace(TERMS, guaranteed=True), TERMS, "rule epsilon_budget"),
        (
            {"max_bytes": 4000},
            replace(TERMS, array_bytes=4000),
            replace(TERMS, array_bytes=4004),
            "rule max_bytes: the job sends updates of 4004 bytes at least; this site lets out 4000 at most",
        ),
    ],
)
def test_each_rule_takes_what_it_allows_and_names_itself_otherwise(policy, good, bad, said):
    check_job(parse_policy(policy), good)
    assert said in refusal(policy, bad)


def test_a_site_without_a_policy_has_no_rule_to_break():
    check_job(None, JobTerms("any", "any", "any", foreign=("Foreign",)))
    check_cases(None, 1)
    check_features(None)
    check_submission(None, TERMS)


def test_too_few_cases_are_not_counted_aloud():
    check_cases(SitePolicy(min_cases=7), 7)
    with pytest.raises(RefusalError, match="rule min_cases") as caught:
        check_cases(SitePolicy(min_cases=7), 6)
    assert "6" not in str(caught.value)


def test_features_and_the_sites_own_model_need_the_policys_word():
    check_features(SitePolicy(features=True))
    check_submission(SitePolicy(submit_model=True), TERMS)
    with pytest.raises(RefusalError, match="rule features"):
        check_features(SitePolicy())
    with pytest.raises(RefusalError, match="rule submit_model"):
        check_submission(SitePolicy(), TERMS)


@pytest.mark.parametrize("policy", [None, SitePolicy(submit_model=True, events=True)])
def test_no_policy_opens_what_a_guarantee_closes(policy):
    with pytest.raises(RefusalError, match="filters updates") as caught:
        check_submission(policy, replace(TERMS, filtered=True))
    assert caught.value.reason == "privacy"
    assert curves_leave(policy, False)
    assert not curves_leave(policy, True)
    check_statistics(False, {"voxels": 1.0})
    check_statistics(True, {})
    with pytest.raises(RefusalError, match="guarantee does not cover"):
        check_statistics(True, {"voxels": 1.0})


@pytest.mark.parametrize(
    ("filters", "share"),
    [([], 1.0), ([NormClip(2.0)], 1.0), ([PrivateLayers(kind="norm")], None), ([ShareFraction(0.25)], 0.0)],
    ids=["none", "clipped", "private layers", "sparse"],
)
def test_the_size_of_an_update_is_known_where_its_arrays_leave_as_they_are(filters, share):
    plan = parse_plan(PLAN)
    arrays = {name: array for name, array in get_weights(plan.build_network()).items() if array.dtype.kind == "f"}
    kept = filters[0].private_names(plan) if share is None else frozenset()
    expected = sum(array.nbytes for name, array in arrays.items() if name not in kept) * (1 if share is None else share)
    assert job_terms(plan, context(filters)).array_bytes == expected


def test_terms_are_read_from_what_flare_built():
    filters = [NormClip(2.0), ShareFraction(0.25)]
    components = [Guard(), ConvertToFedEvent(["analytix_log_stats"]), Foreign()]
    terms = job_terms(parse_plan(PLAN), context(filters, components, name="hippocampus"))
    assert (terms.job, terms.task, terms.dataset) == ("hippocampus", "tiny", "tiny")
    assert [step["filter"] for step in terms.steps] == ["NormClip", "ShareFraction"]
    assert (terms.fraction, terms.guarded, terms.filtered, terms.guaranteed) == (0.25, True, True, False)
    assert terms.foreign == ("ConvertToFedEvent", "Foreign"), "what FLARE's classes send no rule can judge either"


def test_a_filter_that_fedseg_does_not_know_protects_nothing():
    terms = job_terms(parse_plan(PLAN), context([Foreign()]))
    assert (terms.steps, terms.fraction, terms.guaranteed) == ((), 1.0, False)
    assert terms.foreign == ("Foreign",)
    assert terms.filtered, "yet it is there, so the whole model does not go past it"


@pytest.mark.parametrize(
    ("filters", "misplaced"),
    [
        ({"train": [GaussianNoise(1.0, 1.0)]}, False),
        ({"upload": [GaussianNoise(1.0, 1.0), EncryptUpdate()]}, False),
        ({"upload": [GaussianNoise(1.0, 1.0)]}, True),
        ({"train": [NormClip(1.0)], "upload": [GaussianNoise(1.0, 1.0)]}, True),
        ({"train": [GaussianNoise(1.0, 1.0)], "upload": [EncryptUpdate()]}, True),
    ],
)
def test_a_guarantee_counts_where_the_arrays_leave(filters, misplaced):
    """`upload` carries arrays in jobs that encrypt, `train` in all others."""
    fl_ctx = context(components=[Guard()])
    fl_ctx.get_prop(FLContextKey.RUNNER).task_result_filters.update({f"{t}/out": f for t, f in filters.items()})
    terms = job_terms(parse_plan(PLAN), fl_ctx)
    assert terms.guaranteed, "in any case nothing besides is told"
    assert terms.misplaced is misplaced
    if misplaced:
        assert "rule filters: the job protects a task whose result carries no arrays" in refusal({}, terms)
    else:
        check_job(SitePolicy(), terms)


def test_filters_of_the_other_task_count_for_no_rule():
    terms = job_terms(parse_plan(PLAN), context([NormClip(1.0), ShareFraction(0.1)], [Guard()], task="upload"))
    assert (terms.steps, terms.fraction, terms.filtered) == ((), 1.0, True)
    assert "rule require_clip" in refusal({"require_clip": True}, terms)


def test_a_method_that_tells_statistics_needs_the_policys_word():
    plan = parse_plan(PLAN)
    asks = job_terms(plan, context(components=[Guard(), ClassWeights()]))
    assert "rule statistics: the job asks for statistics" in refusal({}, asks)
    check_job(SitePolicy(statistics=True), asks)
    check_job(SitePolicy(), job_terms(plan, context(components=[Guard(), FedProx(0.1)])))


@pytest.mark.parametrize("noise", [None, {"epsilon": 1.0}])
def test_an_executor_that_counts_lifts_no_rule_of_one_that_trains_beside_it(noise):
    plan, fl_ctx = parse_plan(PLAN), context(components=[Guard()])
    table = fl_ctx.get_prop(FLContextKey.RUNNER).task_router.task_table
    table["count"] = StatisticsExecutor(noise)
    both = job_terms(plan, fl_ctx)
    assert (both.updates, both.guaranteed, both.statistics) == (True, False, True)
    assert "rule max_fraction" in refusal({"statistics": True, "max_fraction": 0.1}, both)
    assert "rule require_clip" in refusal({"statistics": True, "require_clip": True}, both)
    assert "rule epsilon_budget" in refusal({"statistics": True, "epsilon_budget": {"*": BUDGET["*"]}}, both)
    del table["train"]
    alone = job_terms(plan, fl_ctx)
    assert (alone.updates, alone.guaranteed) == (False, noise is not None)
    check_job(parse_policy({"statistics": True, "max_fraction": 0.1, "require_clip": True}), alone)


def test_an_encrypted_job_needs_the_scale_of_its_updates():
    terms = job_terms(parse_plan(PLAN), context([EncryptUpdate()], [Guard()], task="upload"))
    check_job(SitePolicy(), terms)
    check_job(parse_policy({"scalars": ["largest"]}), terms)
    assert "rule scalars: the job encrypts, for which it needs largest" in refusal({"scalars": ["val_loss"]}, terms)
    check_job(parse_policy({"scalars": ["val_loss"]}), job_terms(parse_plan(PLAN), context([], [Guard()])))


def test_private_layers_lower_the_fraction_by_their_size():
    plan = parse_plan(PLAN)
    weights = get_weights(plan.network.build(1, 2, 0))
    last = list(weights)[-2:]
    terms = job_terms(plan, context([PrivateLayers(patterns=last), ShareFraction(0.5)]))
    total, kept = sum(w.size for w in weights.values()), sum(weights[name].size for name in last)
    assert terms.fraction == pytest.approx(0.5 * (total - kept) / total, rel=1e-12)


# ------------------------------------------------------------- at the executor


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSEG_DATA", str(make_sites(tmp_path / "data", {"a": (3, 2)})))
    monkeypatch.setenv("FEDSEG_STATE", str(tmp_path / "state"))
    made = Site(tmp_path / "site", monkeypatch)
    made.sent = []
    monkeypatch.setattr("fedseg.executors.site_executor.send_curves", lambda *a: made.sent.append(a))
    made.context.get_engine().get_all_components = lambda: {"guard": Guard()}
    made.policy = lambda **rules: (tmp_path / "data" / "a" / "policy.json").write_text(json.dumps(rules))
    return made


def test_every_task_asks_the_policy_as_it_is_now(site):
    site.policy(min_cases=3)
    assert site.prepare().get_return_code() == ReturnCode.OK
    assert site.train().get_return_code() == ReturnCode.OK
    site.policy(min_cases=4)
    for reply in (site.prepare(), site.train(), site.ask("validate", DXO(DataKind.WEIGHTS, data=site.weights()))):
        assert reply.get_return_code() == ReturnCode.BAD_REQUEST_DATA
        assert reply.get_header(REASON) == "policy"
        assert "rule min_cases" in reply.get_header(TEXT)


def test_a_job_is_refused_before_its_data_is_looked_at(site, monkeypatch):
    monkeypatch.setattr("fedseg.executors.site_session.admit_data", lambda *a: pytest.fail("it was looked at"))
    site.policy(tasks=["brats"])
    assert "rule tasks" in site.prepare().get_header(TEXT)


def test_without_the_guard_a_site_with_a_policy_takes_nothing(site):
    site.policy()
    site.context.get_engine().get_all_components = dict
    assert "rule guard" in site.prepare().get_header(TEXT)


def test_a_broken_policy_is_no_open_door(site, tmp_path):
    (tmp_path / "data" / "a" / "policy.json").write_text('{"min_case": 4}')
    assert site.prepare().get_header(REASON) == "configuration"


def test_withheld_scalars_scores_and_curves(site, tmp_path):
    open_report = from_shareable(site.train()).meta[META_KEY]
    assert len(site.sent) == 1
    assert open_report["train_loss"] > 0
    site.policy(scalars=["val_loss"], scores=False)
    report = from_shareable(site.train()).meta[META_KEY]
    assert {name for name, value in report.items() if value not in (None, {}, 0.0)} == {
        *("num_samples", "num_steps", "val_cases", "val_loss"),
    }
    assert len(site.sent) == 1, "no curves"
    reply = site.ask("validate", DXO(DataKind.WEIGHTS, data=site.weights()))
    assert from_shareable(reply).data == {"final": {"split": "validation", "cases": 2, "withheld": True}}
    assert list((tmp_path / "state").rglob("evaluation-model.json")), "the site itself keeps its scores"


@pytest.mark.parametrize("mechanism", [GaussianNoise, DPSGD])
def test_two_data_sets_that_differ_in_one_patient_tell_the_same_numbers(tmp_path, monkeypatch, mechanism):
    """A patient with one examination is exchanged for one with two: nothing changes that leaves without noise."""
    told = []
    for name, training, validation in (("one", "pq", "r"), ("other", "pqq", "rr")):
        folder = make_sites(tmp_path / name, {"a": (len(training), len(validation))})
        content = json.loads((folder / "a" / "datalist.json").read_text())
        for case, patient in zip([*content["training"], *content["validation"]], training + validation, strict=True):
            case["patient"] = patient
        (folder / "a" / "datalist.json").write_text(json.dumps(content))
        monkeypatch.setenv("FEDSEG_DATA", str(folder))
        monkeypatch.setenv("FEDSEG_STATE", str(tmp_path / name / "state"))
        site = Site(tmp_path / name / "site", monkeypatch)
        runner = context([mechanism(1.0, 8.0)]).get_prop(FLContextKey.RUNNER)
        site.context.set_prop(FLContextKey.RUNNER, runner, private=True)
        trained, scored = site.train(), site.ask("validate", DXO(DataKind.WEIGHTS, data=site.weights()))
        report = from_shareable(trained).meta[META_KEY]
        told.append((from_shareable(site.prepare()).data, report, from_shareable(scored).data))
    assert told[0] == told[1]
    acceptance, report, scores = told[0]
    assert acceptance == {"training": 2, "validation": 1, "test": 0}
    assert (report["num_samples"], report["num_steps"], report["val_cases"], report["seconds"]) == (2, 1, 1, 0.0)
    assert scores["final"]["cases"] == 1


def test_curves_tell_no_more_than_the_report(site):
    site.policy(scalars=["val_loss"], events=True)
    assert site.train().get_return_code() == ReturnCode.OK
    (_, report, *_) = site.sent[0]
    assert (report.train_loss, dict(report.val_scores)) == (None, {})
    assert report.val_loss is not None


def test_a_guarantee_withholds_without_a_policy(site):
    runner = context([GaussianNoise(1.0, 1.0)]).get_prop(FLContextKey.RUNNER)
    site.context.set_prop(FLContextKey.RUNNER, runner, private=True)
    report = from_shareable(site.train()).meta[META_KEY]
    assert {name for name, value in report.items() if value not in (None, {}, 0.0)} == {
        *("num_samples", "num_steps", "val_cases"),
    }
    assert site.sent == []
    reply = site.ask("validate", DXO(DataKind.WEIGHTS, data=site.weights()))
    assert from_shareable(reply).data["final"]["withheld"] is True
    reply = site.ask("submit_model", DXO(DataKind.METRICS, data={"x": 1.0}))
    assert reply.get_header(REASON) == "privacy"


def test_a_personal_model_is_given_away_where_the_policy_says_so():
    check_gift(SitePolicy(give_personal_model=True), TERMS)
    for policy in (None, SitePolicy(submit_model=True, submit_personal_model=True)):
        with pytest.raises(RefusalError, match="rule give_personal_model: the job asks for this site's personal model"):
            check_gift(policy, TERMS)
    for terms in (None, replace(TERMS, filtered=True)):
        with pytest.raises(RefusalError, match="no whole model leaves"):
            check_gift(SitePolicy(give_personal_model=True), terms)

"""The site's guard: what it lets out, what it empties, and that nothing slips out when it fails itself."""

import json
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from nvflare.apis.analytix import AnalyticsDataType
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey, ProcessType, ReservedKey, ReturnCode
from nvflare.apis.fl_context import FLContextManager
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.utils.analytix_utils import create_analytic_dxo, send_analytic_dxo
from nvflare.apis.utils.event import fire_event_to_components
from nvflare.app_common.widgets.convert_to_fed_event import ConvertToFedEvent
from nvflare.fuel.utils import fobs
from nvflare.widgets.fed_event import ClientFedEventRunner

from executors.test_training import Site
from fedseg.contract.protocol import REASON, STEPS, TEXT
from fedseg.contract.report import META_KEY, ReportField, SiteReport, parse_report
from fedseg.contract.update import ENCRYPTED, Stage
from fedseg.executors.curves import send_curves
from fedseg.executors.training import SegmentationExecutor
from fedseg.filters.guard import guard as guard_module
from fedseg.filters.guard.guard import CURVES, Guard
from fedseg.filters.layers import SharedLayers
from fedseg.filters.noise import GaussianNoise
from fedseg.filters.norm_clip import NormClip
from fedseg.filters.quantize import QuantizeUpdate
from fedseg.filters.share_fraction import ShareFraction
from fedseg.messages.replies import refuse
from fedseg.messages.updates import PREFIX
from fedseg.networks.weights import get_weights
from fedseg.privacy.mechanisms.sparse import LAYOUT, VALUES
from fedseg.training.hooks import TrainingHook
from tiny import make_sites

MARKER = 1234.5678
CHAINS = {
    "plain": [],
    "clipped": [NormClip(2.0)],
    "layers": [SharedLayers(["*", "model.?.*"])],
    "sparse": [ShareFraction(0.1)],
    "quantised": [QuantizeUpdate(16)],
    "long": [NormClip(2.0), ShareFraction(0.1), QuantizeUpdate(8)],
    "noisy": [GaussianNoise(1.0, 5.0)],
}


class Watched(Site):
    """One site's executor, filters and guard; only FLARE's engine and runner are stand-ins."""

    def __init__(self, folder, monkeypatch, policy_file, declaration=None):
        super().__init__(folder, monkeypatch, declaration)
        self.guard, self.policy_file = Guard(), policy_file
        self.context.get_engine().get_all_components = lambda: {"guard": self.guard}
        self.context.set_prop(ReservedKey.PROCESS_TYPE, ProcessType.CLIENT_JOB, private=True)
        self.filters, self.uploads = [], []
        runner = SimpleNamespace(
            task_result_filters={"train/out": self.filters, "upload/out": self.uploads},
            task_data_filters={},
            task_router=SimpleNamespace(task_table={}),
        )
        self.context.set_prop(FLContextKey.RUNNER, runner, private=True)

    def policy(self, **rules):
        self.policy_file.write_text(json.dumps(rules))

    def update(self, chain=()):
        """A real update of round 0 after real filters."""
        self.filters[:] = chain
        result = self.train()
        for each in chain:
            result = each.process(result, self.context)
        assert result.get_return_code() == ReturnCode.OK, result.get_header(TEXT)
        return result

    def look(self, result, task="train"):
        self.context.set_prop(FLContextKey.TASK_NAME, task, private=True, sticky=False)
        self.context.set_prop(FLContextKey.TASK_RESULT, result, private=True, sticky=False)
        self.guard.handle_event(EventType.AFTER_TASK_RESULT_FILTER, self.context)
        return result


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSEG_DATA", str(make_sites(tmp_path / "data", {"a": (3, 2)})))
    monkeypatch.setenv("FEDSEG_STATE", str(tmp_path / "state"))
    return Watched(tmp_path / "site", monkeypatch, tmp_path / "data" / "a" / "policy.json")


def assert_passes(result):
    assert result.get_return_code() == ReturnCode.OK, result.get_header(TEXT)
    assert "DXO" in result
    return result


def assert_emptied(result, reason, said):
    assert set(result) == {"__headers__"}
    assert set(result["__headers__"]) == {ReservedKey.RC, REASON, TEXT}
    assert result.get_return_code() == ReturnCode.TASK_RESULT_FILTER_ERROR
    assert result.get_header(REASON) == reason
    assert said in result.get_header(TEXT)


# ------------------------------------------------------------- updates


@pytest.mark.parametrize("chain", CHAINS)
def test_real_updates_of_every_form_pass(site, chain):
    result = site.update(CHAINS[chain])
    before = fobs.dumps(from_shareable(result).meta)
    assert_passes(site.look(result))
    assert fobs.dumps(from_shareable(result).meta) == before, "the guard changes nothing that it lets out"


class Lag(TrainingHook):
    """A method that reports two numbers of its own."""

    reports: ClassVar = {
        "lag_rounds": ReportField("rounds since the last visit", 0, whole=True, under_guarantee=True),
        "lag_loss": ReportField("loss at the last visit", 0),
    }

    def report(self, trainer):
        return {"lag_rounds": 2, "lag_loss": 0.25}


@pytest.fixture
def lagging(site):
    site.executor.session.hooks = ["lag"]
    site.context.get_engine().get_component = {"lag": Lag()}.get
    return site


def test_declared_fields_of_a_method_pass_and_no_others(lagging):
    assert parse_report(meta(assert_passes(lagging.look(lagging.update())))).extras == {
        "lag_rounds": 2,
        "lag_loss": 0.25,
    }
    for name, value, said in (
        ("lag_seconds", 1.0, "'lag_seconds', which no component of the job declares"),
        ("lag_loss", -0.5, "lag_loss is negative"),
        ("lag_rounds", 2.5, "lag_rounds is not a count"),
    ):
        result = lagging.update()
        meta(result)[META_KEY]["extras"][name] = value
        assert_emptied(lagging.look(result), "report", said)


def test_a_policy_and_a_guarantee_cut_off_fields_of_a_method(lagging):
    told = lagging.look(lagging.update(CHAINS["noisy"]))
    assert parse_report(meta(assert_passes(told))).extras == {"lag_rounds": 2}
    lagging.policy(scalars=["lag_loss"])
    told = lagging.look(lagging.update())
    assert parse_report(meta(assert_passes(told))).extras == {"lag_loss": 0.25}
    meta(told)[META_KEY]["extras"]["lag_rounds"] = 2
    assert_emptied(lagging.look(told), "policy", "rule scalars: the job reports lag_rounds")


def test_the_bytes_that_the_executor_counted_pass(site):
    result = site.update()
    site.context.set_prop(FLContextKey.TASK_RESULT, result, private=True, sticky=False)
    site.executor.handle_event(EventType.AFTER_TASK_RESULT_FILTER, site.context)
    assert_passes(site.look(result))


@pytest.mark.parametrize(
    ("policy", "chain", "said"),
    [
        ({"max_fraction": 0.1}, "plain", "rule max_fraction: the job sends 1 of"),
        ({"max_fraction": 0.05}, "sparse", "rule max_fraction: the job sends 0.09"),
        ({"require_clip": True}, "sparse", "rule require_clip"),
        ({"max_clip_norm": 1.9}, "clipped", "rule max_clip_norm: the job clips to the norm 2;"),
        (
            {"min_noise_multiplier": 5.1},
            "noisy",
            "rule min_noise_multiplier: the job adds noise with the multiplier 5;",
        ),
        ({"min_noise_multiplier": 0.1}, "clipped", "the multiplier 0;"),
        (
            {"epsilon_budget": {"*": {"epsilon": 1e-3, "delta": 1e-5}}},
            "plain",
            "rule epsilon_budget: the job computes no",
        ),
        ({"require_encryption": True}, "noisy", "rule require_encryption"),
        ({"scalars": ["val_loss"]}, "plain", "rule scalars: the job reports seconds, seconds_training, train_loss"),
        ({"max_bytes": 2000}, "sparse", "rule max_bytes"),
    ],
)
def test_an_update_that_breaks_a_rule_is_emptied(site, policy, chain, said):
    """The executor would have refused the job; the guard does not rely on it."""
    result = site.update(CHAINS[chain])
    site.policy(**policy)
    assert_emptied(site.look(result), "policy", said)


def test_a_fraction_is_counted_in_the_arrays_and_not_in_the_record(site):
    result = site.update([ShareFraction(0.5)])
    site.filters[:] = [ShareFraction(0.1)]
    result["DXO"]["meta"][STEPS][0].update(fraction=0.1, sent=1)
    site.policy(max_fraction=0.1)
    assert_emptied(site.look(result), "policy", "rule max_fraction: the job sends 0.49")


@pytest.mark.parametrize("per_layer", [False, True])
def test_a_job_at_the_limit_passes(site, per_layer):
    site.policy(max_fraction=0.1, events=True)
    assert_passes(site.look(site.update([ShareFraction(0.1, per_layer=per_layer)])))


def meta(result):
    return result["DXO"]["meta"]


def data(result):
    return result["DXO"]["data"]


def first(result):
    return next(iter(data(result)))


@pytest.mark.parametrize(
    ("chain", "tamper", "reason", "said"),
    [
        ("clipped", lambda r: meta(r).pop(STEPS), "guard", "did not go through the job's filters"),
        ("long", lambda r: meta(r)[STEPS].reverse(), "guard", "in their order"),
        ("clipped", lambda r: meta(r)[STEPS][0].update(norm="MARKER-7"), "guard", "free text of the job"),
        ("layers", lambda r: meta(r)[STEPS][0].update(patterns="patient-7"), "guard", "free text of the job"),
        ("layers", lambda r: meta(r)[STEPS][0].update(patterns="model.*, /data"), "guard", "free text of the job"),
        ("layers", lambda r: meta(r)[STEPS][0].update(kind="[patient]*"), "guard", "free text of the job"),
        ("noisy", lambda r: meta(r)[STEPS][0].update(unit="a" * 16), "guard", "free text of the job"),
        ("clipped", lambda r: meta(r)[STEPS][0].update(filter="Other"), "guard", "did not go through"),
        ("clipped", lambda r: meta(r)[STEPS].append("x"), "privacy", "does not name its filter"),
        ("noisy", lambda r: meta(r)[META_KEY].update(epsilon=None), "guard", "states no epsilon"),
        ("noisy", lambda r: meta(r)[META_KEY].update(epsilon=51.0), "policy", "rule allow_large_epsilon"),
        (
            "noisy",
            lambda r: meta(r)[META_KEY].update(train_loss=0.5),
            "policy",
            "rule scalars: the job reports train_loss",
        ),
        ("plain", lambda r: meta(r).pop(META_KEY), "report", "carries no report"),
        ("plain", lambda r: meta(r)[META_KEY].update(hospital=1), "report", "carries no report"),
        ("plain", lambda r: meta(r).update(patient="a-0"), "guard", "meta that fedseg does not set"),
        ("plain", lambda r: meta(r).update({MetaKey.NUM_STEPS_CURRENT_ROUND: MARKER}), "guard", "meta"),
        ("plain", lambda r: meta(r).update({MetaKey.PROCESSED_ALGORITHM: "HE"}), "privacy", "does not know"),
        ("plain", lambda r: r["DXO"].update(kind=DataKind.WEIGHTS), "privacy", "only WEIGHT_DIFF may leave"),
        ("plain", lambda r: r["DXO"].update(more=MARKER), "guard", "its DXO is none of FLARE's"),
        ("plain", lambda r: r.update(more=MARKER), "guard", "more than one DXO"),
        ("plain", lambda r: r.set_header("more", MARKER), "guard", "headers that fedseg does not set"),
        ("plain", lambda r: r.set_header(TEXT, {"x": MARKER}), "guard", "more than texts and numbers"),
        ("plain", lambda r: data(r).update(more=np.full(2, MARKER)), "guard", "arrays that the model does not have"),
        ("plain", lambda r: data(r).update({first(r): np.full(2, np.nan)}), "privacy", "not finite"),
        (
            "plain",
            lambda r: data(r).update({first(r): np.full(9999, MARKER)}),
            "guard",
            "arrays that the model does not",
        ),
        ("plain", lambda r: data(r).update({first(r): [MARKER]}), "privacy", "not an array of numpy"),
        ("plain", lambda r: data(r).update({first(r): np.array([{"x": MARKER}], object)}), "privacy", "holds object"),
        ("sparse", lambda r: data(r).update(more=np.full(2, MARKER)), "guard", "other arrays than this form has"),
        ("sparse", lambda r: data(r).update({VALUES: data(r)[VALUES].astype(complex)}), "guard", "other arrays"),
        ("sparse", lambda r: data(r).pop(LAYOUT), "weights", "no layout"),
    ],
)
def test_an_update_that_is_not_what_it_should_be_is_emptied(site, chain, tamper, reason, said):
    result = site.update(CHAINS[chain])
    tamper(result)
    assert_emptied(site.look(result), reason, said)
    assert np.float64(MARKER).tobytes() not in fobs.dumps(result)


def test_shared_arrays_of_a_method_count_as_shared(site):
    result = site.update()
    name = first(result)
    data(result)["shared:control:" + name] = data(result)[name]
    assert_passes(site.look(result))
    site.policy(max_fraction=1.0)
    everything = {f"shared:control:{n}": v for n, v in data(result).items() if not n.startswith("shared:")}
    data(result).update(everything)
    assert_emptied(site.look(result), "policy", "rule max_fraction: the job sends 2 of")


def test_what_the_server_sent_does_not_enlarge_the_model(site):
    """Half of the model is half, however many shared arrays came with it."""
    model = get_weights(site.plan.network.build(1, 2, 0))
    padding = {f"shared:padding:{name}": value for name, value in model.items()}
    weights = site.weights
    site.weights = lambda: {**weights(), **padding}
    result = site.update([ShareFraction(0.5)])
    site.policy(max_fraction=0.3)
    assert_emptied(site.look(result), "policy", "rule max_fraction: the job sends 0.49")


def test_a_guarantee_of_the_other_task_is_none(site):
    result = site.update()
    site.uploads[:] = [GaussianNoise(1.0, 5.0)]
    meta(result)[META_KEY].update({**vars(SiteReport(3, 2, None, None)), "epsilon": 1.0})
    meta(result).pop(MetaKey.NUM_STEPS_CURRENT_ROUND)
    site.policy(epsilon_budget={"*": {"epsilon": 8, "delta": 1e-5}})
    assert_emptied(site.look(result), "policy", "rule epsilon_budget: the job computes no")


def test_noise_that_a_seed_foretells_leaves_no_real_site(site, tmp_path, monkeypatch):
    result = site.update(CHAINS["noisy"])
    assert meta(result)[STEPS][0]["secure_noise"] is False
    profile = {"datasets": {"*": str(tmp_path / "data" / "a")}, "state": str(tmp_path / "state" / "a")}
    (site.folder / "local" / "fedseg.json").write_text(json.dumps(profile))
    assert_emptied(site.look(result), "privacy", "follows from a seed")


def test_an_update_that_was_not_made_here_is_emptied(site):
    result = site.update([NormClip(2.0)])
    site.context.set_prop("fedseg_site_context", None, private=True, sticky=False)
    assert_emptied(site.look(result), "privacy", "not made by fedseg's executor")


def test_ciphertext_passes_as_bytes_only(site):
    class Encrypt(NormClip):
        stage = Stage.ENCRYPT

    report = meta(site.update())
    site.policy(require_encryption=True)
    site.filters[:] = [Encrypt(1.0)]
    steps = [{"filter": "Encrypt", "stage": int(Stage.ENCRYPT)}]
    extra = {STEPS: steps, MetaKey.PROCESSED_ALGORITHM: PREFIX + ENCRYPTED}
    cipher = {"ciphertext": np.arange(9, dtype=np.uint8)}
    assert_passes(site.look(DXO(DataKind.WEIGHT_DIFF, data=cipher, meta={**report, **extra}).to_shareable()))
    plain = {"ciphertext": np.full(9, MARKER)}
    result = DXO(DataKind.WEIGHT_DIFF, data=plain, meta={**report, **extra}).to_shareable()
    assert_emptied(site.look(result), "guard", "more than ciphertext")


def test_an_update_that_waits_leaves_only_its_report(site):
    """In encrypted jobs `train` answers without arrays."""
    result = site.update()
    data(result).clear()
    site.filters[:] = [NormClip(1.0)]
    assert_passes(site.look(result))


# ------------------------------------------------- other results, errors

COUNTS = {"training": 3, "validation": 2, "test": 0}
SUMMARY = {"split": "test", "cases": 2, "loss": 0.5, "dice": {"inner": 0.5, "whole": 0.25, "mean": None}, "hd95": {}}
SUMMARY |= {"defined": {"inner": 2, "whole": 2}, "empty": {"inner": {"both": 0}, "whole": {"both": 0}}}
PERSONAL = {name: value for name, value in SUMMARY.items() if name != "split"}


@pytest.mark.parametrize(
    ("task", "content", "said"),
    [
        ("prepare", COUNTS, None),
        ("prepare", {**COUNTS, "statistics": {"voxels": 12.0}}, None),
        ("prepare", {**COUNTS, "patients": 3}, "more than counts"),
        ("prepare", {**COUNTS, "phantoms": True}, None),
        ("prepare", {**COUNTS, "phantoms": "/data/p1.nii.gz"}, "more than counts"),
        ("prepare", {**COUNTS, "training": [1, 2]}, "no whole number"),
        ("prepare", {**COUNTS, "statistics": {"voxels": [1.0]}}, "finite numbers"),
        ("prepare", {**COUNTS, "statistics": dict.fromkeys(map(str, range(1001)), 1)}, "more than 1000"),
        ("validate", {"final": {**SUMMARY, "empty": {"inner": {"both": 1}, "whole": {}}}}, None),
        ("validate", {"final": {"split": "test", "cases": 2, "withheld": True}}, None),
        ("validate", {"final": {**SUMMARY, "dice": {"inner": [0.5, 0.6]}}}, "finite numbers"),
        ("validate", {"final": {**SUMMARY, "dice": {"a-0": 0.5}}}, "unknown names"),
        ("validate", {"final": {**SUMMARY, "intervals": {"dice": {"inner": None}}}}, None),
        ("validate", {"final": {**SUMMARY, "intervals": {"dice": {"inner": [0.4, 0.6]}}}}, "fewer than 5 cases"),
        ("validate", {"final": {**SUMMARY, "intervals": {"a-0": {}}}}, "of no score"),
        ("validate", {"final": {**SUMMARY, "scored": {"a-0": {"inner": 1}}}}, "unknown names"),
        ("validate", {"final": {**SUMMARY, "per_case": 1}}, "unknown parts"),
        ("validate", {"final": {**SUMMARY, "empty": {"inner": {"a-0": 1}}}}, "unknown names"),
        ("validate", {"final": {**SUMMARY, "personal": PERSONAL}}, None),
        ("validate", {"final": {**SUMMARY, "personal": {**PERSONAL, "dice": {"a-0": 0.5}}}}, "unknown names"),
        ("validate", {"final": {**SUMMARY, "personal": {**PERSONAL, "personal": PERSONAL}}}, "unknown parts"),
        ("validate", {"final": {**SUMMARY, "personal": {**PERSONAL, "split": "test"}}}, "unknown parts"),
        ("validate", {"final": {**SUMMARY, "personal": {**PERSONAL, "cases": 1}}}, "count their cases"),
        ("validate", {"final": {**SUMMARY, "personal": {**PERSONAL, "loss": "x"}}}, "its loss is"),
        ("validate", {"final": {**SUMMARY, "personal": MARKER}}, "no numbers by name"),
        ("validate", {"final": {**SUMMARY, "split": "a-0"}}, "no split"),
        ("validate", {"a-0": SUMMARY}, "no split"),
        ("validate", {"final": {**SUMMARY, "cases": 2.5}}, "count their cases"),
        ("dance", {"x": 1.0}, "a task that fedseg does not have"),
    ],
)
def test_answers_with_numbers(site, task, content, said):
    result = site.look(DXO(DataKind.METRICS, data=content).to_shareable(), task)
    assert_passes(result) if said is None else assert_emptied(result, "guard", said)


@pytest.mark.parametrize("task", ["prepare", "train", "upload", "validate", "submit_model", "dance"])
@pytest.mark.parametrize(
    "result",
    [
        DXO(DataKind.APP_DEFINED, data={"x": MARKER}),
        DXO(DataKind.COLLECTION, data={"x": DXO(DataKind.WEIGHT_DIFF, data={"w": np.full(2, MARKER)})}),
        DXO(DataKind.STATISTICS, data={"x": MARKER}),
        DXO(DataKind.METRICS, data={"x": "a-0"}),
        DXO(DataKind.METRICS, data={**COUNTS, "final": SUMMARY}, meta={"x": MARKER}),
        {"x": MARKER},
    ],
    ids=["app", "collection", "statistics", "text", "meta", "no DXO"],
)
def test_no_task_lets_out_what_is_not_its_own(site, task, result):
    result = site.look(result.to_shareable() if isinstance(result, DXO) else Shareable(dict(result)), task)
    assert set(result) == {"__headers__"}
    assert result.get_return_code() == ReturnCode.TASK_RESULT_FILTER_ERROR


def test_scores_and_statistics_are_not_covered_by_a_guarantee(site):
    site.filters[:] = [GaussianNoise(1.0, 1.0)]
    scores = DXO(DataKind.METRICS, data={"final": SUMMARY}).to_shareable()
    assert_emptied(site.look(scores, "validate"), "policy", "rule scores")
    statistics = DXO(DataKind.METRICS, data={**COUNTS, "statistics": {"voxels": 1.0}}).to_shareable()
    assert_emptied(site.look(statistics, "prepare"), "privacy", "guarantee does not cover")
    assert_passes(site.look(DXO(DataKind.METRICS, data=COUNTS).to_shareable(), "prepare"))


def test_with_a_policy_statistics_need_its_word(site):
    def answer():
        return DXO(DataKind.METRICS, data={**COUNTS, "statistics": {"voxels": 1.0}}).to_shareable()

    site.policy()
    assert_emptied(site.look(answer(), "prepare"), "policy", "rule statistics")
    site.policy(statistics=True)
    assert_passes(site.look(answer(), "prepare"))


def test_the_sites_own_model(site):
    def model():
        return DXO(DataKind.WEIGHTS, data=site.weights()).to_shareable()

    assert_passes(site.look(model(), "submit_model"))
    site.policy(submit_model=True)
    assert_passes(site.look(model(), "submit_model"))
    for filters in (site.filters, site.uploads):
        filters[:] = [NormClip(1.0)]
        assert_emptied(site.look(model(), "submit_model"), "policy", "rule submit_model")
        filters.clear()
    site.policy()
    assert_emptied(site.look(model(), "submit_model"), "policy", "rule submit_model")


def test_a_site_that_scores_only_lets_out_that_it_does_and_means(site):
    def answer(**data):
        return DXO(DataKind.METRICS, data=data).to_shareable()

    site.policy(evaluate_only=True)
    assert_passes(site.look(answer(evaluates=True), "prepare"))
    assert_passes(site.look(answer(evaluates=True, phantoms=True), "prepare"))
    for wrong in (
        COUNTS,
        {"evaluates": True, "test": 3},
        {"evaluates": True, "statistics": {"x": 1.0}},
        {"evaluates": 1.5},
    ):
        assert_emptied(site.look(answer(**wrong), "prepare"), "guard", "more than that the site scores models only")
    assert_passes(site.look(answer(final=SUMMARY), "validate"))
    model = DXO(DataKind.WEIGHTS, data=site.weights()).to_shareable()
    for task, result in (("train", model), ("share", model), ("upload", model), ("submit_model", model)):
        assert_emptied(site.look(result, task), "policy", "rule evaluate_only")


def test_scores_of_too_few_cases_do_not_leave_whoever_made_them(site):
    def answer(part):
        return DXO(DataKind.METRICS, data={"final": part}).to_shareable()

    few = {"split": SUMMARY["split"], "withheld": True, "fewer_than": 9, "of": "cases"}
    site.policy(min_scored_cases=9)
    assert_passes(site.look(answer(few), "validate"))
    assert_emptied(site.look(answer(SUMMARY), "validate"), "policy", "rule min_scored_cases")
    # The site has fewer patients than the message claims cases.
    assert_emptied(site.look(answer({**SUMMARY, "cases": 90}), "validate"), "policy", "rule min_scored_cases")
    assert_emptied(site.look(answer({**few, "cases": 3}), "validate"), "guard", "unknown parts")
    counted = {"split": SUMMARY["split"], "cases": 3, "withheld": True}
    assert_emptied(site.look(answer(counted), "validate"), "policy", "rule min_scored_cases")
    assert_passes(site.look(answer({**counted, "cases": 9}), "validate"))


def test_an_update_tells_no_score_of_too_few_cases(site):
    update = site.update()
    assert_passes(site.look(update))
    site.policy(min_scored_cases=100)
    assert_emptied(site.look(update), "policy", "rule min_scored_cases")


def test_a_personal_model_leaves_by_a_rule_of_its_own(site):
    def model(**meta):
        return DXO(DataKind.WEIGHTS, data=site.weights(), meta=meta).to_shareable()

    site.policy(submit_model=True)
    assert_emptied(
        site.look(model(fedseg_own_model="personal"), "submit_model"), "policy", "rule submit_personal_model"
    )
    site.policy(submit_model=True, submit_personal_model=True)
    assert_passes(site.look(model(fedseg_own_model="personal"), "submit_model"))
    assert_emptied(site.look(model(fedseg_own_model="another"), "submit_model"), "guard", "it is no model")


def test_a_personal_model_is_given_away_by_another_rule(site):
    def model(kind=DataKind.WEIGHTS):
        return DXO(kind, data=site.weights(), meta={"fedseg_own_model": "outside"}).to_shareable()

    site.policy(submit_model=True, submit_personal_model=True)
    assert_emptied(site.look(model(), "submit_model"), "policy", "rule give_personal_model")
    site.policy(give_personal_model=True)
    assert_passes(site.look(model(), "submit_model"))
    assert_emptied(site.look(model(DataKind.WEIGHT_DIFF), "submit_model"), "guard", "it is no model")
    assert_emptied(
        site.look(DXO(DataKind.WEIGHTS, data=site.weights()).to_shareable(), "submit_model"), "policy", "submit_model"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("The training loss became non-finite in epoch 3 of 5.", None),
        ("Rule guard: takes no job until its local/privacy.json declares it, and/or the site asks.", None),
        ("The file /data/hospital/x is broken", "file or folder"),
        (r"The file C:\data\x is broken", "file or folder"),
        ("case7.nii.gz is broken", "file or folder"),
        ("Case a-1 is broken", "names a patient"),
        ("a-1_image cannot be read", "names a patient"),
        ("x" * 1001, "too long"),
        (7, "is none"),
    ],
)
def test_texts_of_errors(site, text, said):
    reply = make_reply(ReturnCode.EXECUTION_EXCEPTION, {REASON: "data", TEXT: text})
    site.look(reply)
    if said is None:
        assert reply.get_header(TEXT) == text
        assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    else:
        assert_emptied(reply, "guard", said)
        assert str(text) not in reply.get_header(TEXT)


def test_a_relative_folder_of_the_profile_is_found_too(site, monkeypatch):
    monkeypatch.setenv("FEDSEG_STATE", "hospital/kept")
    reply = make_reply(ReturnCode.EXECUTION_EXCEPTION, {TEXT: "in hospital/kept/a there is no room"})
    assert_emptied(site.look(reply), "guard", "file or folder")


def test_an_error_with_content_is_emptied_and_a_bare_one_passes(site):
    bare = site.look(make_reply(ReturnCode.TASK_ABORTED))
    assert bare.get_return_code() == ReturnCode.TASK_ABORTED
    result = site.update()
    result.set_return_code(ReturnCode.EXECUTION_EXCEPTION)
    assert_emptied(site.look(result), "guard", "an error came with content")


# ------------------------------------------------- the guard's own failures


@pytest.mark.parametrize("error", [KeyError("/data/x"), SystemExit(1), MemoryError(), RecursionError()])
def test_a_guard_that_fails_lets_nothing_out(site, monkeypatch, error):
    def fail(*args):
        raise error

    result = site.update()
    monkeypatch.setattr(guard_module, "check_result", fail)
    site.context.set_prop(FLContextKey.TASK_RESULT, result, private=True, sticky=False)
    fire_event_to_components(EventType.AFTER_TASK_RESULT_FILTER, [site.guard], site.context)
    assert_emptied(result, "guard", type(error).__name__)
    assert "/data/x" not in result.get_header(TEXT)


def test_a_policy_that_cannot_be_read_lets_nothing_out(site):
    result = site.update()
    site.policy_file.write_text("{")
    assert_emptied(site.look(result), "configuration", "not valid")


def test_a_site_without_data_and_a_job_without_a_plan_let_nothing_out(site, monkeypatch):
    result = site.update()
    (site.folder / "app" / "config" / "fedseg.json").unlink()
    assert_emptied(site.look(result), "configuration", "not valid")
    monkeypatch.delenv("FEDSEG_DATA")
    assert_emptied(site.look(DXO(DataKind.METRICS, data=COUNTS).to_shareable(), "prepare"), "data", "no data")


def test_filters_that_cannot_be_seen_let_nothing_out(site):
    result = site.update()
    site.context.set_prop(FLContextKey.RUNNER, None, private=True)
    assert_emptied(site.look(result), "guard", "filters cannot be seen")


def test_at_the_server_the_guard_does_nothing(site):
    result = Shareable({"x": MARKER})
    site.context.set_prop(ReservedKey.PROCESS_TYPE, ProcessType.SERVER_JOB, private=True)
    assert site.look(result)["x"] == MARKER


def test_emptying_keeps_the_object_that_flare_sends():
    result = DXO(DataKind.METRICS, data={"x": MARKER}).to_shareable()
    result.add_cookie("x", MARKER)
    kept = result
    refuse(result, "guard", "said")
    assert kept is result
    assert_emptied(result, "guard", "said")


# ------------------------------------------------------------- events


class Wire:
    """FLARE's sender of events after the guard, in the order in which FLARE has them at a site.

    Before both stands FLARE's converter of log messages, which a job can bring only where a site has allowed it.
    """

    def __init__(self, site, guarded=True):
        workspace = site.context.get_engine().get_workspace()
        self.sender, self.sent = ClientFedEventRunner(), []
        self.sender.fire_and_forget_request = lambda request, **_: self.sent.append(request)
        components = [ConvertToFedEvent([EventType.ERROR_LOG_AVAILABLE])]
        self.handlers = [*components, *([site.guard] if guarded else []), self.sender]
        engine = SimpleNamespace(
            get_workspace=lambda: workspace,
            fire_event=lambda event, ctx: fire_event_to_components(event, self.handlers, ctx),
        )
        self.context = FLContextManager(
            engine,
            identity_name="a",
            job_id="job-1",
            public_stickers={},
            private_stickers={ReservedKey.PROCESS_TYPE: ProcessType.CLIENT_JOB},
        ).new_context()
        self.context.set_prop(FLContextKey.RUNNER, site.context.get_prop(FLContextKey.RUNNER), private=True)
        self.component = FLComponent()

    def curve(self, tag="train_loss", value=0.5):
        kind = AnalyticsDataType.TEXT if isinstance(value, str) else AnalyticsDataType.SCALAR
        dxo = create_analytic_dxo(tag, value, kind, global_step=1)
        send_analytic_dxo(self.component, dxo, self.context, CURVES, fire_fed_event=True)
        return len(self.sent)

    def log(self):
        self.component.log_error(self.context, "/data/x is broken")
        return len(self.sent)


def test_without_a_guard_flare_sends_what_it_logs(site):
    wire = Wire(site, guarded=False)
    assert wire.log() == 1
    assert "/data/x" in str(wire.sent[0])


def test_the_guard_stops_flares_log_messages_and_lets_curves_pass_where_they_may(site):
    wire = Wire(site)
    assert wire.log() == 0
    assert wire.curve() == 1, "a site without a policy lets curves out"
    site.policy(events=True)
    assert wire.curve("val_dice/inner") == 2
    assert wire.log() == 2


def test_a_curve_of_a_withheld_field_is_stopped(site):
    """`scalars` without the field holds for curves as for reports."""
    site.policy(events=True, scalars=["num_samples", "num_steps", "val_cases", "val_dice"])
    wire = Wire(site)
    assert wire.curve("val_dice/inner") == 1
    assert wire.curve("train_loss") == 1
    assert wire.curve("val_loss") == 1


def test_every_curve_of_the_executor_passes_the_guard(site):
    """Two losses, the Dice of two regions and their mean; none is sent twice."""
    report, wire = parse_report(meta(site.update())), Wire(site)
    send_curves(SegmentationExecutor(), report, site.plan.objective.primary, 0, wire.context)
    assert [from_shareable(event).data["track_key"] for event in wire.sent] == [
        *("train_loss", "val_loss", "val_dice/inner", "val_dice/whole", "val_dice/mean"),
    ]
    assert {event.get_header("_event_type") for event in wire.sent} == {"fed.analytix_log_stats"}


@pytest.mark.parametrize(
    ("policy", "filters", "tag", "value"),
    [
        ({}, [], "train_loss", 0.5),
        ({"events": True}, [GaussianNoise(1.0, 1.0)], "train_loss", 0.5),
        ({"events": True}, [], "dice of a-0", 0.5),
        ({"events": True}, [], "train_loss", "a-0"),
        ({"events": "perhaps"}, [], "train_loss", 0.5),
    ],
    ids=["no events", "guarantee", "tag", "text", "broken policy"],
)
def test_curves_that_may_not_leave_do_not(site, policy, filters, tag, value):
    site.policy(**policy)
    site.filters[:] = filters
    wire = Wire(site)
    wire.curve(tag, value)
    assert wire.sent == []


def test_events_that_come_in_are_not_touched(site):
    wire, event = Wire(site), Shareable({"x": MARKER})
    event.set_header("_direction", "in")
    wire.context.set_prop(FLContextKey.EVENT_DATA, event, private=True, sticky=False)
    wire.context.set_prop(FLContextKey.EVENT_SCOPE, "federation", private=True, sticky=False)
    site.guard.handle_event("fed.any", wire.context)
    assert event.get_header("_direction") == "in"

"""The executor with FLARE's own messages; only the engine that hands out the workspace is a stand-in."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReservedKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from fedseg.contract.plan import parse_plan
from fedseg.contract.protocol import BYTES_UP, PLAN_DIGEST, REASON, RUN_ID, SPLITS, TEXT
from fedseg.contract.report import parse_report
from fedseg.data.grid import Grid
from fedseg.errors import ConfigurationError
from fedseg.executors.training import SegmentationExecutor
from fedseg.memory import GIB
from fedseg.messages.sizes import message_size
from fedseg.networks.weights import get_weights
from fedseg.training.demand import cases_bytes, training_bytes
from fedseg.training.hooks import TrainingHook
from tiny import PLAN, make_sites


class Site:
    """One site's executor with a workspace in a temporary folder."""

    def __init__(self, folder: Path, monkeypatch, declaration=None):
        self.folder, self.declaration = folder, declaration or PLAN
        config = folder / "app" / "config"
        config.mkdir(parents=True)
        (config / "fedseg.json").write_text(json.dumps(self.declaration))
        (folder / "local").mkdir()
        workspace = SimpleNamespace(
            get_app_config_dir=lambda job: str(config),
            get_site_config_dir=lambda: str(folder / "local"),
            get_run_dir=lambda job: str(folder),
        )
        self.context = FLContext()
        engine = SimpleNamespace(get_workspace=lambda: workspace, fire_event=lambda *a: None, get_all_components=dict)
        self.context.set_prop(ReservedKey.ENGINE, engine, private=True)
        self.context.set_prop(ReservedKey.IDENTITY_NAME, "a", private=True)
        self.context.set_prop(ReservedKey.RUN_NUM, "job-1", private=True)
        self.executor = SegmentationExecutor()
        monkeypatch.setattr("fedseg.executors.site_executor.send_curves", lambda *a: None)

    @property
    def plan(self):
        return parse_plan(self.declaration)

    def weights(self):
        return get_weights(self.plan.build_network())

    def ask(self, task, model, signal=None):
        shareable = model.to_shareable() if isinstance(model, DXO) else FLModelUtils.to_shareable(model)
        return self.executor.execute(task, shareable, self.context, signal or Signal())

    def train(self, weights=None, round_number=0):
        model = FLModel(
            params_type=ParamsType.FULL,
            params=self.weights() if weights is None else weights,
            current_round=round_number,
            total_rounds=3,
            meta={RUN_ID: "run"},
        )
        return self.ask("train", model)

    def prepare(self, digest=None):
        meta = {PLAN_DIGEST: digest or self.plan.digest, RUN_ID: "run"}
        return self.ask("prepare", FLModel(metrics={"prepare": 1.0}, meta=meta))


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSEG_DATA", str(make_sites(tmp_path / "data", {"a": (3, 2)}, with_test=True)))
    monkeypatch.setenv("FEDSEG_STATE", str(tmp_path / "state"))
    return Site(tmp_path / "site", monkeypatch)


def assert_refused(reply, reason, said, tmp_path):
    assert reply.get_return_code() != ReturnCode.OK
    assert reply.get_header(REASON) == reason
    text = reply.get_header(TEXT)
    assert said in text
    assert str(tmp_path) not in text
    assert "nii" not in text
    assert "a-0" not in text, "no patient leaves the site"


def test_prepare_tells_the_counts_and_nothing_else(site):
    reply = site.prepare()
    assert reply.get_return_code() == ReturnCode.OK
    assert from_shareable(reply).data == {"training": 3, "validation": 2, "test": 1}


def test_train_returns_a_difference_with_declared_scalars(site):
    reply = site.train()
    dxo = from_shareable(reply)
    assert dxo.data_kind == DataKind.WEIGHT_DIFF
    assert set(dxo.data) == set(site.weights())
    report = parse_report(dxo.meta)
    assert (report.num_samples, report.num_steps, report.val_cases) == (3, 2, 2)
    assert set(report.val_scores) == {"inner", "whole", "mean"}
    assert not any(isinstance(v, np.ndarray) for v in dxo.meta.values())


def test_validate_scores_the_splits_asked_for_and_keeps_cases_at_home(site, tmp_path):
    meta = {RUN_ID: "run", SPLITS: ["final", "validation"]}
    data = from_shareable(site.ask("validate", DXO(DataKind.WEIGHTS, data=site.weights(), meta=meta))).data
    assert (data["final"]["split"], data["final"]["cases"]) == ("test", 1)
    assert (data["validation"]["split"], data["validation"]["cases"]) == ("validation", 2)
    assert "a-3" not in json.dumps(data)
    kept = json.loads((tmp_path / "state" / "a" / "run" / "evaluation-model.json").read_text())
    assert [case["id"] for case in kept["validation"]] == ["a-3", "a-4"]


def test_a_loss_that_is_no_number_is_not_sent_and_the_dice_is(site, monkeypatch):
    monkeypatch.setattr("fedseg.executors.scoring.mean_loss", lambda scored: float("nan"))
    score = DXO(DataKind.WEIGHTS, data=site.weights(), meta={RUN_ID: "run", SPLITS: ["final"]})
    part = from_shareable(site.ask("validate", score)).data["final"]
    assert part["loss"] is None
    assert part["dice"]["mean"] is not None


def test_submit_model_gives_the_last_local_weights(site, tmp_path):
    assert_refused(site.ask("submit_model", FLModel(metrics={"x": 1.0})), "weights", "no model yet", tmp_path)
    update = from_shareable(site.train()).data
    local = from_shareable(site.ask("submit_model", FLModel(metrics={"x": 1.0}))).data
    start = site.weights()
    for name in update:
        np.testing.assert_allclose(local[name], start[name] + update[name], rtol=1e-5, atol=1e-6)


def test_an_unknown_task_is_no_error_of_the_site(site):
    assert site.ask("dance", FLModel(metrics={"x": 1.0})).get_return_code() == ReturnCode.TASK_UNKNOWN


def test_wrong_weights_are_refused_and_nothing_is_trained(site, tmp_path):
    weights = site.weights()
    del weights[next(iter(weights))]
    reply = site.train(weights)
    assert_refused(reply, "weights", "1 missing", tmp_path)
    assert reply.get_return_code() == ReturnCode.BAD_TASK_DATA
    assert not list((tmp_path / "state").rglob("round-*.pt"))
    assert_refused(site.train({**site.weights(), "more": np.zeros(1)}), "weights", "unknown", tmp_path)
    shapes = {name: value[None] for name, value in site.weights().items()}
    assert_refused(site.train(shapes), "weights", "shape", tmp_path)


def test_another_plan_at_the_server_is_refused(site, tmp_path):
    assert_refused(site.prepare("0" * 64), "plan", "differs", tmp_path)


def test_another_version_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSEG_DATA", str(make_sites(tmp_path / "data", {"a": (2, 1)})))
    other = Site(tmp_path / "site", monkeypatch, {**PLAN, "fedseg_version": "0.0.9"})
    assert_refused(other.prepare(), "version", "fedseg 0.0.9", tmp_path)
    assert_refused(other.train(), "version", "fedseg 0.0.9", tmp_path)


def test_a_site_without_data_says_so(site, monkeypatch, tmp_path):
    monkeypatch.delenv("FEDSEG_DATA")
    assert_refused(site.prepare(), "data", "no data configured", tmp_path)
    monkeypatch.setenv("FEDSEG_DATA", str(tmp_path / "elsewhere"))
    assert_refused(site.prepare(), "data", "missing or cannot be read", tmp_path)


def test_missing_files_are_counted_for_the_server_and_named_at_the_site(site, tmp_path, caplog):
    next((tmp_path / "data" / "a" / "images").glob("*_image.nii.gz")).unlink()
    with caplog.at_level(logging.ERROR):
        assert_refused(site.prepare(), "data", "1 error", tmp_path)
    assert "_image.nii.gz" in caplog.text


def test_labels_of_another_task_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSEG_DATA", str(make_sites(tmp_path / "data", {"a": (2, 1)})))
    task = {**PLAN["task"], "labels": {"inner": 1, "outer": 7}}
    other = Site(tmp_path / "site", monkeypatch, {**PLAN, "task": task})
    assert_refused(other.prepare(), "task", "not those of the task", tmp_path)


def test_label_that_cannot_be_read_is_named_at_the_site_only(site, tmp_path, caplog):
    """The quick check reads no voxel, so the end of a packed file is first looked at with the labels."""
    label = tmp_path / "data" / "a" / "images" / "a-0.nii.gz"
    label.write_bytes(label.read_bytes()[:-9])
    with caplog.at_level(logging.ERROR):
        assert_refused(site.prepare(), "data", "A label file cannot be read", tmp_path)
    assert label.name in caplog.text


def test_another_number_of_channels_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSEG_DATA", str(make_sites(tmp_path / "data", {"a": (2, 1)})))
    other = Site(tmp_path / "site", monkeypatch, {**PLAN, "task": {**PLAN["task"], "channels": ["a", "b"]}})
    assert_refused(other.prepare(), "task", "channels", tmp_path)


def test_a_file_that_breaks_later_names_nothing_to_the_server(site, tmp_path, caplog):
    site.prepare()
    next((tmp_path / "data" / "a" / "images").glob("a-0_image.nii.gz")).write_bytes(b"broken")
    with caplog.at_level(logging.ERROR):
        assert_refused(site.train(), "data", "own log", tmp_path)
    assert "a-0_image.nii.gz" in caplog.text


def test_an_unexpected_error_names_only_its_kind(site, tmp_path, monkeypatch):
    def explode(*args):
        raise KeyError(str(tmp_path / "secret.nii.gz"))

    monkeypatch.setattr("fedseg.training.trainer.SiteTrainer.train_round", explode)
    assert_refused(site.train(), "error", "KeyError", tmp_path)


def test_a_loss_that_is_not_finite_is_a_result_error(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDSEG_DATA", str(make_sites(tmp_path / "data", {"a": (4, 1)})))
    wild = {**PLAN["training"], "learning_rate": 1e30, "gradient_clip": 1e30, "optimizer": "sgd", "batch_size": 1}
    other = Site(tmp_path / "site", monkeypatch, {**PLAN, "training": {**wild, "schedule": "constant"}})
    reply = other.train()
    assert_refused(reply, "loss", "not finite", tmp_path)
    assert reply.get_return_code() == ReturnCode.EXECUTION_RESULT_ERROR


def test_abort_is_an_abort(site):
    site.prepare()
    signal = Signal()
    signal.trigger(True)
    model = FLModel(params_type=ParamsType.FULL, params=site.weights(), current_round=0, total_rounds=1)
    assert site.ask("train", model, signal).get_return_code() == ReturnCode.TASK_ABORTED


def test_a_provisioned_site_has_its_own_profile(site, tmp_path, monkeypatch):
    monkeypatch.delenv("FEDSEG_DATA")
    profile = {"datasets": {"tiny": str(tmp_path / "data" / "a")}, "state": str(tmp_path / "kept")}
    (site.folder / "local" / "fedseg.json").write_text(json.dumps(profile))
    assert site.train().get_return_code() == ReturnCode.OK
    assert (tmp_path / "kept" / "run" / "round-00000.pt").is_file()
    (site.folder / "local" / "fedseg.json").write_text(json.dumps({"datasets": {"brats": "x"}, "state": "kept"}))
    site.executor.session.trainer = None
    assert_refused(site.prepare(), "data", "no data set named 'tiny'", tmp_path)


def test_a_job_that_takes_more_memory_than_the_site_allows_is_refused_before_anything_is_built(
    site, tmp_path, monkeypatch
):
    monkeypatch.delenv("FEDSEG_DATA")
    profile = {"datasets": {"tiny": str(tmp_path / "data" / "a")}, "state": str(tmp_path / "kept")}
    needs = training_bytes(site.plan, 6) + cases_bytes(site.plan, [Grid((20, 20, 20), np.eye(4))] * 6)
    for extra, fits in ((1, True), (-1, False)):
        limits = {"memory_gb": (needs + extra) / GIB}
        (site.folder / "local" / "fedseg.json").write_text(json.dumps({**profile, **limits}))
        site.executor.session.trainer = None
        reply = site.prepare()
        if fits:
            assert reply.get_return_code() == ReturnCode.OK
        else:
            assert_refused(reply, "memory", "GiB', but must be", tmp_path)
            assert "training with batches of 2 patches of 16x16x16 voxels and the images" in reply.get_header(TEXT)
    limits = {"memory_gb": (training_bytes(site.plan, 6) - 1) / GIB}
    (site.folder / "local" / "fedseg.json").write_text(json.dumps({**profile, **limits}))
    monkeypatch.setattr("fedseg.contract.plan.Plan.build_network", lambda plan: pytest.fail("built"))
    monkeypatch.setattr("fedseg.executors.site_session.job_terms", lambda *facts: None)
    assert_refused(site.prepare(), "memory", "16x16x16 voxels is", tmp_path)


def test_new_run_new_trainer(site, tmp_path):
    site.train()
    model = FLModel(
        params_type=ParamsType.FULL, params=site.weights(), current_round=0, total_rounds=1, meta={RUN_ID: "second"}
    )
    site.ask("train", model)
    assert {p.name for p in (tmp_path / "state" / "a").iterdir() if p.is_dir()} == {"run", "second", "ledger"}


def test_bytes_are_counted_after_the_filters(site):
    reply = site.train()
    context = site.context
    context.set_prop(FLContextKey.TASK_DATA, reply, private=True, sticky=False)
    site.executor.handle_event(EventType.BEFORE_TASK_DATA_FILTER, context)
    context.set_prop(FLContextKey.TASK_RESULT, reply, private=True, sticky=False)
    site.executor.handle_event(EventType.AFTER_TASK_RESULT_FILTER, context)
    arrays = sum(v.nbytes for v in from_shareable(reply).data.values())
    assert arrays < reply.get_header(BYTES_UP) < arrays + 8192


def test_message_size_is_what_flare_serialises():
    from nvflare.fuel.utils import fobs

    dxo = DXO(DataKind.WEIGHT_DIFF, data={"w": np.ones((50, 100), np.float32)}, meta={"x": 1.5})
    assert message_size(dxo.to_shareable()) == pytest.approx(len(fobs.dumps(dxo.to_shareable())), rel=0.05)


@pytest.mark.parametrize(
    "profile",
    [
        "[]",
        "{",
        '{"datasets": {"a": 3}, "state": "s"}',
        '{"datasets": {}}',
        '{"datasets": {}, "state": "s", "policy": {"fraction": 1}}',
    ],
)
def test_a_wrong_profile_is_explained_at_the_site_only(site, tmp_path, profile, caplog):
    (site.folder / "local" / "fedseg.json").write_text(profile)
    with caplog.at_level(logging.ERROR):
        assert_refused(site.prepare(), "configuration", "own log", tmp_path)
    assert "fedseg.json" in caplog.text


def test_hooks_are_components_of_the_job(site, tmp_path, caplog):
    calls = []

    class Count(TrainingHook):
        def after_step(self, trainer):
            calls.append(1)

    components = {"count": Count(), "other": object()}
    site.context.get_engine().get_component = components.get
    site.executor.session.hooks = ["count"]
    site.train()
    assert len(calls) == 2
    for wrong in ("other", "nothing"):
        site.executor.session.trainer, site.executor.session.hooks = None, [wrong]
        with caplog.at_level(logging.ERROR):
            assert_refused(site.train(), "configuration", "own log", tmp_path)
        assert wrong in caplog.text
    with pytest.raises(ConfigurationError, match=r"executor\.hooks"):
        SegmentationExecutor(hooks=[{"path": "x"}])

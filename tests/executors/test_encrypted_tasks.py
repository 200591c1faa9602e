"""A site in a job that encrypts: the update stays until it is weighed, and never leaves as it is."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.fl_constant import FLContextKey, ReservedKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.utils.fl_model_utils import FLModelUtils

from fedseg.contract.plan import parse_plan
from fedseg.contract.protocol import MODEL_ID, REASON, RUN_ID, START, TEXT, UPLOAD, WEIGHTS
from fedseg.contract.report import SiteReport, parse_report
from fedseg.errors import RefusalError
from fedseg.executors.training import SegmentationExecutor
from fedseg.filters.context import attached_context
from fedseg.filters.encrypt import EncryptUpdate
from fedseg.networks.weights import get_weights
from fedseg.site.pending_update import largest, load_update, save_update, weight_facts
from tiny import PLAN, make_sites

PARSED = parse_plan(PLAN)
REPORT = SiteReport(2, 1, 0.5, 0.4, {"mean": 0.5}, 1, largest=2.0)


class Site:
    """An executor in a job with these filters over the results of ``upload``."""

    def __init__(self, folder, monkeypatch, filters=()):
        monkeypatch.setenv("FEDSEG_DATA", str(make_sites(folder / "data", {"a": (2, 1)})))
        monkeypatch.setenv("FEDSEG_STATE", str(folder / "state"))
        (folder / "app" / "config").mkdir(parents=True)
        (folder / "app" / "config" / "fedseg.json").write_text(json.dumps(PLAN))
        workspace = SimpleNamespace(
            get_app_config_dir=lambda job: str(folder / "app" / "config"),
            get_site_config_dir=lambda: str(folder / "local"),
            get_run_dir=lambda job: str(folder),
        )
        runner = SimpleNamespace(
            task_result_filters={f"{UPLOAD}/out": list(filters)},
            task_data_filters={},
            task_router=SimpleNamespace(task_table={}),
        )
        engine = SimpleNamespace(get_workspace=lambda: workspace, get_all_components=dict, fire_event=lambda *a: None)
        self.context = FLContext()
        self.context.set_prop(ReservedKey.ENGINE, engine, private=True)
        self.context.set_prop(ReservedKey.IDENTITY_NAME, "a", private=True)
        self.context.set_prop(ReservedKey.RUN_NUM, "job-1", private=True)
        self.context.set_prop(FLContextKey.RUNNER, runner, private=True)
        self.folder = folder / "state" / "a" / "run"
        self.restart()

    def restart(self):
        self.executor = SegmentationExecutor()

    def ask(self, task, model):
        return self.executor.execute(task, FLModelUtils.to_shareable(model), self.context, Signal())

    def train(self, number=0, start="first"):
        weights = get_weights(PARSED.build_network())
        model = FLModel(
            params_type=ParamsType.FULL, params=weights, meta={RUN_ID: "run", START: start, MODEL_ID: f"model {number}"}
        )
        model.current_round, model.total_rounds = number, 3
        return self.ask("train", model)

    def upload(self, number=0, start="first", weights=None):
        meta = {RUN_ID: "run", START: start}
        return self.ask(UPLOAD, FLModel(metrics=weights or {"a": 0.25, "b": 0.75}, meta=meta, current_round=number))


@pytest.fixture
def site(tmp_path, monkeypatch):
    return Site(tmp_path, monkeypatch, [EncryptUpdate()])


def test_training_tells_a_report_and_no_array(site):
    reply = site.train()
    dxo = from_shareable(reply)
    assert (reply.get_return_code(), dxo.data_kind, dxo.data) == (ReturnCode.OK, DataKind.WEIGHT_DIFF, {})
    update, kept, _ = load_update(site.folder, 0, "first")
    report = parse_report(dxo.meta)
    assert report == kept
    assert report.largest == max(float(np.abs(value).max()) for value in update.values()) > 0
    assert not any(isinstance(value, np.ndarray) for value in dxo.meta.values())


def test_the_update_leaves_with_what_the_filter_needs_to_know(site):
    """What the executor hands to the filters; also after the site's process has died in between."""
    report = parse_report(from_shareable(site.train()).meta)
    site.restart()
    reply = site.upload()
    dxo = from_shareable(reply)
    assert parse_report(dxo.meta) == report
    for name, value in load_update(site.folder, 0, "first")[0].items():
        np.testing.assert_array_equal(dxo.data[name], value)
    told = attached_context(site.context).task_meta
    assert (told[WEIGHTS], told[MODEL_ID]) == ([["a", 0.25], ["b", 0.75]], "model 0")


@pytest.mark.parametrize(("number", "start"), [(1, "first"), (0, "second"), (0, None)])
def test_an_update_of_another_round_or_start_does_not_leave(site, number, start):
    site.train()
    reply = site.upload(number, start)
    assert (reply.get_header(REASON), DataKind.WEIGHT_DIFF in str(dict(reply))) == ("state", False)
    assert f"No update of round {number + 1} waits" in reply.get_header(TEXT)


def test_nothing_waits_before_the_first_round(site):
    assert site.upload().get_header(REASON) == "state"


def test_without_the_filter_the_update_leaves_with_the_training_and_not_later(tmp_path, monkeypatch):
    plain = Site(tmp_path, monkeypatch)
    dxo = from_shareable(plain.train())
    assert dxo.data
    assert parse_report(dxo.meta).largest is None
    save_update(plain.folder, 0, "first", dxo.data, REPORT, "model")
    reply = plain.upload()
    assert reply.get_header(REASON) == "privacy"
    assert "no filter that encrypts" in reply.get_header(TEXT)
    assert set(reply) == {"__headers__"}


def test_the_whole_model_of_a_site_does_not_leave_either(site):
    site.train()
    assert site.ask("submit_model", FLModel(metrics={"x": 1.0})).get_header(REASON) == "privacy"


def test_what_a_data_filter_could_not_do_is_the_answer(site):
    message = DXO(DataKind.WEIGHTS, data={"x": np.zeros(1)}).to_shareable()
    message.set_header(REASON, "history")
    message.set_header(TEXT, "needs all rounds")
    reply = site.executor.execute("train", message, site.context, Signal())
    assert isinstance(reply, Shareable)
    assert reply.get_return_code() == ReturnCode.TASK_DATA_FILTER_ERROR
    assert (reply.get_header(REASON), reply.get_header(TEXT)) == ("history", "needs all rounds")
    assert not site.folder.exists()


# ------------------------------------------------------------- updates that wait


def test_a_held_update_comes_back_as_it_was(tmp_path):
    update = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(-2.0, np.float32)}
    save_update(tmp_path, 3, "first", update, REPORT, "model")
    found, report, model = load_update(tmp_path, 3, "first")
    assert (report, model) == (REPORT, "model")
    for name, value in update.items():
        assert found[name].shape == value.shape
        np.testing.assert_array_equal(found[name], value)
    save_update(tmp_path, 4, "first", {"a": update["a"] + 1}, REPORT, "other")
    assert set(load_update(tmp_path, 4, "first")[0]) == {"a"}
    assert [path.name for path in tmp_path.iterdir()] == ["held.safetensors"]


@pytest.mark.parametrize("spoil", [lambda content: b"torn", lambda content: content[:-1] + bytes([content[-1] ^ 4])])
def test_a_damaged_file_is_named_and_nothing_of_it_leaves(tmp_path, spoil):
    save_update(tmp_path, 0, "first", {"a": np.ones(3, np.float32)}, REPORT, "model")
    path = tmp_path / "held.safetensors"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(RefusalError, match="The update that waits at this site is damaged") as refusal:
        load_update(tmp_path, 0, "first")
    assert refusal.value.reason == "state"
    assert str(tmp_path) not in str(refusal.value)


def test_the_largest_value_by_hand():
    assert largest({"a": np.array([1.0, -3.0], np.float32), "b": np.array(2.0), "c": np.zeros(0)}) == 3.0
    assert largest({}) == 0.0


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"a": 0.5, "b": 0.5 + 2e-9}, "more than one"),
        ({"a": 0.25, "b": 1.0, "c": 1.0}, "sum to 2.25"),
        ({"a": 0.25, "b": -0.1}, "from 0 to 1"),
        ({"a": 0.25, "b": 1.1}, "from 0 to 1"),
        ({"a": 0.25, "b": float("nan")}, "from 0 to 1"),
        ({"a": True, "b": 0.0}, "from 0 to 1"),
        ({"b": 1.0}, "each site of the round"),
        ({}, "each site of the round"),
    ],
)
def test_weights_with_which_a_sum_would_leave_its_digits_are_refused(weights, said):
    with pytest.raises(RefusalError, match=said) as refusal:
        weight_facts(weights, "a", "model")
    assert refusal.value.reason == "privacy"


def test_the_weights_of_a_round_may_err_by_rounding():
    thirds = dict.fromkeys("abc", 1 / 3)
    assert weight_facts(thirds, "b", "model") == {WEIGHTS: [[name, 1 / 3] for name in "abc"], MODEL_ID: "model"}
    assert weight_facts({"b": 0.6 + 5e-10, "a": 0.4}, "a", "m")[WEIGHTS] == [["a", 0.4], ["b", 0.6 + 5e-10]]

"""The server's side: what sites sent becomes dense, and what no honest site sends is left out with a reason."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from nvflare.apis.dxo import DataKind, MetaKey, from_shareable
from nvflare.apis.fl_constant import ReservedKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, Shareable, make_reply
from nvflare.app_common.app_constant import AppConstants

from fedseg.contract.plan import parse_plan
from fedseg.contract.protocol import BYTES_UP, REASON, STEPS, TEXT
from fedseg.contract.report import parse_report
from fedseg.contract.shapes import update_shapes
from fedseg.contract.update import ENCRYPTED, Update
from fedseg.errors import RefusalError
from fedseg.filters.quantize import QuantizeUpdate
from fedseg.filters.restore import RestoreUpdate, restore
from fedseg.filters.share_fraction import ShareFraction
from fedseg.messages.updates import write_update
from fedseg.networks.weights import get_weights
from outgoing import REPORT, make_context, make_message, make_update
from tiny import PLAN

PLAN_ = parse_plan(PLAN)


@pytest.fixture
def server(tmp_path):
    """FLARE's context at a server that has the job's plan; only the engine is a stand-in."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "fedseg.json").write_text(json.dumps(PLAN))
    fl_ctx = FLContext()
    workspace = SimpleNamespace(get_app_config_dir=lambda job: str(tmp_path / "config"))
    fl_ctx.set_prop(ReservedKey.ENGINE, SimpleNamespace(get_workspace=lambda: workspace), private=True)
    fl_ctx.set_prop(ReservedKey.RUN_NUM, "job-1", private=True)
    return fl_ctx


def sent(tmp_path, *filters):
    """A site's result after its filters, with the headers that come with it."""
    update = make_update()
    for filter_ in filters:
        update = filter_.run(update, make_context(tmp_path / "state"))
    message = write_update(update, make_message({"v": np.zeros(1)}))
    message.set_header(BYTES_UP, 123)
    message.set_header(AppConstants.CURRENT_ROUND, 4)
    message.set_peer_props({ReservedKey.IDENTITY_NAME: "a"})
    return message


def assert_left_out(reply, reason, said):
    assert reply.get_return_code() == ReturnCode.TASK_RESULT_FILTER_ERROR
    assert (reply.get_header(REASON), reply.get_header(BYTES_UP)) == (reason, 123)
    assert said in reply.get_header(TEXT)
    assert set(reply) == {ReservedHeaderKey.HEADERS}


def tampered(tmp_path, **parts):
    message = sent(tmp_path, ShareFraction(0.1))
    dxo = from_shareable(message)
    dxo.data = {name: value for name, value in {**dxo.data, **parts}.items() if value is not None}
    return dxo.update_shareable(message)


@pytest.mark.parametrize(
    "filters",
    [(ShareFraction(0.1),), (QuantizeUpdate(8),), (ShareFraction(0.01, per_layer=True), QuantizeUpdate(16))],
    ids=["sparse", "quantised", "both"],
)
def test_what_arrives_becomes_a_dense_difference(tmp_path, server, filters):
    reply = RestoreUpdate().process(sent(tmp_path, *filters), server)
    dxo = from_shareable(reply)
    expected = get_weights(PLAN_.network.build(1, 2, 0))
    assert dxo.data_kind == DataKind.WEIGHT_DIFF
    assert {n: (v.shape, v.dtype) for n, v in dxo.data.items()} == {n: (v.shape, v.dtype) for n, v in expected.items()}
    assert dxo.get_meta_prop(MetaKey.PROCESSED_ALGORITHM) is None
    assert [step["filter"] for step in dxo.get_meta_prop(STEPS)] == [type(f).__name__ for f in filters]
    assert parse_report(dxo.meta) == REPORT
    assert (reply.get_header(BYTES_UP), reply.get_header(AppConstants.CURRENT_ROUND)) == (123, 4)
    assert reply.get_peer_prop(ReservedKey.IDENTITY_NAME, None) == "a"


def test_everything_shared_arrives_bit_for_bit(tmp_path, server):
    arrays = from_shareable(RestoreUpdate().process(sent(tmp_path, ShareFraction(1)), server)).data
    for name, value in make_update().arrays.items():
        assert arrays[name].tobytes() == value.tobytes()


def test_a_dense_update_passes_as_it_is(tmp_path, server):
    message = sent(tmp_path)
    data = from_shareable(message).data
    assert RestoreUpdate().process(message, server) is message
    assert from_shareable(message).data is data


def test_a_failed_result_passes_as_it_is(server):
    reply = make_reply(ReturnCode.EXECUTION_EXCEPTION, {REASON: "data", TEXT: "no data"})
    assert RestoreUpdate().process(reply, server) is reply
    assert (reply.get_return_code(), reply.get_header(REASON)) == (ReturnCode.EXECUTION_EXCEPTION, "data")


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("fedseg.encrypted", "is encrypted, and this job's server cannot restore it"),
        ("fedseg.zipped", "something that fedseg does not know"),
        ("_HE_ALGORITHM_TENSEAL_CKKS", "something that fedseg does not know"),
    ],
)
def test_what_the_server_cannot_read_is_left_out(tmp_path, server, form, said):
    message = sent(tmp_path)
    dxo = from_shareable(message)
    dxo.set_meta_prop(MetaKey.PROCESSED_ALGORITHM, form)
    assert_left_out(RestoreUpdate().process(dxo.update_shareable(message), server), "privacy", said)


def test_a_result_of_another_kind_is_left_out(server):
    message = Shareable()
    message.set_header(BYTES_UP, 123)
    message["weights"] = np.ones(3)
    assert_left_out(RestoreUpdate().process(message, server), "privacy", "no DXO")


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"layout": None}, "no layout"),
        ({"values": None}, "other parts"),
        ({"values": np.full(3, 1.0, np.float32)}, "values"),
        ({"positions": np.zeros(2, np.uint8)}, "one bit"),
        ({"more": np.zeros(9)}, "other parts"),
    ],
)
def test_a_broken_update_is_left_out(tmp_path, server, parts, said):
    assert_left_out(RestoreUpdate().process(tampered(tmp_path, **parts), server), "weights", said)


def test_an_update_cannot_make_the_server_allocate_more_than_its_network(tmp_path, server):
    """A few bytes that announce a terabyte: refused by the network's own shapes before anything is allocated."""
    name = next(iter(make_update().arrays))
    layout = {"coding": "numbers", "arrays": [[name, [2**38], "f4"]]}
    parts = {
        "layout": np.frombuffer(json.dumps(layout).encode(), np.uint8),
        "positions": np.array([0], np.uint32),
        "values": np.ones(1, np.float32),
    }
    reply = RestoreUpdate().process(tampered(tmp_path, **parts), server)
    assert_left_out(reply, "weights", "has the shape (274877906944,), expected (4, 1, 3, 3, 3)")


def test_a_value_that_is_not_finite_is_left_out(tmp_path, server):
    values = from_shareable(sent(tmp_path, ShareFraction(0.1))).data["values"].copy()
    values[5] = np.nan
    assert_left_out(RestoreUpdate().process(tampered(tmp_path, values=values), server), "weights", "not finite")


def test_a_message_that_breaks_the_reader_is_left_out(tmp_path, server, monkeypatch):
    def fail(*args):
        raise MemoryError("of the server")

    monkeypatch.setattr("fedseg.filters.restore.restore", fail)
    reply = RestoreUpdate().process(sent(tmp_path, ShareFraction(0.1)), server)
    assert_left_out(reply, "weights", "cannot be restored: MemoryError")


def test_a_server_without_a_plan_says_so(tmp_path, server):
    (tmp_path / "config" / "fedseg.json").unlink()
    reply = RestoreUpdate().process(sent(tmp_path, ShareFraction(0.1)), server)
    assert_left_out(reply, "configuration", "cannot restore updates")


def test_the_shapes_are_those_of_a_dense_update():
    assert update_shapes(PLAN_) == {name: value.shape for name, value in make_update().arrays.items()}


def test_without_messages_the_same_rules_hold(tmp_path):
    update = make_update()
    assert restore(update, update_shapes(PLAN_)) is update
    with pytest.raises(RefusalError, match="encrypted") as caught:
        restore(Update(update.arrays, REPORT, ENCRYPTED), update_shapes(PLAN_))
    assert caught.value.reason == "privacy"

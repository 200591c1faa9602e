"""Whatever is not an update that a filter understands stays at the site: one explicit rule for each, for every filter.

The reply is serialised as FLARE does it, and searched for the bytes of the arrays.
"""

import copy
import importlib
import inspect
import pkgutil

import numpy as np
import pytest
import torch
from nvflare.apis.dxo import DXO, DataKind, MetaKey
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import ReservedHeaderKey, Shareable, make_reply
from nvflare.app_common.app_constant import AppConstants
from nvflare.fuel.utils import fobs

import fedseg.filters
from fedseg.contract.protocol import REASON, STEPS, TEXT
from fedseg.contract.report import META_KEY
from fedseg.contract.update import DENSE
from fedseg.filters.base import UpdateFilter
from fedseg.messages.updates import read_update
from outgoing import REPORT, make_context, make_fl_context, make_message

# Every filter over updates with the fewest arguments.
ARGUMENTS = {
    "DPSGD": {"clip": 1.0, "noise_multiplier": 1.0},
    "EncryptUpdate": {},
    "GaussianNoise": {"clip": 1.0, "noise_multiplier": 1.0},
    "LaplaceNoise": {"clip": 1.0, "noise_multiplier": 1.0},
    "NormClip": {"norm": 1.0},
    "PrivateLayers": {"last": 1},
    "QuantizeUpdate": {},
    "ShareFraction": {"fraction": 0.5},
    "SharedLayers": {"patterns": ["*"]},
    "SparseVector": {
        "fraction": 0.5,
        "clip": 1.0,
        "threshold": 0.0,
        "epsilon_threshold": 1.0,
        "epsilon_query": 1.0,
        "epsilon_release": 1.0,
    },
}
# Those whose good case needs more than an update: a key, or a round of private training. test_encrypt.py and
# training/test_patient_dp_sgd.py have them.
ELSEWHERE = {"DPSGD", "EncryptUpdate"}
MARK = np.random.default_rng(7).normal(size=(4, 16)).astype(np.float32)
NAME = "model.0.residual.weight"


def find_filters():
    """All filters over updates in all modules of the package."""
    for module in pkgutil.iter_modules(fedseg.filters.__path__):
        importlib.import_module(f"fedseg.filters.{module.name}")
    found, left = {}, [UpdateFilter]
    while left:
        kind = left.pop()
        left.extend(kind.__subclasses__())
        if not inspect.isabstract(kind) and kind.__module__.startswith("fedseg."):
            found[kind.__name__] = kind
    return found


FILTERS = find_filters()


def test_every_filter_is_in_the_table():
    assert set(ARGUMENTS) == set(FILTERS)


@pytest.fixture(params=sorted(set(FILTERS) & set(ARGUMENTS)))
def filter_(request):
    return FILTERS[request.param](**ARGUMENTS[request.param])


@pytest.fixture(params=sorted((set(FILTERS) & set(ARGUMENTS)) - ELSEWHERE))
def usable(request):
    """A filter that lets a good update out."""
    return FILTERS[request.param](**ARGUMENTS[request.param])


def holds_the_array(message, array=MARK):
    """Whether any eight bytes of the array's values stand in the serialised message."""
    content, values = fobs.dumps(message), np.asarray(array).tobytes()
    return any(values[start : start + 8] in content for start in range(0, len(values) - 7, 8))


def process(filter_, message, tmp_path, attached=True):
    context = make_context(tmp_path / "state") if attached else None
    return filter_.process(message, make_fl_context(context))


def assert_held_back(reply, tmp_path, reason, said):
    assert reply.get_return_code() == ReturnCode.TASK_RESULT_FILTER_ERROR
    assert reply.get_header(REASON) == reason
    assert said in reply.get_header(TEXT)
    assert str(tmp_path) not in reply.get_header(TEXT)
    assert set(reply) == {ReservedHeaderKey.HEADERS}
    assert set(reply[ReservedHeaderKey.HEADERS]) == {ReservedHeaderKey.RC, REASON, TEXT}
    assert not holds_the_array(reply)


def with_meta(**changes):
    return make_message({NAME: MARK}, meta={**copy.deepcopy(REPORT.to_meta()), **changes})


def without_dxo():
    message = Shareable()
    message["weights"] = MARK
    return message


def spoilt(value):
    changed = MARK.copy()
    changed[1, 3] = value
    return changed


CASES = {
    "metrics": (lambda: make_message({NAME: MARK}, DataKind.METRICS), "privacy", "METRICS; only WEIGHT_DIFF may leave"),
    "weights": (lambda: make_message({NAME: MARK}, DataKind.WEIGHTS), "privacy", "WEIGHTS; only WEIGHT_DIFF may leave"),
    "statistics": (
        lambda: make_message({NAME: MARK}, DataKind.STATISTICS),
        "privacy",
        "STATISTICS; only WEIGHT_DIFF may leave",
    ),
    "raw": (lambda: make_message(MARK, DataKind.APP_DEFINED), "privacy", "APP_DEFINED; only WEIGHT_DIFF may leave"),
    "collection": (
        lambda: make_message({"a": DXO(DataKind.WEIGHT_DIFF, {NAME: MARK})}, DataKind.COLLECTION),
        "privacy",
        "COLLECTION; only WEIGHT_DIFF may leave",
    ),
    "no DXO": (without_dxo, "privacy", "no DXO"),
    "tensor": (lambda: make_message({NAME: torch.from_numpy(MARK)}), "privacy", "of the type Tensor"),
    "scalar": (lambda: make_message({NAME: MARK, "s": 0.25}), "privacy", "of the type float"),
    "scalar of numpy": (lambda: make_message({NAME: MARK, "s": MARK[0, 0]}), "privacy", "of the type float32"),
    "list": (lambda: make_message({NAME: MARK.tolist()}), "privacy", "of the type list"),
    "nested": (lambda: make_message({"more": {NAME: MARK}}), "privacy", "of the type dict"),
    "bytes": (lambda: make_message({NAME: MARK.tobytes()}), "privacy", "of the type bytes"),
    "nothing": (lambda: make_message({NAME: MARK, "n": None}), "privacy", "of the type NoneType"),
    "integers": (lambda: make_message({NAME: MARK, "i": np.arange(3)}), "privacy", "holds int64"),
    "truth values": (lambda: make_message({NAME: MARK, "b": MARK > 0}), "privacy", "holds bool"),
    "half precision": (lambda: make_message({NAME: MARK.astype(np.float16)}), "privacy", "holds float16"),
    "complex": (lambda: make_message({NAME: MARK.astype(np.complex64)}), "privacy", "holds complex64"),
    "objects": (lambda: make_message({NAME: MARK, "o": np.array(["x"])}), "privacy", "holds <U1"),
    "name that is no text": (lambda: make_message({1: MARK}), "privacy", "a name of the type int"),
    "empty": (lambda: make_message({}), "privacy", "is empty"),
    "not a number": (lambda: make_message({NAME: spoilt(np.nan)}), "privacy", "not finite"),
    "infinite": (lambda: make_message({NAME: spoilt(-np.inf)}), "privacy", "not finite"),
    "encrypted": (
        lambda: with_meta(**{MetaKey.PROCESSED_ALGORITHM: "fedseg.encrypted"}),
        "privacy",
        "does not understand an update that is encrypted",
    ),
    "quantised": (
        lambda: with_meta(**{MetaKey.PROCESSED_ALGORITHM: "fedseg.quantised"}),
        "privacy",
        "does not understand an update that is quantised",
    ),
    "of FLARE's encryption": (
        lambda: with_meta(**{MetaKey.PROCESSED_ALGORITHM: "_HE_ALGORITHM_TENSEAL_CKKS"}),
        "privacy",
        "fedseg does not know",
    ),
    "of an unknown form": (
        lambda: with_meta(**{MetaKey.PROCESSED_ALGORITHM: "fedseg.zipped"}),
        "privacy",
        "fedseg does not know",
    ),
    "a form that is no text": (
        lambda: with_meta(**{MetaKey.PROCESSED_ALGORITHM: ["dense"]}),
        "privacy",
        "fedseg does not know",
    ),
    "no report": (lambda: make_message({NAME: MARK}, meta={"more": "x"}), "report", "no report"),
    "wrong report": (lambda: with_meta(**{META_KEY: {"num_samples": 3}}), "report", "no report"),
    "report without cases": (
        lambda: with_meta(**{META_KEY: {**REPORT.to_meta()[META_KEY], "num_samples": 0}}),
        "report",
        "no training cases",
    ),
    "wrong order": (
        lambda: with_meta(**{STEPS: [{"filter": "EncryptUpdate", "stage": 60}]}),
        "privacy",
        "in a wrong order",
    ),
    "no record": (lambda: with_meta(**{STEPS: "done"}), "privacy", "not a list of steps"),
    "a record without a filter": (lambda: with_meta(**{STEPS: [{"stage": 10}]}), "privacy", "does not name its filter"),
    "a record that holds arrays": (
        lambda: with_meta(**{STEPS: [{"filter": "x", "more": MARK}]}),
        "privacy",
        "more than text",
    ),
    "a place that is no number": (
        lambda: with_meta(**{STEPS: [{"filter": "x", "stage": "last"}]}),
        "privacy",
        "An unexpected ValueError",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_a_filter_does_not_know_stays(filter_, case, tmp_path):
    make, reason, said = CASES[case]
    if filter_.guarantees and said == "not finite":
        pytest.skip("a refusal would tell something of the data; see the next test")
    assert_held_back(process(filter_, make(), tmp_path), tmp_path, reason, said)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_with_a_guarantee_an_update_that_is_not_finite_counts_as_zeros_and_is_charged(usable, value, tmp_path):
    """To refuse it would answer a question about the data, free of charge and as often as somebody asks."""
    if not usable.guarantees:
        pytest.skip("refused, see the test before")
    reply = process(usable, make_message({NAME: spoilt(value)}), tmp_path)
    assert reply.get_return_code() == ReturnCode.OK
    assert not holds_the_array(reply)
    assert read_update(reply).report.epsilon > 0


def test_a_result_that_fedseg_did_not_make_stays(filter_, tmp_path):
    reply = process(filter_, make_message({NAME: MARK}), tmp_path, attached=False)
    assert_held_back(reply, tmp_path, "privacy", "not made by fedseg's executor")


def test_shared_arrays_stay_unless_the_filter_protects_them(filter_, tmp_path):
    reply = process(filter_, make_message({NAME: MARK, "shared:control": MARK}), tmp_path)
    if filter_.accepts_shared_arrays:
        assert filter_.guarantees, "only noise over all arrays protects them"
        assert reply.get_return_code() == ReturnCode.OK
        assert not holds_the_array(reply)
    else:
        assert_held_back(reply, tmp_path, "privacy", "cannot protect the shared arrays")


def test_a_failed_result_passes_as_code_reason_and_text_only(filter_, tmp_path):
    message = make_message({NAME: MARK})
    message.set_return_code(ReturnCode.EXECUTION_EXCEPTION)
    message["more"] = MARK
    for key, value in ((REASON, "data"), (TEXT, "no data"), ("header", MARK), (AppConstants.CURRENT_ROUND, 3)):
        message.set_header(key, value)
    reply = process(filter_, message, tmp_path)
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert reply[ReservedHeaderKey.HEADERS] == {
        ReservedHeaderKey.RC: ReturnCode.EXECUTION_EXCEPTION,
        REASON: "data",
        TEXT: "no data",
    }
    assert set(reply) == {ReservedHeaderKey.HEADERS}
    assert not holds_the_array(reply)


def test_a_failed_result_without_a_reason_passes_as_its_code(filter_, tmp_path):
    reply = process(filter_, make_reply(ReturnCode.TASK_ABORTED), tmp_path)
    assert reply[ReservedHeaderKey.HEADERS] == {ReservedHeaderKey.RC: ReturnCode.TASK_ABORTED}


def test_what_stands_beside_an_update_does_not_pass(usable, tmp_path):
    """Other content, other headers and other meta of a good result: only update, report and record leave."""
    beside = np.random.default_rng(8).normal(size=(4, 16)).astype(np.float32)
    message = with_meta(note=beside)
    message["more"] = beside
    message.set_header("header", beside)
    assert holds_the_array(message, beside)
    reply = process(usable, message, tmp_path)
    assert reply.get_return_code() == ReturnCode.OK
    assert not holds_the_array(reply, beside)


def test_an_array_without_dimensions_is_an_array_of_one_coordinate(usable, tmp_path):
    """It is shared, clipped or given noise like any other, and not passed by."""
    message = make_message({NAME: MARK, "model.0.conv.unit0.adn.A.weight": np.array(0.25, np.float32)})
    reply = process(usable, message, tmp_path)
    assert reply.get_return_code() == ReturnCode.OK
    if usable.guarantees:
        assert np.float32(0.25).tobytes() not in fobs.dumps(reply)


def test_an_error_within_a_filter_keeps_the_update_at_the_site(filter_, tmp_path, monkeypatch):
    def fail(update, context):
        raise RuntimeError(f"{tmp_path}/patient-7")

    monkeypatch.setattr(filter_, "apply", fail)
    reply = process(filter_, make_message({NAME: MARK}), tmp_path)
    assert_held_back(reply, tmp_path, "privacy", "An unexpected RuntimeError")
    assert "patient-7" not in reply.get_header(TEXT)


def test_a_good_update_passes_and_the_search_finds_its_bytes(usable, tmp_path):
    """Else none of the above would prove anything."""
    assert holds_the_array(make_message({NAME: MARK}))
    assert holds_the_array(without_dxo())
    reply = process(usable, make_message({NAME: MARK}), tmp_path)
    assert reply.get_return_code() == ReturnCode.OK
    unchanged = not usable.guarantees and usable.gives in (None, DENSE) and type(usable).__name__ != "NormClip"
    assert holds_the_array(reply) or not unchanged

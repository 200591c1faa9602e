"""Refusals: nothing but an error is left, and FLARE's headers stay only where they are asked to."""

from __future__ import annotations

import pytest
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import ReservedHeaderKey, Shareable

from fedseg.contract.protocol import BYTES_DOWN, BYTES_UP, REASON, TEXT
from fedseg.messages.replies import bare_reply, read_refusal, refusal, refuse
from fedseg.messages.sizes import told_sizes


def full() -> Shareable:
    message = Shareable({"DXO": {"secret": 1}, "more": 2})
    message.set_header("task_id", "17")
    message.set_return_code(ReturnCode.OK)
    return message


@pytest.mark.parametrize("headers", [True, False])
def test_a_refused_message_holds_nothing_but_the_error(headers):
    message = full()
    assert refuse(message, "guard", "Kept back.", headers=headers) is message
    kept = {"task_id": "17"} if headers else {}
    assert set(message) == {ReservedHeaderKey.HEADERS}
    code = ReturnCode.TASK_RESULT_FILTER_ERROR
    expected = {**kept, ReservedHeaderKey.RC: code, REASON: "guard", TEXT: "Kept back."}
    assert {name: value for name, value in message[ReservedHeaderKey.HEADERS].items() if value is not None} == expected


def test_a_plain_dictionary_can_be_refused():
    message = {"DXO": 1}
    refuse(message, "guard", "Kept back.", ReturnCode.EXECUTION_EXCEPTION)
    assert message == {"__headers__": {"__rc__": ReturnCode.EXECUTION_EXCEPTION, REASON: "guard", TEXT: "Kept back."}}


def test_a_refusal_and_its_bare_form_say_the_same():
    reply = refusal("data", "No cases.")
    assert (reply.get_return_code(), reply.get_header(REASON), reply.get_header(TEXT)) == (
        ReturnCode.BAD_REQUEST_DATA,
        "data",
        "No cases.",
    )
    reply["DXO"] = {"secret": 1}
    bare = bare_reply(reply)
    assert "DXO" not in bare
    assert (bare.get_return_code(), bare.get_header(REASON)) == (ReturnCode.BAD_REQUEST_DATA, "data")


@pytest.mark.parametrize(
    ("reason", "text", "read"),
    [
        ("data", "No cases.", ("data", "No cases.")),
        (None, None, ("failed", "FLARE reports BAD_REQUEST_DATA")),
        ("x\x1b]0;owned\x07", "a\r\nb\u202ec\x1b[2J", ("x ]0;owned", "a b c [2J")),
        (["list"], {"a": 1}, ("list", "dict")),
        ("r" * 999, "t" * 5000, ("r" * 40 + "...", "t" * 1000 + "...")),
    ],
)
def test_what_a_site_says_is_read_as_one_line_of_letters(reason, text, read):
    message = refusal("x", "y")
    message.set_header(REASON, reason)
    message.set_header(TEXT, text)
    found = read_refusal(message)
    assert (found.reason, str(found)) == read
    assert read_refusal(full()) is None


@pytest.mark.parametrize("told", [None, "x", -1, 1.5, float("nan"), float("inf"), 10**400, True, [1], {"a": 1}])
def test_sizes_that_are_none_count_as_nothing(told):
    message = full()
    message.set_header(BYTES_UP, told)
    message.set_header(BYTES_DOWN, 17)
    assert told_sizes(message) == (0, 17)

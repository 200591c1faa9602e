"""Refusals: nothing but an error is left, and FLARE's headers stay only where they are asked to."""

from __future__ import annotations

import pytest
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import ReservedHeaderKey, Shareable

from fedseg.contract.protocol import REASON, TEXT
from fedseg.messages.replies import bare_reply, refusal, refuse


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

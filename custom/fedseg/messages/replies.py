"""Answers that say no: refusals, and results of which nothing but an error is left."""

from __future__ import annotations

from typing import Any

from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import ReservedHeaderKey, Shareable, make_reply

from fedseg.contract.protocol import REASON, TEXT


def bare_reply(shareable: Shareable) -> Shareable:
    """A failed result without anything but its code, reason and text."""
    headers = {key: str(shareable.get_header(key)) for key in (REASON, TEXT) if shareable.get_header(key)}
    return make_reply(shareable.get_return_code(), headers)


def empty_result(result: dict[str, Any], reason: str, text: str) -> None:
    """Leave nothing in a result but an error code, a reason and a text."""
    result.clear()
    result[ReservedHeaderKey.HEADERS] = {
        ReservedHeaderKey.RC: ReturnCode.TASK_RESULT_FILTER_ERROR,
        REASON: reason,
        TEXT: text,
    }


def refusal(reason: str, text: str) -> Shareable:
    """The answer of a site that cannot do what was asked."""
    return make_reply(ReturnCode.BAD_REQUEST_DATA, {REASON: reason, TEXT: text})

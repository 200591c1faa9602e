"""Answers that say no: refusals, and results of which nothing but an error is left."""

from __future__ import annotations

from typing import Any, TypeVar

from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import ReservedHeaderKey, Shareable, make_reply

from fedseg.contract.protocol import REASON, TEXT
from fedseg.errors import RefusalError
from fedseg.files.full_disk import is_full

FULL_DISK = "The site's disk is full. Make room on it; what was finished before is kept."
_LONGEST_REASON, _LONGEST_TEXT = 40, 1000
Message = TypeVar("Message", bound=dict[str, Any])


def refusal(reason: str, text: str, code: str = ReturnCode.BAD_REQUEST_DATA) -> Shareable:
    """A new answer of a site that cannot do what was asked; arguments as of ``refuse``."""
    return refuse(Shareable(), reason, text, code)


def read_refusal(result: Shareable) -> RefusalError | None:
    """Why a site did not do what was asked, trusting nothing: its words as one line that people can read.

    Args:
        result: its answer.

    Returns:
        None where the answer is none that failed.
    """
    code = result.get_return_code()
    if not code or code == ReturnCode.OK:
        return None
    text = result.get_header(TEXT) or f"FLARE reports {code}"
    return RefusalError(one_line(result.get_header(REASON) or "failed", _LONGEST_REASON), one_line(text, _LONGEST_TEXT))


def one_line(value: Any, longest: int) -> str:
    """What another process said as a line of printable letters, cut where it is too long.

    >>> one_line("first\\nsecond \\x1b[2J", 100)
    'first second [2J'
    """
    text = value if isinstance(value, str) else type(value).__name__
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text[: 2 * longest]).split())
    return line if len(line) <= longest else f"{line[:longest]}..."


def why(error: BaseException, otherwise: str) -> str:
    """What to say of an error that nobody expected: that the site's disk is full, or ``otherwise``."""
    return FULL_DISK if is_full(error) else otherwise


def refuse(
    message: Message, reason: str, text: str, code: str = ReturnCode.TASK_RESULT_FILTER_ERROR, headers: bool = False
) -> Message:
    """Leave nothing in a message but an error.

    Args:
        message: a task or a result, changed in place.
        reason: one word for machines, as of ``RefusalError``.
        text: one sentence for people, free of file names and patient ids.
        code: of FLARE's return codes.
        headers: whether the message keeps its other headers, by which FLARE finds the task and the server counts bytes.

    Returns:
        The message.
    """
    kept = message.get(ReservedHeaderKey.HEADERS, {}) if headers else {}
    message.clear()
    message[ReservedHeaderKey.HEADERS] = {**kept, ReservedHeaderKey.RC: code, REASON: reason, TEXT: text}
    return message


def bare_reply(shareable: Shareable) -> Shareable:
    """A failed result without anything but its code, reason and text."""
    headers = {key: str(shareable.get_header(key)) for key in (REASON, TEXT) if shareable.get_header(key)}
    return make_reply(shareable.get_return_code(), headers)

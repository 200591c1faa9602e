"""Direct calls from one process of a job to those at sites, with a time-out for each."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any

from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import Shareable

from fedseg.contract.protocol import REASON
from fedseg.errors import RefusalError
from fedseg.messages.calls.call import TOPIC, Call, read_call
from fedseg.messages.replies import read_refusal
from fedseg.messages.sizes import message_size

_LOOK = 0.2


@dataclass(frozen=True)
class Failure:
    """Why there is no answer to a call.

    Attributes:
        why: for people.
        alive: whether the site itself has said so; else it is silent, or FLARE could not reach it.
    """

    why: str
    alive: bool = False


class DirectCalls:
    """Carries calls to several sites at once by FLARE's auxiliary messages, and counts their bytes.

    Attributes:
        up, down: bytes that came from each site, and went to it.
    """

    def __init__(self, engine: Any, timeout: float, secrets: Mapping[str, str], over: threading.Event) -> None:
        """Prepare.

        Args:
            engine: FLARE's engine of this job process.
            timeout: seconds that an answer may take.
            secrets: of each site that may be called the one that it shares with the caller, see ``Roster``.
            over: set by others once answers are no longer needed; later ones are dropped.
        """
        self.engine, self.timeout, self.secrets, self.over = engine, timeout, dict(secrets), over
        self.up: dict[str, int] = {}
        self.down: dict[str, int] = {}
        self._pool = ThreadPoolExecutor(max(1, len(self.secrets)), "calls")

    def exchange(
        self, calls: Mapping[str, Call], timeout: float | None = None
    ) -> tuple[dict[str, Call], dict[str, Failure]]:
        """Send a call to each site and wait for the answers.

        Args:
            calls: by site.
            timeout: seconds in place of the usual ones.

        Returns:
            The answers by site, and of each other site why there is none. Neither once ``over`` is set.
        """
        limit = self.timeout if timeout is None else timeout
        messages = self._messages({} if self.over.is_set() else calls)
        for site, message in messages.items():
            self.down[site] = self.down.get(site, 0) + message_size(message)
        replies = self._send(messages, limit)
        if self.over.is_set():
            return {}, {}
        for site, reply in replies.items():
            self.up[site] = self.up.get(site, 0) + message_size(reply)
        found = {site: _read_answer(call, replies.get(site), limit) for site, call in calls.items()}
        answers = {site: answer for site, answer in found.items() if isinstance(answer, Call)}
        return answers, {site: failure for site, failure in found.items() if isinstance(failure, Failure)}

    def close(self) -> None:
        """End the threads; one that still waits for an answer ends with it."""
        self._pool.shutdown(wait=False)

    def tell(self, calls: Mapping[str, Call]) -> None:
        """Send calls without waiting for answers."""
        self._send(self._messages(calls), 0.0)

    def _messages(self, calls: Mapping[str, Call]) -> dict[str, Shareable]:
        return {site: replace(call, secret=self.secrets[site]).to_shareable() for site, call in calls.items()}

    def _send(self, messages: Mapping[str, Shareable], limit: float) -> dict[str, Shareable]:
        """Each message in a thread of its own: FLARE's own call for several messages at once fails in 2.9.0."""

        def send(site: str) -> Shareable | None:
            with self.engine.new_context() as fl_ctx:
                replies = self.engine.send_aux_request([site], TOPIC, messages[site], limit, fl_ctx, optional=True)
            return (replies or {}).get(site)

        sent = {site: self._pool.submit(send, site) for site in messages}
        waiting = set(sent.values())
        while waiting and not self.over.is_set():
            waiting = wait(waiting, _LOOK).not_done
        replies = {site: future.result() for site, future in sent.items() if future not in waiting}
        return {site: reply for site, reply in replies.items() if reply is not None}


def _read_answer(call: Call, reply: Shareable | None, limit: float) -> Call | Failure:
    """The answer to a call in a reply, which is not trusted; or why there is none."""
    if reply is None:
        return Failure("it cannot be reached")
    if (code := reply.get_return_code()) != ReturnCode.OK:
        return _failure(code, reply, limit)
    try:
        answer = read_call(reply)
    except RefusalError as error:
        return Failure(f"{error.reason}: {error}", True)
    if (answer.ask, answer.start, answer.round, answer.step) != (call.ask, call.start, call.round, call.step):
        return Failure("it answered another call", True)
    return answer


def _failure(code: str, reply: Shareable, limit: float) -> Failure:
    if code == ReturnCode.TIMEOUT:
        return Failure(f"it did not answer within {limit:g} s")
    refusal = read_refusal(reply)
    told = reply.get_header(REASON) and refusal is not None
    return Failure(f"{refusal.reason}: {refusal}", True) if told and refusal else Failure(f"FLARE reports {code}")

"""Direct calls from the server's process of a job to those of its sites, with a time-out for each."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import Shareable

from fedseg.errors import RefusalError
from fedseg.executors.message_size import message_size
from fedseg.executors.protocol import REASON, TEXT
from fedseg.executors.split_calls import TOPIC, Call, read_call


class DirectCalls:
    """Carries calls to several sites at once by FLARE's auxiliary messages, and counts their bytes.

    Attributes:
        up, down: bytes that came from each site, and went to it.
    """

    def __init__(self, engine: Any, timeout: float, sites: int) -> None:
        """Prepare.

        Args:
            engine: FLARE's engine of the server's job process.
            timeout: seconds that an answer may take.
            sites: how many are called at once.
        """
        self.engine, self.timeout = engine, timeout
        self.up: dict[str, int] = {}
        self.down: dict[str, int] = {}
        self._pool = ThreadPoolExecutor(max(1, sites), "calls")

    def exchange(
        self, calls: Mapping[str, Call], timeout: float | None = None
    ) -> tuple[dict[str, Call], dict[str, str]]:
        """Send a call to each site and wait for the answers.

        Args:
            calls: by site.
            timeout: seconds in place of the usual ones.

        Returns:
            The answers by site, and of each other site why there is none.
        """
        limit = self.timeout if timeout is None else timeout
        messages = {site: call.to_shareable() for site, call in calls.items()}
        for site, message in messages.items():
            self.down[site] = self.down.get(site, 0) + message_size(message)
        replies = self._send(messages, limit)
        answers: dict[str, Call] = {}
        failures: dict[str, str] = {}
        for site, call in calls.items():
            reply = replies.get(site)
            if reply is None:
                failures[site] = "it cannot be reached"
                continue
            self.up[site] = self.up.get(site, 0) + message_size(reply)
            if (code := reply.get_return_code()) != ReturnCode.OK:
                failures[site] = _why(code, reply.get_header(REASON), reply.get_header(TEXT), limit)
                continue
            try:
                answer = read_call(reply)
            except RefusalError as error:
                failures[site] = f"{error.reason}: {error}"
                continue
            if (answer.ask, answer.start, answer.round, answer.step) != (call.ask, call.start, call.round, call.step):
                failures[site] = "it answered another call"
                continue
            answers[site] = answer
        return answers, failures

    def close(self) -> None:
        """End the threads; one that still waits for an answer ends with it."""
        self._pool.shutdown(wait=False)

    def tell(self, calls: Mapping[str, Call]) -> None:
        """Send calls without waiting for answers."""
        self._send({site: call.to_shareable() for site, call in calls.items()}, 0.0)

    def _send(self, messages: Mapping[str, Shareable], limit: float) -> dict[str, Shareable]:
        """Each message in a thread of its own: FLARE's own call for several messages at once fails in 2.9.0."""

        def send(site: str) -> Shareable | None:
            with self.engine.new_context() as fl_ctx:
                replies = self.engine.send_aux_request([site], TOPIC, messages[site], limit, fl_ctx, optional=True)
            return (replies or {}).get(site)

        found = dict(zip(messages, self._pool.map(send, messages), strict=True))
        return {site: reply for site, reply in found.items() if reply is not None}


def _why(code: str, reason: Any, text: Any, limit: float) -> str:
    if code == ReturnCode.TIMEOUT:
        return f"it did not answer within {limit:g} s"
    return f"{reason}: {text}" if reason else f"FLARE reports {code}"

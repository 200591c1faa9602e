"""Where direct calls wait for the one thread that trains."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from nvflare.apis.shareable import Shareable

from fedseg.errors import AbortedError, RefusalError
from fedseg.messages.calls.call import Ask, Call
from fedseg.messages.calls.roster import Roster
from fedseg.messages.calls.tally import CallTally
from fedseg.messages.replies import refusal
from fedseg.messages.sizes import message_size

logger = logging.getLogger(__name__)
_LOOK = 0.5
# Shorter than any time-out of the server: a site that is not yet in the round stays silent and is asked again.
_READY_WAIT = 1.0


@dataclass
class _Waiting:
    call: Call
    size: int
    answered: threading.Event = field(default_factory=threading.Event)
    answer: Shareable | None = None


class CallDesk:
    """Receives calls in FLARE's threads and passes them to the thread of the task, one after the other.

    So everything is computed in one thread, in the order in which it was asked for, and when the task ends nothing goes
    on running.

    Attributes:
        tally: of the calls that were answered in the present round, or in the last one.
    """

    def __init__(self) -> None:
        self._queue: queue.Queue[_Waiting] = queue.Queue()
        self._open = threading.Condition()
        self._place: tuple[str, int] | None = None
        self._roster = Roster()
        self._outdated = False
        self.tally = CallTally()

    def receive(self, call: Call, size: int = 0) -> Shareable:
        """Called by FLARE: wait for the answer to a call of the present round.

        Args:
            call: what is asked.
            size: bytes of its message.
        """
        place = (call.start, call.round)
        with self._open:
            if call.ask is Ask.READY and self._place is not None and self._roster.knows(call.caller, call.secret):
                # The server is in a later round: the call that ended the present one was missed.
                self._outdated |= call.start == self._place[0] and call.round > self._place[1]
            if not self._open.wait_for(lambda: self._place == place, _READY_WAIT if call.ask is Ask.READY else 0):
                return refusal("state", "The site is not in this round.")
            if not self._roster.knows(call.caller, call.secret):
                logger.error("A direct call of %s came without the secret that this site shares with it.", call.caller)
                return refusal("state", "Calls must carry the secret that the server has given this site.")
            waiting = _Waiting(call, size)
            self._queue.put(waiting)
        waiting.answered.wait()
        return waiting.answer or refusal("state", "The site has left the round.")

    def serve(
        self,
        start: str,
        round_number: int,
        roster: Roster,
        answer: Callable[[Call], Call],
        patience: float,
        aborted: Callable[[], bool],
    ) -> bool:
        """Answer the calls of a round until it ends.

        Args:
            start, round_number: of the round.
            roster: who may call, and with which secret.
            answer: called in this thread, once for each call.
            patience: seconds without a call after which the round is over for this site.
            aborted: whether the job was aborted.

        Returns:
            Whether the server has ended the round; else it has not called for too long, or is in a later round.

        Raises:
            AbortedError: ``aborted`` said so.
            RefusalError: what ``answer`` raises; it is also the answer to the call.
        """
        with self._open:
            self._place, self._outdated, self.tally = (start, round_number), False, CallTally()
            self._roster = roster
            self._open.notify_all()
        last = time.monotonic()
        try:
            while time.monotonic() - last < patience and not self._outdated:
                if aborted():
                    raise AbortedError("The work was aborted.")
                try:
                    waiting = self._queue.get(timeout=_LOOK)
                except queue.Empty:
                    continue
                self._answer(waiting, answer)
                if waiting.call.ask is Ask.END:
                    return True
                last = time.monotonic()
            return False
        finally:
            self._close()

    def _answer(self, waiting: _Waiting, answer: Callable[[Call], Call]) -> None:
        given: Call | None = None
        try:
            given = answer(waiting.call)
            waiting.answer = given.to_shareable()
        except RefusalError as error:
            waiting.answer = refusal(error.reason, str(error))
            raise
        finally:
            if waiting.answer is not None:
                self.tally.add(waiting.size, message_size(waiting.answer), given)
            waiting.answered.set()

    def _close(self) -> None:
        with self._open:
            self._place = None
            while True:
                try:
                    self._queue.get_nowait().answered.set()
                except queue.Empty:
                    return

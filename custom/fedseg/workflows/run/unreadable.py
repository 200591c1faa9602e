"""Answers of sites that FLARE cannot take: each costs its site at most this answer, never the job."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from nvflare.apis.fl_constant import FLContextKey, ReservedKey, ServerCommandNames
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.fuel.f3.cellnet.cell import Adapter
from nvflare.fuel.f3.cellnet.defs import CellChannel
from nvflare.fuel.f3.cellnet.utils import decode_payload
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.streaming.stream_const import StreamHeaderKey
from nvflare.private.defs import CellMessageHeaderKeys
from nvflare.private.fed.server.server_command_agent import ServerCommandAgent
from nvflare.private.fed.server.server_runner import ServerRunner
from nvflare.security.logging import secure_format_exception

from fedseg.errors import RefusalError
from fedseg.messages.replies import refusal, refuse

ATTEMPTS = 3
"""How often a site may send an answer that cannot be read before it is refused."""

logger = logging.getLogger(__name__)


class AnswerIntake(Adapter):
    """Takes in what sites submit, in place of FLARE's adapter, which ends the job's process if it cannot decode it.

    An answer brings references to its arrays, and these are fetched from the site while it is decoded; so it cannot
    be read if the site dies meanwhile, if its line breaks, or if it offers what it does not have. The site is told,
    and FLARE's client sends the answer once more after a few seconds. The last attempt gives a refusal under the
    site's name in its place, which concludes the task; the site goes on with the next one.

    A return code with which FLARE would end the job for all becomes a refusal too.
    """

    def __init__(self, agent: ServerCommandAgent, job: str, given: Callable[[str], tuple[str, str] | None]) -> None:
        """Prepare.

        Args:
            agent: what FLARE calls with the commands of sites.
            job: id of the job.
            given: of a site by name, the name and the id of the task that it was given last.
        """
        super().__init__(agent.execute_command, agent.cell.core_cell.my_info, agent.cell)
        self._clients, self._job, self._given = agent.engine.server.client_manager.clients, job, given
        self._failures: Counter[str] = Counter()
        self._lock = threading.Lock()

    def begin(self) -> None:
        """From now on take in what sites submit to this process."""
        self.cell.register_blob_cb(CellChannel.SERVER_COMMAND, ServerCommandNames.SUBMIT_UPDATE, self.call)

    def call(self, future: Any, *args: Any, **kwargs: Any) -> None:
        """FLARE's callback for a message that begins to arrive."""
        request = Message(future.headers, future.result())
        try:
            decode_payload(request, StreamHeaderKey.PAYLOAD_ENCODING, fobs_ctx=self.cell.get_fobs_context())
            _check(request.payload)
        except Exception as error:
            request.payload = self._instead(request, error)
            request.remove_header(StreamHeaderKey.PAYLOAD_ENCODING)
        super().call(_Arrived(request), *args, **kwargs)

    def _instead(self, request: Message, error: Exception) -> Shareable:
        """What counts as the answer of a site whose own cannot be read; raises the error while it may try again."""
        client = self._clients.get(request.get_header(CellMessageHeaderKeys.TOKEN))
        given = client and self._given(client.name)
        if not given:
            raise error
        task, task_id = given
        with self._lock:
            self._failures[task_id] += 1
            attempt = self._failures[task_id]
        reason = secure_format_exception(error)
        logger.warning("%s: attempt %d to read the answer to %s failed: %s", client.name, attempt, task, reason)
        if attempt < ATTEMPTS:
            raise error
        text = f"The answer to the task {task} could not be read in {ATTEMPTS} attempts ({type(error).__name__})."
        answer, site = refusal("failed", text), FLContext()
        for key, value in ((ReservedKey.RUN_NUM, self._job), (ReservedKey.IDENTITY_NAME, client.name)):
            site.set_prop(key, value, private=False)
        answer.set_peer_context(site)
        answer.add_cookie(FLContextKey.TASK_ID, task_id)
        answer.set_header(FLContextKey.TASK_NAME, task)
        return answer


class _Arrived:
    """A message that has arrived and is decoded, in the form of a future."""

    def __init__(self, message: Message) -> None:
        self.headers, self._payload = message.headers, message.payload

    def result(self) -> Any:
        return self._payload


def _check(answer: Any) -> None:
    """Refuse what FLARE's server does not expect of a client (RefusalError), and take its power from a return code."""
    if not isinstance(answer, Shareable) or not isinstance(answer.get_peer_context(), FLContext):
        raise RefusalError("failed", "It is no answer of a FLARE client.")
    if (code := answer.get_return_code()) in ServerRunner.ABORT_RETURN_CODES:
        refuse(answer, "failed", f"FLARE reports {code}", headers=True)

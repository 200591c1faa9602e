"""Where direct calls come in at a site, and from whom they are taken."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from nvflare.apis.shareable import Shareable
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
from nvflare.fuel.f3.cellnet.fqcn import FQCN
from nvflare.fuel.f3.cellnet.utils import new_cell_message
from nvflare.fuel.f3.message import Message
from nvflare.private.defs import CellChannel

from fedseg.messages.calls.call import TOPIC
from fedseg.messages.replies import refusal

logger = logging.getLogger(__name__)
Answer = Callable[[Shareable], Shareable]


class CallGate:
    """Takes calls from this job's server, and from nobody else.

    A handler that is registered with FLARE for auxiliary messages learns who sends from the sender's own words. The
    origin on a message's envelope is better: what one site sends to another passes FLARE's server, which drops a
    message whose origin is not the one that its sender has registered with. So this listens where the envelope is
    still there.

    It is no proof: of a sender whose token FLARE's server has signed once and does not know any more, as after a new
    login of the same site, FLARE 2.9 looks at the signature only. Therefore a call must also carry a secret that only
    the server and this site have, see ``CallDesk``.
    """

    def __init__(self, job_id: str, answer: Answer) -> None:
        """Prepare.

        Args:
            job_id: FLARE's id of the job.
            answer: gives the reply to a call.
        """
        # The server's process of the job; the simulator's only one.
        self.servers = FQCN.join([FQCN.ROOT_SERVER, job_id]), FQCN.ROOT_SERVER
        self._answer = answer

    def open(self, engine: Any) -> None:
        """Listen from now on; without FLARE's connection no call is answered.

        Args:
            engine: FLARE's engine of the site's job process.
        """
        cell = engine.get_cell()
        if cell is None:
            logger.error("FLARE has no connection, so that no call of the server can be answered.")
            return
        # More exact than FLARE's own entry for all topics, and so before it. By keywords: FLARE looks for the channel
        # among them, and would else miss messages that are streamed.
        cell.register_request_cb(channel=CellChannel.AUX_COMMUNICATION, topic=TOPIC, cb=self.receive)

    def receive(self, message: Message) -> Message:
        """Called by FLARE in one of its threads; gives the reply."""
        origin = message.get_header(MessageHeaderKey.ORIGIN)
        if origin not in self.servers or not isinstance(message.payload, Shareable):
            logger.error("A call of split training came from %s, not from this job's server.", origin)
            return new_cell_message({}, refusal("state", "Calls are taken from this job's server only."))
        return new_cell_message({}, self._answer(message.payload))

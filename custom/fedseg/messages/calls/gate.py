"""Where direct calls come in at a site, and whose calls are accepted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from nvflare.apis.shareable import Shareable
from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
from nvflare.fuel.f3.cellnet.fqcn import FQCN
from nvflare.fuel.f3.cellnet.utils import new_cell_message
from nvflare.fuel.f3.message import Message
from nvflare.fuel.f3.streaming.stream_const import STREAM_CHANNEL, STREAM_DATA_TOPIC
from nvflare.private.defs import CellChannel

from fedseg.messages.calls.call import TOPIC
from fedseg.messages.calls.roster import SERVER
from fedseg.messages.replies import refusal

logger = logging.getLogger(__name__)
_PLAIN = "Calls between sites must be encrypted for this site."
Answer = Callable[[str, Shareable], Shareable]


class CallGate:
    """Accepts calls of this job's server, and of those sites of the job that were admitted.

    A handler that is registered with FLARE for auxiliary messages learns who sends from the sender's own words. The
    origin on a message's envelope is better: what one site sends to another passes FLARE's server, which drops a
    message whose origin is not the one that its sender has registered with. So this listens where the envelope is
    still there.

    The origin alone does not prove who sends: where FLARE's server has signed a sender's token and no longer knows it,
    as after a new login of the same site, FLARE 2.9 checks the signature only. Therefore a call must also carry the
    secret that caller and site share, see ``Roster``.
    """

    def __init__(self, job_id: str, answer: Answer, topic: str = TOPIC) -> None:
        """Prepare.

        Args:
            job_id: FLARE's id of the job.
            answer: returns the reply to a call, from the caller's name and the message.
            topic: of the calls; those between sites have one of their own, on which the server may not call.
        """
        self._job_id, self._answer, self._topic = job_id, answer, topic
        # The server's process of the job; the simulator's only one.
        servers = (FQCN.join([FQCN.ROOT_SERVER, job_id]), FQCN.ROOT_SERVER) if topic == TOPIC else ()
        self._callers = dict.fromkeys(servers, SERVER)
        self._whose = f"Calls are taken from this job's {'server' if topic == TOPIC else 'sites'} only."
        self._sealed: Callable[[], bool] = lambda: False

    def only_sealed(self, needed: Callable[[], bool]) -> None:
        """Refuse calls that came without FLARE's encryption between two processes, where ``needed`` says so.

        FLARE answers a call as it came: an encrypted one encrypted for the certificate of the process from which it
        claims to be, a plain one in plain. It takes the word of the message that it is encrypted; therefore its frames
        are looked at before FLARE opens them.
        """
        self._sealed = needed

    def admit(self, sites: Mapping[str, str]) -> None:
        """Also accept calls of the job's processes at these sites.

        Args:
            sites: for each site the full name of its FLARE client in FLARE's network (``Client.get_fqcn``).
        """
        self._callers |= {FQCN.join([place, self._job_id]): site for site, place in sites.items()}

    def listen(self, engine: Any) -> None:
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
        cell.register_request_cb(channel=CellChannel.AUX_COMMUNICATION, topic=self._topic, cb=self.receive)

        core = getattr(cell, "core_cell", None)
        if core is not None:
            for channel, topic in ((STREAM_CHANNEL, STREAM_DATA_TOPIC), (CellChannel.AUX_COMMUNICATION, self._topic)):
                core.add_incoming_filter(channel=channel, topic=topic, cb=self.drop_plain)

    def drop_plain(self, frame: Message) -> Message | None:
        """Called by FLARE with each frame before it is opened; an answer has FLARE drop the frame.

        Where calls must be encrypted, a frame of another site's process of the job must be: its call or its answer.
        """
        caller = self._callers.get(frame.get_header(MessageHeaderKey.ORIGIN))
        encrypted = frame.get_header(MessageHeaderKey.SECURE, False) and frame.get_header(
            MessageHeaderKey.ENCRYPTED, False
        )
        if caller is None or caller == SERVER or encrypted or not self._sealed():
            return None
        logger.error("A part of a message of %s came without encryption, and was dropped.", caller)
        return new_cell_message({}, refusal("privacy", _PLAIN))

    def receive(self, message: Message) -> Message:
        """Called by FLARE in one of its threads; returns the reply."""
        origin = message.get_header(MessageHeaderKey.ORIGIN)
        caller = self._callers.get(origin)
        if caller is None or not isinstance(message.payload, Shareable):
            logger.error("A direct call came from %s, which may not call this site.", origin)
            return new_cell_message({}, refusal("state", self._whose))
        if self._sealed() and not message.get_header(MessageHeaderKey.SECURE, False):
            logger.error("A call of %s came without encryption.", caller)
            return new_cell_message({}, refusal("privacy", _PLAIN))
        return new_cell_message({}, self._answer(caller, message.payload))

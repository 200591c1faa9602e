"""How a site calls another site of the job: encrypted for the other's certificate, and answered by nobody else."""

from __future__ import annotations

import hmac
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from typing import Any

from nvflare.apis.client import Client
from nvflare.apis.fl_constant import ReturnCode
from nvflare.fuel.f3.cellnet.fqcn import FQCN

from fedseg.contract.protocol import REASON
from fedseg.errors import RefusalError
from fedseg.messages.calls.peer_call import TOPIC, PeerCall, read_peer_call
from fedseg.messages.replies import read_refusal
from fedseg.messages.sizes import message_size

_BYTES = 16


class SilenceError(RefusalError):
    """Another site cannot be reached, or did not answer in time."""

    def __init__(self, site: str, why: str) -> None:
        super().__init__("silence", f"{site} {why}.")

    def __reduce__(self) -> tuple[Any, ...]:
        return RefusalError, (self.reason, str(self))


class PeerPost:
    """Carries calls to other sites, and counts their bytes.

    Attributes:
        sent, received: bytes to and from each site since ``reset``.
    """

    def __init__(self, engine: Any, sealed: Callable[[], bool]) -> None:
        """Prepare.

        Args:
            engine: FLARE's engine of this job process.
            sealed: whether calls must be encrypted between the two sites, as everywhere but in a simulation.
        """
        self._engine, self._sealed = engine, sealed
        self._lock = threading.Lock()
        self.sent: dict[str, int] = {}
        self.received: dict[str, int] = {}

    def reset(self) -> None:
        """Count bytes from 0."""
        with self._lock:
            self.sent, self.received = {}, {}

    def ask(self, site: str, call: PeerCall, seconds: float) -> PeerCall:
        """The answer of a site to a call.

        Args:
            site: its name.
            call: what is asked; it gets a number of its own.
            seconds: without any progress after which nobody waits any more.

        Raises:
            SilenceError: there is none in time.
            RefusalError: the site says no, with its reason; or the answer is none to this call (``data``), or the
                connection does not encrypt between sites (``privacy``).
        """
        call = replace(call, nonce=secrets.token_hex(_BYTES))
        message, sealed = call.to_shareable(), self._sealed()
        if sealed:
            check_identities(self._engine)
        self._count(self.sent, site, message_size(message))
        with self._engine.new_context() as fl_ctx:
            replies = self._engine.send_aux_request(
                [site], TOPIC, message, seconds, fl_ctx, optional=True, secure=sealed
            )
        reply = (replies or {}).get(site)
        if reply is None:
            raise SilenceError(site, "cannot be reached")
        code = reply.get_return_code()
        if code not in (None, "", ReturnCode.OK):
            refusal = read_refusal(reply)
            if refusal is not None and reply.get_header(REASON):
                raise refusal
            late = f"did not answer within {seconds:g} s" if code == ReturnCode.TIMEOUT else f"fails: FLARE says {code}"
            raise SilenceError(site, late)
        self._count(self.received, site, message_size(reply))
        answer = read_peer_call(reply)
        same = (answer.ask, answer.run, answer.round) == (call.ask, call.run, call.round)
        if not same or not hmac.compare_digest(answer.nonce.encode(), call.nonce.encode()):
            raise RefusalError("data", f"What came in the name of {site} is no answer to this site's call.")
        return answer

    def ask_each(self, calls: Mapping[str, PeerCall], seconds: float) -> Iterator[tuple[str, PeerCall | RefusalError]]:
        """Call several sites at once; each answer, or why there is none, as it comes."""
        if not calls:
            return
        with ThreadPoolExecutor(len(calls), "peers") as pool:
            waiting = {pool.submit(self.ask, site, call, seconds): site for site, call in calls.items()}
            for future in as_completed(waiting):
                try:
                    yield waiting[future], future.result()
                except RefusalError as error:
                    yield waiting[future], error

    def _count(self, where: dict[str, int], site: str, size: int) -> None:
        with self._lock:
            where[site] = where.get(site, 0) + size


def check_identities(engine: Any) -> None:
    """Refuse a connection on which FLARE does not hold a certificate against the name of its site.

    FLARE encrypts for the certificate that the other side shows, and compares that with its name only where the
    federation uses mutual TLS.

    Raises:
        RefusalError: reason ``privacy``.
    """
    manager = getattr(getattr(engine.get_cell(), "core_cell", None), "credential_manager", None)
    if manager is None or not manager.enforce_identity or manager.cell_cipher is None:
        text = "The federation does not use mutual TLS, without which no message can be encrypted between two sites."
        raise RefusalError("privacy", text)


def places_of(clients: Sequence[Client]) -> dict[str, str]:
    """The places of sites in FLARE's network, by name, as the server tells them.

    FLARE holds a certificate against the first part of a place, so this must be the site's name: the server could else
    give one site the place of another.

    Raises:
        RefusalError: a site has another place, or two have one name (reason ``privacy``).
    """
    found: dict[str, str] = {}
    for client in clients:
        place = str(client.get_fqcn())
        if client.name in found:
            raise RefusalError("privacy", f"The server names the site {client.name} twice.")
        if FQCN.split(place)[0] != client.name:
            text = f"The server puts the site {client.name} at {place}, whose certificate is not that of {client.name}."
            raise RefusalError("privacy", f"{text} In a swarm each site connects under its own name, without relays.")
        found[client.name] = place
    return found

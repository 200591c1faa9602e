"""The calls of one site to another, where models go between sites: what is asked, and what is answered.

They travel as FLARE's auxiliary messages between the sites' processes of the job, through FLARE's server where sites
cannot reach each other. A provisioned site sends them encrypted for the certificate of the other site (FLARE's
``secure``), so that whoever relays them can neither read nor make them:

- each call carries a number that nobody can guess, and its answer repeats it: only who could read the call answers it;
- with its update a site gives a token, and takes a merged model from nobody who does not show it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from nvflare.apis.shareable import Shareable

from fedseg.errors import RefusalError
from fedseg.messages.calls.packing import pack_array, unpack_array
from fedseg.networks.weights import Arrays

TOPIC = "fedseg.peers"
_CONTENT = "fedseg_peer"
_KINDS = ("bool", "int8", "uint8", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64")
_NAMES = {"ask", "run", "round", "nonce", "facts", "arrays"}
# A block of a thousand sites, with their signatures and certificates.
_LONGEST = 2**24


class PeerAsk(StrEnum):
    """What one site asks another.

    ``state``: how far it is with merging a round; ``update``: its update of a round, which waits there; ``take``: to
    take the merged model of a round, and to sign for it; ``model``: the model with a digest; ``promise``: to sign
    nothing of an earlier leader any more; ``block``: to take a block of the ledger; ``ledger``: the blocks after some;
    ``version``: which version of its own model that with a digest is.
    """

    STATE = "state"
    UPDATE = "update"
    TAKE = "take"
    MODEL = "model"
    PROMISE = "promise"
    BLOCK = "block"
    LEDGER = "ledger"
    VERSION = "version"


@dataclass(frozen=True)
class PeerCall:
    """A call, or the answer to one.

    Attributes:
        ask: what is asked; an answer repeats it.
        run: id of the run.
        round: from 0; -1 for the start.
        facts: plain JSON.
        arrays: by name.
        nonce: of the call; an answer repeats it.
    """

    ask: PeerAsk
    run: str
    round: int
    facts: Mapping[str, Any] = field(default_factory=dict)
    arrays: Arrays = field(default_factory=dict, repr=False)
    nonce: str = field(default="", repr=False)

    def to_shareable(self) -> Shareable:
        """The form in which it travels."""
        scalars = {"ask": self.ask.value, "run": self.run, "round": self.round, "nonce": self.nonce}
        arrays = {name: pack_array(value) for name, value in self.arrays.items()}
        message = Shareable()
        message[_CONTENT] = {**scalars, "facts": json.dumps(self.facts), "arrays": arrays}
        return message


def read_peer_call(message: Shareable) -> PeerCall:
    """A call as it came; nothing in it is trusted.

    Raises:
        RefusalError: it is no such call, or holds something else than numbers, text and arrays (reason ``data``).
    """
    content = message.get(_CONTENT)
    try:
        if set(content) != _NAMES or len(content["facts"]) > _LONGEST:
            raise ValueError
        facts = json.loads(content["facts"])
        run, number, nonce = content["run"], content["round"], content["nonce"]
        if not isinstance(facts, dict) or not isinstance(run, str) or not isinstance(nonce, str):
            raise TypeError
        if type(number) is not int:
            raise TypeError
        arrays = {str(name): unpack_array(value, _KINDS) for name, value in content["arrays"].items()}
        return PeerCall(PeerAsk(content["ask"]), run, number, facts, arrays, nonce)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        raise RefusalError("data", "The message is no call between sites.") from None

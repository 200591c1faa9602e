"""The direct calls of split training: what the server asks a site in an iteration, and what the site answers.

Tasks are asked for by sites every few tenths of a second, which is too slow for what happens several times a second. So
a task only starts a round at a site; within it the server calls the site directly, by FLARE's auxiliary messages.
Arrays travel as their bytes: nothing in a call is executed, and nothing is fetched by further messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from nvflare.apis.shareable import Shareable

from fedseg.errors import RefusalError
from fedseg.messages.calls.packing import pack_array, unpack_array
from fedseg.messages.calls.roster import SERVER
from fedseg.networks.weights import Arrays

TOPIC = "fedseg.split"
# In the meta of the task `train`: seconds without a call after which the round ends for a site.
PATIENCE = "fedseg_patience"
# A header of the task `train`: what the server's calls to this site carry, so that the site knows them.
SECRET = "fedseg_call_secret"
FEATURES, LABELS, GRADIENTS, PARAMETERS = "features", "labels", "gradients", "parameters"
PREDICTIONS, AT_PREDICTIONS, PART = "predictions", "at_predictions", "part"
_CONTENT = "fedseg_split"
_KINDS = ("uint8", "float16", "float32", "float64")


class Ask(StrEnum):
    """What the server asks.

    ``ready``: whether the site is in the round; ``features``: those of its first batch; ``answer``: the gradient of its
    loss at the predictions that come along; ``backward``: to carry a gradient through its part; ``apply``: to step with
    a sum of gradients; ``receive``: to begin its turn with the part of the network that comes along; ``send``: to end
    its turn with what has become of it; ``end``: to leave the round.
    """

    READY = "ready"
    FEATURES = "features"
    ANSWER = "answer"
    BACKWARD = "backward"
    APPLY = "apply"
    RECEIVE = "receive"
    SEND = "send"
    END = "end"


@dataclass(frozen=True)
class Call:
    """A call, or the answer to one.

    Attributes:
        ask: what is asked; an answer repeats it.
        start: which start of the server the round belongs to.
        round: from 0.
        step: the iteration of the round that the call belongs to, from 0.
        next: progress of the whole job, 0 to 1, at the next iteration, whose features are then asked for along; None
            if there is none.
        loss: of the site's batch in the answer to ``answer``, its mean in ``end``; None where it is not told.
        arrays: by what they are and by name.
        secret: that caller and called share; an answer has none.
        caller: who calls, as the message's envelope says; it does not travel in the call.
    """

    ask: Ask
    start: str
    round: int
    step: int = 0
    next: float | None = None
    loss: float | None = None
    arrays: Mapping[str, Arrays] = field(default_factory=dict)
    secret: str = field(default="", repr=False)
    caller: str = SERVER

    def group(self, kind: str) -> Arrays:
        """The arrays of one kind.

        Raises:
            RefusalError: the message has none (reason ``data``).
        """
        if kind not in self.arrays:
            raise RefusalError("data", f"The message brings no {kind}.")
        return dict(self.arrays[kind])

    def to_shareable(self) -> Shareable:
        """The form in which it travels."""
        scalars = {name: getattr(self, name) for name in ("start", "round", "step", "next", "loss", "secret")}
        arrays = {
            kind: {name: pack_array(value) for name, value in group.items()} for kind, group in self.arrays.items()
        }
        message = Shareable()
        message[_CONTENT] = {"ask": self.ask.value, **scalars, "arrays": arrays}
        return message


def read_call(message: Shareable, caller: str = SERVER) -> Call:
    """A call as it came; nothing in it is trusted.

    Args:
        message: the call.
        caller: whose it is, by the message's envelope.

    Raises:
        RefusalError: it is no call, or holds something else than arrays of numbers (reason ``data``).
    """
    content = message.get(_CONTENT)
    try:
        arrays = {
            str(kind): {str(name): unpack_array(value, _KINDS) for name, value in group.items()}
            for kind, group in content["arrays"].items()
        }
        following, loss, secret = content["next"], content["loss"], content["secret"]
        if not all(value is None or type(value) in (int, float) for value in (following, loss)):
            raise TypeError
        if not isinstance(secret, str):
            raise TypeError
        place = str(content["start"]), int(content["round"]), int(content["step"])
        return Call(Ask(content["ask"]), *place, following, loss, arrays, secret, caller)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise RefusalError("data", "The message is no call of split training.") from None

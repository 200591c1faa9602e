"""What a site has of models that go between sites, and the check that each must pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np

from fedseg.errors import RefusalError
from fedseg.executors.peers.post import PeerPost
from fedseg.files.digest import model_digest
from fedseg.messages.calls.peer_call import PeerCall
from fedseg.networks.weights import Arrays, check_weights
from fedseg.site.peer_files import PeerFiles


class PeerModels(ABC):
    """The models of one run at one site; a subclass says what other sites get.

    Attributes:
        site, run, post, files: name, run, calls and files of this site.
        start: weights from which the run starts, in the network's order.
        start_digest: their digest.
        check: asked before an update or a model leaves; may be replaced.
        handed: told of each that leaves: round, other site, what; may be replaced.
    """

    def __init__(self, site: str, run: str, post: PeerPost, files: PeerFiles, start: Arrays) -> None:
        self.site, self.run, self.post, self.files, self.start = site, run, post, files, start
        self.start_digest = model_digest(start)
        self.check: Callable[[], None] = lambda: None
        self.handed: Callable[[int, str, str], None] = lambda number, to, what: None

    @abstractmethod
    def answer(self, caller: str, call: PeerCall) -> PeerCall:
        """Do what another site asks.

        Raises:
            RefusalError: it is not this site's to do; the text names no file.
        """

    def model(self, digest: str) -> Arrays | None:
        """The weights with a digest; None where they are not here."""
        if digest == self.start_digest:
            return dict(self.start)
        found = self.files.model_with(digest)
        return None if found is None else self.ordered(found.weights)

    def asked(self, site: str, call: PeerCall, digest: str, seconds: float) -> tuple[Arrays, PeerCall]:
        """The weights with a digest from another site, in the network's order, and its whole answer.

        Args:
            site: which has them.
            call: that asks for them.
            digest: of the weights.
            seconds: without progress after which the site counts as silent.

        Raises:
            RefusalError: the site does not give them, or gives others.
        """
        answer = self.post.ask(site, call, seconds)
        weights = self.ordered(dict(answer.arrays))
        if model_digest(weights) != digest:
            raise another_model(site)
        return weights, answer

    def ordered(self, weights: Arrays) -> Arrays:
        """Weights in the network's order, once they are known to be of this network.

        Raises:
            RefusalError: a name, a shape or a type is another, or values are not finite (reason ``weights``).
        """
        check_weights(self.start, weights)
        if set(weights) != set(self.start) or any(weights[name].dtype != self.start[name].dtype for name in weights):
            raise RefusalError("weights", "The model has other arrays than the network.")
        if not all(np.isfinite(value).all() for value in weights.values()):
            raise RefusalError("weights", "The model holds values that are not finite.")
        return {name: np.array(weights[name]) for name in self.start}


def another_model(site: str) -> RefusalError:
    """The refusal of what a site gave in the place of the model that it was asked for (reason ``weights``)."""
    return RefusalError("weights", f"{site} gave another model than it was asked for.")

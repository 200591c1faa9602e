"""Forward and backward through the server's part of the network, and which site it is that breaks them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch

from fedseg.errors import RefusalError
from fedseg.networks.split.parts import Tensors
from fedseg.training.split.server_half import CutGradients, ServerHalf

Batch = tuple[Tensors, torch.Tensor | None]
"""Features of a site, and its labels where they are shared."""
Batches = Mapping[str, Batch]
Answered = Mapping[str, tuple[torch.Tensor, float]]
"""Where labels are private, of each site that has answered: its gradient at its predictions, and its loss."""
Predictions = Mapping[str, torch.Tensor]
Leave = Callable[[str, str], None]
"""Told of a site that is left out of the rest of the round, and why; not where a site is missing in an exchange."""


class ServerPass:
    """The server's computation in one iteration, up to where somebody steps.

    Numbers that are finite where they come in may be too large for what is made of them. One site's would then end the
    job for all. So it is left out by name, and the pass is made again without it.

    Samples do not meet in the network, since normalisations are each sample's own. A site is a cause by itself or not
    at all, and is found by a pass of its own. Where sites train one after the other, it is the one whose turn it is.
    """

    def __init__(self, server: ServerHalf, leave: Leave) -> None:
        """Prepare.

        Args:
            server: the server's half.
            leave: see above.
        """
        self.server, self.leave = server, leave

    def run(self, drawn: Batches, ask: Callable[[Predictions], Answered] | None) -> CutGradients | None:
        """Forward and backward; the server's half then waits for its step.

        Args:
            drawn: what the sites have sent.
            ask: where labels are private, carries predictions to the sites and their answers back; called once.

        Returns:
            What goes back to the sites that are left; None if there are none.

        Raises:
            RefusalError: the loss or a gradient is not finite, and it is not single sites that are the cause (reason
                ``loss``).
        """
        batches: Batches = drawn
        answered: Answered | None = None
        while batches:
            predictions = self._forward(batches)
            if predictions is not None and ask is not None and answered is None:
                answered = ask(predictions)
                if not answered:
                    return None
            found = None if predictions is None else self._backward(batches, answered)
            if found is not None:
                return found
            batches = self._without_causes(batches, ask is not None, answered)
        return None

    def _forward(self, batches: Batches) -> Predictions | None:
        """Predictions by site; None if one is not finite."""
        predictions = self.server.forward({site: features for site, (features, _) in batches.items()})
        return predictions if finite(predictions.values()) else None

    def _backward(self, batches: Batches, answered: Answered | None) -> CutGradients | None:
        """None if the loss, a gradient at the features or one of the server's part is not finite."""
        try:
            if answered is None:
                labels = {site: own for site, (_, own) in batches.items() if own is not None}
                found = self.server.backward_labels(labels)
            else:
                present = {site: answered[site] for site in batches if site in answered}
                gradients = {site: gradient for site, (gradient, _) in present.items()}
                found = self.server.backward_gradients(gradients, {site: loss for site, (_, loss) in present.items()})
        except RefusalError as error:
            if error.reason != "loss":
                raise
            return None
        own = [value.grad for value in self.server.parameters().values() if value.grad is not None]
        # By its norm the gradient is clipped, and that overflows first.
        norm = torch.nn.utils.get_total_norm(own)
        back = [value for tensors in found.gradients.values() for value in tensors.values()]
        return found if finite([norm, *back]) else None

    def _without_causes(self, batches: Batches, private: bool, answered: Answered | None) -> Batches:
        """The batches of the other sites. Also without those that have not answered, whose gradients are missing."""
        present = [site for site in sorted(batches) if answered is None or site in answered]
        in_turn = self.server.split.in_turn
        causes = present if in_turn else [s for s in present if not self._bears(s, batches[s], private, answered)]
        rest = {site: batches[site] for site in present if site not in causes}
        if len(rest) == len(batches) or (not rest and not in_turn):
            raise RefusalError(
                "loss",
                f"With the numbers of {', '.join(present)} the loss or a gradient is not finite, and it is not single "
                "sites that are the cause; the learning rate may be too high.",
            )
        for site in causes:
            self.leave(site, "loss: its numbers are so large that the loss or a gradient is not finite")
        return rest

    def _bears(self, site: str, batch: Batch, private: bool, answered: Answered | None) -> bool:
        """Whether the server's part gives finite numbers for the batch of one site."""
        predictions = self._forward({site: batch})
        if predictions is None or (private and answered is None):
            return predictions is not None
        return self._backward({site: batch}, answered) is not None


def finite(values: Iterable[torch.Tensor]) -> bool:
    """Whether all values are numbers, and none is infinite."""
    return all(bool(torch.isfinite(value).all()) for value in values)

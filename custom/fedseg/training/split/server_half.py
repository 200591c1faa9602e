"""The server's half of split training: features of all sites in, gradients at them out (SplitAVG)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fedseg.contract.settings import TrainingSettings
from fedseg.contract.split_settings import SplitSettings
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.networks.split.parts import ServerPart, Tensors
from fedseg.tasks.segmentation.losses import SegmentationLoss
from fedseg.training.optimisation import check_loss, check_norm
from fedseg.training.split.checks import batch_size, checked_labels
from fedseg.training.split.half import Half
from fedseg.training.split.weights import sum_gradients


@dataclass(frozen=True)
class CutGradients:
    """The result of a backward pass of the server.

    Attributes:
        gradients: for each site and tensor the gradient at the site's features.
        loss: of all samples together.
        losses: each site's own.
    """

    gradients: dict[str, Tensors]
    loss: float
    losses: dict[str, float]


@dataclass(frozen=True)
class _Pending:
    """An iteration between its forward and its backward pass; samples in the order of the sites' names."""

    sizes: dict[str, int]
    features: Tensors
    logits: torch.Tensor

    def split(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Rows of a tensor [sum of batches, ...] by site."""
        return dict(zip(self.sizes, values.split(list(self.sizes.values())), strict=True))


class ServerHalf(Half):
    """The last stages of the network, on the concatenated features of any number of sites.

    Zhang et al., "SplitAVG: a heterogeneity-aware federated deep learning method for medical imaging", IEEE J Biomed
    Health Inform 2022; derived here from the algorithm. One iteration:

    1. ``forward`` concatenates the features in the order of the sites' names, whatever the order in which they came,
       and runs the part.
    2. Labels shared: ``backward_labels`` computes the loss of all samples together. Labels private: each site answers
       its predictions with the gradient of its own mean loss, and ``backward_gradients`` weighs them by n_j/n.
    3. What goes back to a site is the gradient of the loss of all samples at the site's features. The weight n_j/n of
       a site is in it, so the sites' gradients are added up, never averaged.
    4. ``step``. With ``site_update: summed`` it waits for the gradients of the sites' parts and returns their sum; both
       parts are then clipped together by their joint norm, as one network is. Else each half clips itself.

    With one site this is ordinary split learning (Gupta and Raskar, 2018).
    """

    def __init__(
        self,
        part: ServerPart,
        settings: TrainingSettings,
        split: SplitSettings,
        loss: SegmentationLoss | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Build the half.

        Args:
            part: belongs to this object from now on.
            settings: of the training.
            split: of split training.
            loss: of logits [B, out, ...] and class values [B, 1, ...]; needed where labels are shared.
            device: a torch device.

        Raises:
            ConfigurationError: labels are shared, and there is no loss.
        """
        super().__init__(part, settings, device)
        if split.labels == "shared" and loss is None:
            raise ConfigurationError("loss", None, "given where labels are shared")
        self.split, self.loss, self.receives = split, loss, part.receives
        self._pending: _Pending | None = None

    def forward(self, features: Mapping[str, Tensors]) -> dict[str, torch.Tensor]:
        """Predictions [B, out, X, Y, Z] for each site; an iteration that never came to its end is dropped.

        Args:
            features: for each site what its ``SiteHalf.forward`` gave.

        Raises:
            ConfigurationError: batches differ in size, which ``cut_gradient: mean`` does not allow.
            RefusalError: a site's tensors do not fit to the cut or to each other (reason ``data``).
        """
        self.forget()
        sizes = {site: batch_size(site, features[site], self.receives) for site in sorted(features)}
        if not sizes:
            raise RefusalError("data", "No site has sent features.")
        if self.split.cut_gradient == "mean" and len(set(sizes.values())) > 1:
            raise ConfigurationError("cut_gradient", "mean", f"own where batches differ in size (they are {sizes})")
        joined = {
            name: self.to_device(torch.cat([self.to_device(features[site][name]) for site in sizes])).requires_grad_()
            for name in self.receives
        }
        with self.autocast():
            logits = self.part(joined)
        self._pending = _Pending(sizes, joined, logits.to(self.dtype))
        return self._pending.split(self._pending.logits.detach())

    def backward_labels(self, classes: Mapping[str, torch.Tensor]) -> CutGradients:
        """Backward from the sites' labels.

        Args:
            classes: for each site of ``forward`` the class values [B, 1, X, Y, Z] of its batch.

        Raises:
            RefusalError: labels do not fit to the predictions (reason ``data``), or the loss is not finite (``loss``).
        """
        pending = self._waiting()
        assert self.loss is not None
        own = pending.split(pending.logits)
        labels = {
            site: checked_labels(site, classes.get(site), logits, self.loss).to(self.device)
            for site, logits in own.items()
        }
        loss = self.loss(pending.logits, torch.cat(list(labels.values())))
        check_loss(loss)
        with torch.no_grad():
            losses = {site: float(self.loss(own[site], labels[site])) for site in own}
        return CutGradients(self._backward(loss, None, tuple(own)), float(loss.detach()), losses)

    def backward_gradients(self, gradients: Mapping[str, torch.Tensor], losses: Mapping[str, float]) -> CutGradients:
        """Backward from what the sites answered to their predictions.

        A site that does not answer is left out: its samples count nowhere, neither in the sum nor in its weights.

        Args:
            gradients: for each site the gradient of its own mean loss at its predictions, [B, out, X, Y, Z].
            losses: of each of these sites.

        Raises:
            RefusalError: a gradient does not fit to the predictions, or there is none (reason ``data``).
        """
        pending = self._waiting()
        own = pending.split(pending.logits)
        present = tuple(site for site in own if site in gradients)
        if not present or set(gradients) - set(own):
            raise RefusalError("data", "Gradients must come from sites whose features have come, at least from one.")
        total = sum(pending.sizes[site] for site in present)
        share = {site: pending.sizes[site] / total for site in present}
        weighted = {site: torch.zeros_like(logits) for site, logits in own.items()}
        for site in present:
            if gradients[site].shape != own[site].shape:
                raise RefusalError("data", f"The gradient of {site} is not {tuple(own[site].shape)}.")
            weighted[site] = self.to_device(gradients[site]) * share[site]
        found = self._backward(pending.logits, torch.cat(list(weighted.values())), present)
        return CutGradients(found, sum(share[s] * losses[s] for s in present), {s: losses[s] for s in present})

    def step(self, site_gradients: Mapping[str, Tensors] | None = None) -> Tensors:
        """Step with the gradients of the last backward pass.

        Args:
            site_gradients: with ``site_update: summed`` what each site's ``SiteHalf.backward`` gave; a site that is
                missing is left out of the sum.

        Returns:
            With ``summed`` the clipped sum, which every site applies; else nothing.

        Raises:
            RefusalError: there was no backward pass since the last step (reason ``state``), gradients of a site do not
                belong to the others' (``data``), or one is not finite (``loss``); nothing was changed.
        """
        own = [parameter.grad for parameter in self.part.parameters() if parameter.grad is not None]
        if not own:
            raise RefusalError("state", "The server has had no backward pass since its last step.")
        if self.split.site_update != "summed":
            self.clip_and_step()
            self.forget()
            return {}
        total = sum_gradients(site_gradients or {})
        together = [*own, *(value.to(self.device) for value in total.values())]
        norm = torch.nn.utils.get_total_norm(together)
        check_norm(norm)
        factor = torch.clamp(self.settings.gradient_clip / (norm + 1e-6), max=1.0)
        for gradient in own:
            gradient.mul_(factor)
        self.step_as_it_is()
        self.forget()
        return {name: value * factor.to(value) for name, value in total.items()}

    def forget(self) -> None:
        """Drop the present iteration: its graph and its gradients."""
        self._pending = None
        self.optimizer.zero_grad(set_to_none=True)

    def _backward(
        self, start: torch.Tensor, gradient: torch.Tensor | None, present: tuple[str, ...]
    ) -> dict[str, Tensors]:
        """Gradients at the features of the sites that are present."""
        pending = self._waiting()
        self.forget()
        start.backward(gradient)
        found: dict[str, Tensors] = {site: {} for site in present}
        for name, leaf in pending.features.items():
            assert leaf.grad is not None
            slices = pending.split(leaf.grad)
            mean = (
                torch.stack([slices[site] for site in present]).mean(0) if self.split.cut_gradient == "mean" else None
            )
            for site in present:
                found[site][name] = slices[site] if mean is None else mean
        return found

    def _waiting(self) -> _Pending:
        if self._pending is None:
            raise RefusalError("state", "No forward pass of the server waits for labels or gradients.")
        return self._pending

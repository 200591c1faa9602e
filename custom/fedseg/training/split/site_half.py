"""A site's half of split training: features of its images out, gradients at them back in."""

from __future__ import annotations

import torch

from fedseg.contract.settings import TrainingSettings
from fedseg.contract.split_settings import SplitSettings
from fedseg.errors import RefusalError
from fedseg.networks.split.parts import SitePart, Tensors
from fedseg.privacy.mechanisms.noise import NoiseSource, SecureNoise, SeededNoise
from fedseg.tasks.segmentation.losses import SegmentationLoss
from fedseg.training.optimisation import check_loss, check_norm
from fedseg.training.split.checks import check_mean_over_samples
from fedseg.training.split.half import Half, shapes


class SiteHalf(Half):
    """The first stages of the network at one site.

    One iteration, in the order in which messages come:

    1. ``forward`` runs a batch and returns the features that cross the cut; the graph stays here.
    2. Only with ``labels: private``: the server's predictions come, ``loss_gradient`` answers them.
    3. ``backward`` receives the gradient at the features. ``separate`` and ``averaged`` step at once; with ``summed``
       it returns the gradients of the part for the server to add up, and
    4. ``apply`` steps with their sum.

    A new ``forward`` drops an iteration that never came to its end; the part is then as it was before it.
    """

    def __init__(
        self,
        part: SitePart,
        site: str,
        settings: TrainingSettings,
        split: SplitSettings,
        *,
        loss: SegmentationLoss | None = None,
        seed: int = 0,
        simulated: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        """Build the half.

        Args:
            part: belongs to this object from now on.
            site: its name; part of the seed of simulated noise.
            settings: of the training.
            split: of split training.
            loss: of predictions [B, out, ...] and class values [B, 1, ...]; needed where labels are private.
            seed: of the job, for simulated noise.
            simulated: whether the noise follows from the seed, so that a run can be repeated; then it does not protect.
            device: a torch device.

        Raises:
            ConfigurationError: labels are private, and the loss is not a mean over samples.
        """
        super().__init__(part, settings, device)
        self.site, self.split, self.loss, self.seed, self.simulated = site, split, loss, seed, simulated
        if split.labels == "private":
            check_mean_over_samples(loss)
        self._features: Tensors = {}

    def forward(self, images: torch.Tensor) -> Tensors:
        """Features [B, features, X', Y', Z'] of images [B, channels, X, Y, Z], by name, to be sent."""
        with self.autocast():
            features = self.part(self.to_device(images))
        self._features = {name: value.to(self.dtype) for name, value in features.items()}
        return self._with_noise({name: value.detach() for name, value in self._features.items()})

    def loss_gradient(self, predictions: torch.Tensor, classes: torch.Tensor) -> tuple[torch.Tensor, float]:
        """The gradient of this site's own mean loss at the server's predictions, and the loss.

        Args:
            predictions: of the batch that went out last, [B, out, X, Y, Z].
            classes: its class values [B, 1, X, Y, Z].

        Raises:
            RefusalError: the loss is not finite (reason ``loss``).
        """
        assert self.loss is not None
        leaf = self.to_device(predictions).requires_grad_()
        loss = self.loss(leaf, classes.to(self.device))
        check_loss(loss)
        (gradient,) = torch.autograd.grad(loss, leaf)
        return gradient, float(loss.detach())

    def backward(self, gradients: Tensors) -> Tensors:
        """Carry the gradient at the features through the part.

        Args:
            gradients: of the loss at each tensor that ``forward`` gave, by name.

        Returns:
            With ``summed`` the gradient of every parameter, for the server; the part has not changed. Else nothing,
            and the optimizer has stepped.

        Raises:
            RefusalError: no forward pass waits, or the gradients are not those of its features (reason ``state``), or
                one is not finite (reason ``loss``).
        """
        features, self._features = self._features, {}
        if not features or shapes(gradients) != shapes(features):
            raise RefusalError("state", "The gradients are not those of the features that this site has sent last.")
        self.optimizer.zero_grad(set_to_none=True)
        names = sorted(features)
        torch.autograd.backward([features[n] for n in names], [self.to_device(gradients[n]) for n in names])
        if self.split.site_update == "summed":
            return self.gradients()
        self.clip_and_step()
        return {}

    def apply(self, gradients: Tensors) -> None:
        """Step with the sum that ``ServerHalf.step`` gave; it is clipped already.

        Raises:
            RefusalError: they are not the gradients of this part (reason ``state``), or one is not finite (``loss``).
        """
        parameters = self.parameters()
        if shapes(gradients) != shapes(parameters):
            raise RefusalError("state", "The sum of gradients is not that of this site's part of the network.")
        check_norm(torch.nn.utils.get_total_norm(list(gradients.values())))
        for name, parameter in parameters.items():
            parameter.grad = gradients[name].detach().to(parameter).clone(memory_format=torch.preserve_format)
        self.step_as_it_is()

    def forget(self) -> None:
        """Drop the present iteration, and the memory of its graph."""
        self._features = {}

    def _with_noise(self, features: Tensors) -> Tensors:
        if not self.split.feature_noise:
            return features
        source, scale = self._noise_source(), self.split.feature_noise
        drawn = {name: torch.from_numpy(source.normal(features[name].shape, scale)) for name in sorted(features)}
        return {name: value + drawn[name].to(value) for name, value in features.items()}

    def _noise_source(self) -> NoiseSource:
        """Noise of this step alone: what is drawn follows from the number of steps, which the state holds."""
        return SeededNoise(self.seed, self.site, self.steps, "features") if self.simulated else SecureNoise()

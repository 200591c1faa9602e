"""HarmoFL, the site's side: amplitudes of the site's images, and steps from perturbed weights."""

from __future__ import annotations

import torch
from monai.data.utils import dense_patch_slices

from fedseg.allowed import number
from fedseg.contract.plan import Plan
from fedseg.errors import RefusalError
from fedseg.networks.parts.amplitude import AMPLITUDE, SPECTRUM, amplitude_of
from fedseg.networks.weights import Arrays
from fedseg.training.hooks import LocalTraining, TrainingHook
from fedseg.training.patches import Sample


class HarmoFL(TrainingHook):
    """Harmonises the images of all sites, and seeks weights around which the loss is flat (Jiang et al., AAAI 2022).

    1. Before round 0 a site sends the mean amplitudes of its training images, and nothing else of them;
       ``aggregators.mean_amplitude.MeanAmplitude`` makes the model's of them, with which the part ``amplitude`` of
       every site's network normalises each patch.
    2. Each step: gradient g at the weights W; gradient g' at W + alpha * g / ||g||; W again, to the last bit; then the
       optimizer's step with g'. A step takes twice the time.

    The mean is over patches that tile each image, then over images: images of all sizes count equally.
    """

    prefix = "amplitude/"
    # Each batch is one step, along the gradient of a loss that is flattened.
    withholds = frozenset()
    # The weights before the step.
    copies = 1

    def __init__(self, alpha: float = 0.05) -> None:
        """Choose how far weights are perturbed.

        Args:
            alpha: length of the perturbation (L2) over all parameters, from 0 up; 0 is the plain step.
        """
        self.alpha = number("alpha", alpha, least=0)

    def check_plan(self, plan: Plan) -> None:
        plan.network.require_part(AMPLITUDE, "HarmoFL")

    def arrays_before_rounds(self, training: LocalTraining) -> Arrays:
        part, size = amplitude_of(training.network), training.task.patch_size
        total = torch.zeros(part.spectrum.shape, dtype=torch.float64)
        for index in range(len(training.training_cases)):
            image = training.training_cases[index].image
            patches = [image[(slice(None), *place)] for place in dense_patch_slices(image.shape[1:], size, size)]
            of_image = torch.zeros_like(total)
            for patch in patches:
                of_image += part.measure(patch[None].to(training.device)).double().cpu()
            total += of_image / len(patches)
        return {f"{self.prefix}spectrum": (total / len(training.training_cases)).float().numpy()}

    def before_round(self, training: LocalTraining, global_weights: Arrays, round_number: int) -> None:
        if not global_weights[SPECTRUM].any():
            raise RefusalError("weights", "The model has no amplitudes: its job lacks MeanAmplitude as shared_arrays.")

    def step(self, training: LocalTraining, batch: Sample) -> float:
        loss = training.compute_gradients(batch)
        gradients = [(p, p.grad) for p in training.network.parameters() if p.grad is not None]
        norm = torch.stack([gradient.norm() for _, gradient in gradients]).norm()
        if self.alpha > 0 and norm > 0:
            before = [parameter.detach().clone() for parameter, _ in gradients]
            try:
                with torch.no_grad():
                    for parameter, gradient in gradients:
                        parameter.add_(gradient * (self.alpha / norm))
                training.compute_gradients(batch)
            finally:
                with torch.no_grad():
                    for (parameter, _), value in zip(gradients, before, strict=True):
                        parameter.copy_(value)
        training.apply_gradients()
        return loss

"""How one site trains, as checked values."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from fedseg.allowed import number, one_of, setting, settings, switch, whole
from fedseg.contract.patch_sizes import PatchSize, forced_count, patch_sizes
from fedseg.errors import ConfigurationError
from fedseg.tasks.segmentation.loss_terms import LOSSES, MARGINAL, UNDRAWN


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of the training at a site, the same at every site of a job.

    Attributes:
        local_epochs: passes over the training cases in each round.
        patches_per_case: patches of each case and pass, one after the other.
        patch_sizes: sizes of patches, one drawn for each batch by its share; empty: the task's ``patch_size``.
        forced_foreground: share of each batch, the last patches of it, that have a voxel of a class in their centre,
            every class that the case has as often; the others lie anywhere. 0: the task's ``sampling`` frequencies.
        batch_size: patches per optimizer step.
        optimizer: ``adamw`` or ``sgd``.
        momentum: of ``sgd``, in Nesterov's form; 0 for none. ``adamw`` has its own and ignores it.
        learning_rate: peak of the schedule.
        weight_decay: decoupled for ``adamw``.
        schedule: course of the learning rate over ALL rounds: ``one_cycle`` (linear rise over ``warmup``, cosine
            fall), ``cosine``, ``polynomial`` (power 0.9) or ``constant``.
        warmup: fraction of all steps over which ``one_cycle`` rises.
        gradient_clip: largest L2 norm of a step's gradient.
        loss: terms of the loss, see ``tasks.segmentation.loss_terms``; other kinds of tasks have their own loss.
        dice_weight: weight of the term of regions (Dice, Tversky) beside that of voxels (cross-entropy, focal).
        focal_gamma, tversky_alpha, tversky_beta, gce_q: of these terms, see ``LossTerms``.
        undrawn: the loss of cases in which regions are not drawn: ``marginal`` leaves them open, ``exclusion`` also
            keeps them off the drawn ones, see ``tasks.segmentation.partial_loss``.
        batch_dice: Dice over the whole batch instead of the mean over its patches; steadier on small structures.
        weight_average: decay of an exponential moving average of the weights over the steps of a round, which begins
            with the received ones and rises to its decay, see ``training.weight_average``; its end is the site's model,
            whose change the site sends. 0: the last weights.
        reset_optimizer: start every round with a fresh optimizer instead of the site's saved one; None does so where
            rounds ask only some sites, since moments of a site that was away belong to an old model.
        augmentation: ``none``, ``intensity`` (scale, shift, noise, the task's mirror axes) or ``full`` (also turns
            and zooms in mm, blur, contrast, gamma, lower resolution) or ``nnunet`` (as nnU-Net's trainer draws them).
        channel_dropout: probability with which a patch loses each optional channel that it has, see
            ``training.channel_dropout``; 0 for none.
        activation_checkpointing: whether the backward pass computes the stages of the network once more instead of
            keeping what they computed: the same gradients in less memory and up to a half more time, see
            ``networks.checkpointing``.
        threads: torch threads; equal results need equal thread counts.
        precision: ``auto`` or ``bfloat16`` (mixed on a GPU, float32 on a CPU), or ``float32``.
        cache: where pre-processed cases are kept: ``memory`` or ``disk`` (the site's cache folder).
        overlap: overlap of sliding windows in validation, as a fraction of the patch.
        validate_after: also score the site's own model after its local training, for rules that weigh by it.
        empty: convention for regions that are empty in the reference, see ``evaluation.metrics``.
    """

    local_epochs: int = setting(1, whole, most=100_000)
    patches_per_case: int = setting(1, whole, most=1000)
    patch_sizes: tuple[PatchSize, ...] = setting((), patch_sizes)
    forced_foreground: float = setting(0.0, number, least=0, most=1)
    batch_size: int = setting(2, whole, most=4096)
    optimizer: str = setting("adamw", one_of, choices=("adamw", "sgd"))
    momentum: float = setting(0.9, number, least=0, below=1)
    learning_rate: float = setting(4e-3, number, above=0)
    weight_decay: float = setting(1e-5, number, least=0)
    schedule: str = setting("one_cycle", one_of, choices=("one_cycle", "cosine", "polynomial", "constant"))
    warmup: float = setting(0.1, number, least=0, below=1)
    gradient_clip: float = setting(1.0, number, above=0)
    loss: str = setting("dice_ce", one_of, choices=tuple(LOSSES))
    dice_weight: float = setting(1.0, number, above=0)
    focal_gamma: float = setting(2.0, number, least=0, most=10)
    tversky_alpha: float = setting(0.3, number, least=0, most=10)
    tversky_beta: float = setting(0.7, number, least=0, most=10)
    gce_q: float = setting(0.7, number, above=0, most=1)
    undrawn: str = setting(MARGINAL, one_of, choices=UNDRAWN)
    batch_dice: bool = setting(True, switch)
    weight_average: float = setting(0.0, number, least=0, below=1)
    reset_optimizer: bool | None = setting(None, switch)
    augmentation: str = setting("full", one_of, choices=("none", "intensity", "full", "nnunet"))
    channel_dropout: float = setting(0.0, number, least=0, below=1)
    activation_checkpointing: bool = setting(False, switch)
    threads: int = setting(1, whole, most=1024)
    precision: str = setting("auto", one_of, choices=("auto", "float32", "bfloat16"))
    cache: str = setting("memory", one_of, choices=("memory", "disk"))
    overlap: float = setting(0.25, number, least=0, below=1)
    validate_after: bool = setting(False, switch)
    empty: str = setting("brats", one_of, choices=("brats", "exclude"))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form."""
        return asdict(self)


def parse_training(declaration: Any) -> TrainingSettings:
    """Check a job's training settings, an object of values by name.

    Raises:
        ConfigurationError: a name is unknown or a value is not allowed.
    """
    found = settings(TrainingSettings, declaration, "training")
    if found.forced_foreground and not forced_count(found.forced_foreground, found.batch_size):
        why = f"Of a batch of {found.batch_size} no patch would be forced."
        raise ConfigurationError("training.forced_foreground", found.forced_foreground, "0, or a larger share", why)
    return found

"""Which losses can be computed site by site."""

from __future__ import annotations

from torch import nn

from fedseg.errors import ConfigurationError
from fedseg.training.losses import SegmentationLoss

_REMEDY = "Else the gradients of the sites' losses do not add up to that of the loss of all samples."


def check_mean_over_samples(loss: nn.Module | None) -> None:
    """Refuse a loss whose value for a batch is not the mean of its values for the single samples.

    Only for such a mean is the gradient of the loss of all samples the n_j/n-weighted gradient of the sites' own
    losses, and only then may labels stay at the sites. A loss that nobody has looked at is refused, too.

    Raises:
        ConfigurationError: Dice over the whole batch, class weights that are normalised by the batch, another loss.
    """
    # A class made of it could be anything, so it is as unknown as any other.
    if type(loss) is not SegmentationLoss:
        allowed = "SegmentationLoss where labels stay at the sites"
        raise ConfigurationError("loss", type(loss).__name__, allowed, "Of others it is not known whether they are a "
                                 "mean over samples.")  # fmt: skip
    if loss.dice.batch and loss.dice_weight:
        raise ConfigurationError("training.batch_dice", True, "false where labels stay at the sites", _REMEDY)
    if loss.class_weights is not None:
        raise ConfigurationError("class weights", loss.class_weights.tolist(), "none where labels stay at the sites",
                                 _REMEDY)  # fmt: skip

"""What the server checks of a site's tensors before it computes with them."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from fedseg.errors import ConfigurationError, RefusalError
from fedseg.networks.split.parts import Tensors
from fedseg.tasks.segmentation.losses import SegmentationLoss
from fedseg.training.split.half import shapes


def batch_size(site: str, features: Tensors, names: Collection[str]) -> int:
    """The batch size of a site's features.

    Args:
        site: its name, for messages.
        features: [B, features, X', Y', Z'] each.
        names: of the tensors that must be there.

    Raises:
        RefusalError: other tensors, or not of one batch (reason ``data``).
    """
    if set(features) != set(names):
        raise RefusalError("data", f"The features of {site} are {sorted(features)}, not {sorted(names)}.")
    found = {shape[0] if len(shape) == 5 else 0 for shape in shapes(features).values()}
    if len(found) > 1 or 0 in found:
        raise RefusalError("data", f"The features of {site} are not of one batch: {shapes(features)}.")
    return found.pop()


def checked_labels(
    site: str, classes: torch.Tensor | None, logits: torch.Tensor, loss: SegmentationLoss
) -> torch.Tensor:
    """A site's labels; an unknown class would stop the whole process on some devices.

    Args:
        site: its name, for messages.
        classes: class values [B, 1, X, Y, Z].
        logits: the site's predictions [B, out, X, Y, Z].
        loss: knows the classes of the task.

    Raises:
        RefusalError: labels are missing or do not fit (reason ``data``).
    """
    expected = (logits.shape[0], 1, *logits.shape[2:])
    if classes is None or tuple(classes.shape) != expected or classes.is_floating_point():
        raise RefusalError("data", f"The labels of {site} are not whole numbers of the shape {expected}.")
    if int(classes.min()) < 0 or int(classes.max()) >= len(loss.channel_of_class):
        raise RefusalError("data", f"The labels of {site} hold classes that the task does not have.")
    return classes


_REMEDY = "Else the gradients of the sites' losses do not add up to that of the loss of all samples."


def check_mean_over_samples(loss: nn.Module | None) -> None:
    """Refuse a loss whose value for a batch is not the mean of its values for the single samples.

    Only for such a mean is the gradient of the loss of all samples the n_j/n-weighted gradient of the sites' own
    losses, and only then may labels stay at the sites. An unknown loss is refused, too.

    Raises:
        ConfigurationError: Dice over the whole batch, class weights that are normalised by the batch, another loss.
    """
    # A class made of it could be anything, so it is as unknown as any other.
    if type(loss) is not SegmentationLoss:
        allowed = "SegmentationLoss where labels stay at the sites"
        raise ConfigurationError("loss", type(loss).__name__, allowed, "Of others it is not known whether they are a "
                                 "mean over samples.")  # fmt: skip
    if loss.over_batch:
        raise ConfigurationError("training.batch_dice", True, "false where labels stay at the sites", _REMEDY)
    if loss.class_weights is not None:
        raise ConfigurationError("class weights", loss.class_weights.tolist(), "none where labels stay at the sites",
                                 _REMEDY)  # fmt: skip

"""Losses of partial labels: what nobody drew is neither there nor absent, and the loss leaves it open.

Source: Shi et al., "Marginal loss and exclusion loss for partially supervised multi-organ segmentation", Med Image Anal
70 (2021), for exclusive regions; of overlapping ones the channels that nobody drew are left out.
"""

from __future__ import annotations

import torch
from torch.nn import functional

_CLASS_BITS = 8
# A channel with this logit has the probability 0 in float32, and unlike with -inf every term of it is a number.
_NEVER = -1e4


def join_targets(classes: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """Class values that also say which regions nobody drew, in bits above those of the class.

    Args:
        classes: internal class values [B, 1, ...], uint8.
        drawn: [B, R], whether each region is drawn in each case; R is 40 at most.

    Returns:
        [B, 1, ...] in int64; ``classes`` as they are where everything is drawn.
    """
    if bool(drawn.all()):
        return classes
    bits = 2 ** torch.arange(drawn.shape[1], device=drawn.device)
    undrawn = ((~drawn).long() * bits).sum(dim=1)
    return classes.long() + (undrawn << _CLASS_BITS).reshape(-1, *[1] * (classes.ndim - 1))


def split_targets(targets: torch.Tensor, regions: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The two parts of ``join_targets``: class values [B, 1, ...], and which regions are not drawn [B, R]; None where
    all are."""
    if targets.dtype != torch.int64:
        return targets, None
    of_case = targets.flatten(1)[:, :1] >> _CLASS_BITS
    if not bool(of_case.any()):
        return targets, None
    undrawn = (of_case >> torch.arange(regions, device=targets.device)) & 1
    return targets & (2**_CLASS_BITS - 1), undrawn.bool()


def coarser_targets(targets: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Joined targets of the nearest voxel; float64 holds all their bits."""
    return functional.interpolate(targets.double(), size, mode="nearest-exact").to(targets.dtype)


def marginal_logits(logits: torch.Tensor, undrawn: torch.Tensor) -> torch.Tensor:
    """Logits of a softmax in which the background has the probability of itself and of all undrawn classes together,
    and these have none.

    Args:
        logits: [B, 1 + R, ...], background first.
        undrawn: [B, R].
    """
    gone = _channels(undrawn, logits)
    merged = torch.cat([torch.ones_like(gone[:, :1]), gone], dim=1)
    background = logits.masked_fill(~merged, -torch.inf).logsumexp(dim=1, keepdim=True)
    return torch.cat([background, logits[:, 1:].masked_fill(gone, _NEVER)], dim=1)


def masked_logits(logits: torch.Tensor, undrawn: torch.Tensor) -> torch.Tensor:
    """Logits [B, R, ...] of sigmoids in which undrawn regions have the probability 0, and no gradient."""
    return logits.masked_fill(_channels(undrawn, logits), _NEVER)


def masked_masks(masks: torch.Tensor, undrawn: torch.Tensor) -> torch.Tensor:
    """Masks [B, R, ...] in which undrawn regions are empty."""
    return masks.masked_fill(_channels(undrawn, masks), 0.0)


def drawn_share(undrawn: torch.Tensor, over_batch: bool) -> float:
    """The share of the terms of a mean over cases and regions that are of drawn regions.

    Args:
        undrawn: [B, R].
        over_batch: the mean is over regions alone, each of which has one term for all cases that have it drawn.
    """
    drawn = (~undrawn).any(dim=0) if over_batch else ~undrawn
    return float(drawn.float().mean())


def exclusion(
    logits: torch.Tensor, foreground: torch.Tensor, undrawn: torch.Tensor, dice_weight: float
) -> torch.Tensor:
    """The exclusion loss: where a drawn class is, no undrawn one can be (Shi et al., 2021).

    Of each undrawn class u of a case, with e the voxels of its drawn classes: the overlap 2 sum(p_u e) / (sum(p_u) +
    sum(e)), times ``dice_weight``, plus the mean over voxels of e log(1 + p_u). The mean over all such classes.

    Args:
        logits: [B, 1 + R, ...], background first.
        foreground: [B, 1, ...], 1 in voxels of drawn classes, else 0.
        undrawn: [B, R], True somewhere.
        dice_weight: of the overlap.
    """
    p, e = logits.softmax(dim=1)[:, 1:].flatten(2), foreground.flatten(2)
    smooth = 1e-5
    overlap = (2 * (p * e).sum(dim=2)) / (p.sum(dim=2) + e.sum(dim=2) + smooth)
    entropy = (e * torch.log1p(p)).mean(dim=2)
    return (dice_weight * overlap + entropy)[undrawn].mean()


def _channels(undrawn: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[B, R, 1, ...] with as many axes as ``like``."""
    return undrawn.reshape(*undrawn.shape, *[1] * (like.ndim - 2))

"""Class values on another grid."""

from __future__ import annotations

from collections.abc import Callable

import torch


def resample_classes(classes: torch.Tensor, linear: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Each voxel gets the class with the largest share of it; of equal shares the smaller value wins.

    Args:
        classes: class values [1, X, Y, Z].
        linear: brings a mask [1, X, Y, Z] of 0 and 1 in float32 to the other grid by linear interpolation.

    Returns:
        Class values on the other grid, of the type of ``classes``; 0 where ``linear`` gives no class a share.
    """
    largest = linear((classes == 0).float())
    winner = torch.zeros_like(largest, dtype=classes.dtype)
    for value in filter(None, classes.unique().tolist()):
        share = linear((classes == value).float())
        winner = torch.where(share > largest, torch.full_like(winner, value), winner)
        largest = torch.maximum(share, largest)
    return winner

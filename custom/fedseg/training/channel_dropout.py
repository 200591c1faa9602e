"""Channel dropout: training patches lose channels, so that the network learns to do with what a case has."""

from __future__ import annotations

import numpy as np
import torch

from fedseg.tasks.task import Task


def drop_channels(task: Task, image: torch.Tensor, probability: float, generator: np.random.Generator) -> torch.Tensor:
    """A patch without some of the optional channels that it has: they become 0, as a channel that was never acquired.

    Every optional channel is lost with the same probability, independently of the others. Where nothing would be left,
    one of the channels that there were stays, each with equal probability. Channels that the task requires are never
    lost, since no case lacks them.

    Neverova et al., "ModDrop", IEEE TPAMI 2016; the probability of a patch's mask depends on that patch alone.

    Args:
        task: names the optional channels.
        image: normalised channels [C, X, Y, Z]; one of zeros is one that the patch lacks already.
        probability: from 0, which draws nothing and gives the image itself, to below 1.
        generator: of the patch.
    """
    if not probability:
        return image
    there = image.flatten(1).any(dim=1).numpy()
    optional = np.array([name in task.optional_channels for name in task.channels])
    lost = (generator.random(len(optional)) < probability) & optional & there
    if lost[there].all() and there.any():
        lost[generator.choice(np.flatnonzero(there))] = False
    return image * torch.from_numpy(~lost)[:, None, None, None]

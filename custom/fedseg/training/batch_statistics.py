"""Adaptation to a site at test time: statistics of batch normalisation of the site's own images, without labels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedseg.errors import DataError
from fedseg.tasks.task import Task
from fedseg.training.inference import infer_logits


class _Moments:
    """Sums of what enters a layer, by feature: a forward hook."""

    def __init__(self) -> None:
        self.count, self.total, self.squares = 0, torch.zeros(()), torch.zeros(())

    def __call__(self, layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
        values = inputs[0].detach().double().transpose(0, 1).flatten(1)
        self.count += values.shape[1]
        self.total = self.total.to(values.device) + values.sum(1)
        self.squares = self.squares.to(values.device) + values.square().sum(1)


def batch_norms(network: nn.Module) -> list[_BatchNorm]:
    """Layers of a network that normalise by running statistics of former images."""
    return [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]


def adapt_statistics(
    network: nn.Module, task: Task, images: Iterable[torch.Tensor], overlap: float, device: torch.device
) -> int:
    """Put the statistics of these images in the place of those of training: AdaBN (Li et al., 2017).

    The images pass in the windows of a prediction, in which each layer normalises by the windows at hand, as in
    training; the mean and the unbiased variance over everything that entered a layer become its running ones. Other
    weights stay, and so do other normalisations.

    Args:
        network: in evaluation mode, and again so afterwards; with batch normalisation.
        task: of the network.
        images: prepared, each [C, X, Y, Z]; labels have no part in it.
        overlap: of the windows, from 0 to below 1.
        device: torch device of the network.

    Returns:
        How many images there were.

    Raises:
        DataError: there are none.
    """
    layers = batch_norms(network)
    moments = [_Moments() for _ in layers]
    handles = [layer.register_forward_hook(each) for layer, each in zip(layers, moments, strict=True)]
    count, rates = 0, [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.training, layer.momentum = True, 0.0  # by the batch, and the running statistics stay for now
        for image in images:
            infer_logits(network, replace(task, mirrored=False), image, overlap, device)
            count += 1
    finally:
        for layer, handle, rate in zip(layers, handles, rates, strict=True):
            handle.remove()
            layer.training, layer.momentum = False, rate
    if not count:
        raise DataError("There is no image to which the statistics of the network could be adapted.")
    for layer, each in zip(layers, moments, strict=True):
        mean = each.total / each.count
        variance = (each.squares / each.count - mean.square()).clamp(min=0) * (each.count / max(1, each.count - 1))
        assert layer.running_mean is not None
        assert layer.running_var is not None
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(variance)
    return count

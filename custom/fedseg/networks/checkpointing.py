"""Activation checkpointing: what a stage of a network computes within is computed again instead of kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint


def checkpoint_activations(network: nn.Module, stages: Iterable[str]) -> None:
    """Let training keep a stage's inputs alone until the backward pass, which computes the stage once more.

    Gradients, names of arrays and running statistics stay what they are (Chen et al., 2016, arXiv 1604.06174).

    Args:
        network: was just built.
        stages: names of modules, none within another, whose forward passes depend on their inputs alone.
    """
    for name in stages:
        module: Any = network.get_submodule(name)
        module.forward = _Checkpointed(module)


class _Checkpointed:
    """The forward pass of a module; a copy of the module has one of its own. Hooks of the module stay outside."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *inputs: torch.Tensor) -> Any:
        forward = type(self.module).forward
        if not (self.module.training and torch.is_grad_enabled()):
            return forward(self.module, *inputs)
        return checkpoint(forward, self.module, *inputs, use_reentrant=False, context_fn=self._contexts)

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Around the first pass, and around the second one."""
        return nullcontext(), _counted_once(self.module)


@contextmanager
def _counted_once(module: nn.Module) -> Iterator[None]:
    """Let a second pass change copies of the running statistics of batches."""
    norms = [each for each in module.modules() if isinstance(each, _NormBase)]
    kept = [(norm, name, value) for norm in norms for name, value in norm.named_buffers(recurse=False)]
    for norm, name, value in kept:
        setattr(norm, name, value.clone())
    try:
        yield
    finally:
        for norm, name, value in kept:
            setattr(norm, name, value)

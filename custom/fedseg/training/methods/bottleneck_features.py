"""What a network makes of an image at its coarsest level, as one vector per image."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


class BottleneckFeatures:
    """Catches the output of one module as an ordinary forward pass goes by, so that no pass is run twice.

    ``watch`` before the pass, ``take`` after it.
    """

    def __init__(self) -> None:
        self._handle: RemovableHandle | None = None
        self._output: torch.Tensor | None = None

    def watch(self, module: nn.Module) -> None:
        """Keep what the next passes through ``module`` give; what was watched before is let go."""
        self._release()
        self._handle = module.register_forward_hook(self._keep)

    def take(self) -> torch.Tensor:
        """The output of the last pass, averaged over space: [B, features] in float32. Ends the watch."""
        output = self._output
        self._release()
        if output is None:
            raise RuntimeError("No forward pass went through the watched module.")
        return output.float().flatten(2).mean(dim=2)

    def _keep(self, module: nn.Module, arguments: tuple[Any, ...], output: torch.Tensor) -> None:
        self._output = output

    def _release(self) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._handle, self._output = None, None

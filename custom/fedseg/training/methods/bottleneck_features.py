"""What a network makes of an image at its coarsest level, as one vector per image."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


class BottleneckFeatures:
    """Keeps the output of one module as an ordinary forward pass goes by, so that no pass is run twice.

    ``watch`` before the passes, ``features`` after each of them, ``release`` at the end.
    """

    def __init__(self) -> None:
        self._handle: RemovableHandle | None = None
        self._output: torch.Tensor | None = None

    def watch(self, module: nn.Module) -> None:
        """Keep what the next passes through ``module`` give; a module that was watched before is released."""
        self.release()
        self._handle = module.register_forward_hook(self._keep)

    def features(self) -> torch.Tensor:
        """The output of the last pass, averaged over space: [B, features] in float32; each pass gives it once."""
        output, self._output = self._output, None
        if output is None:
            raise RuntimeError("No forward pass went through the watched module.")
        return output.float().flatten(2).mean(dim=2)

    def release(self) -> None:
        """End the watch."""
        if self._handle is not None:
            self._handle.remove()
        self._handle, self._output = None, None

    def _keep(self, module: nn.Module, arguments: tuple[Any, ...], output: torch.Tensor) -> None:
        self._output = output

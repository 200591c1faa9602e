"""As much of a site's training as a method with companions sees, on a loss whose every step can be done by hand."""

import numpy as np
import torch

from fedseg.contract.plan import parse_plan
from fedseg.contract.settings import TrainingSettings
from fedseg.training.companions import Companion
from tiny import PLAN

RATE = 0.1


class Point(torch.nn.Module):
    """Two weights."""

    def __init__(self, at=(0.0, 0.0)):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(at, dtype=torch.float64))


class Quadratic:
    """Steps of plain gradient descent of rate 0.1 on half the squared distance to a batch."""

    folder, plan, round_number = None, parse_plan(PLAN), 0
    settings = TrainingSettings(optimizer="sgd", momentum=0.0, weight_decay=0.0, gradient_clip=1e9)

    def __init__(self, hook, *names):
        self.hook, self.network = hook, Point()
        self.companions = {name: Companion(Point(), self.settings) for name in names}
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=RATE)

    def companion_gradients(self, name, batch):
        return self._gradients(self.companions[name].network, batch)

    def _gradients(self, network, batch):
        network.weight.grad = (network.weight - torch.tensor(batch)).detach()
        return float(network.weight.grad.square().sum() / 2)

    def round(self, received, batches):
        """Train one round; the site's own weights after it."""
        with torch.no_grad():
            self.network.weight.copy_(torch.tensor(received))
        self.hook.before_round(self, {"weight": np.array(received)}, self.round_number)
        for batch in batches:
            self.hook.batch(self, batch)
            if self.hook.step(self, batch) is None:
                self._gradients(self.network, batch)
                self.optimizer.step()
        self.hook.after_round(self, {}, self.round_number)
        for companion in self.companions.values():
            companion.started = True
        self.round_number += 1
        return self.network.weight.detach().numpy().copy()

    def at(self, name):
        return self.companions[name].network.weight.detach().numpy()

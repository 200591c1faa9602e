"""Test-time routing: the gates among trained models are adapted on a site's own images, without labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch.nn import functional

from fedseg.allowed import number, setting, whole
from fedseg.data.datalist import Case
from fedseg.errors import ConfigurationError, DataError
from fedseg.networks.routed import RoutedNetwork
from fedseg.randomness import derive_seed, generator
from fedseg.tasks.objective import Objective, objective_of
from fedseg.tasks.task import Task
from fedseg.training.optimisation import check_loss
from fedseg.training.patches import choose_corner, cut
from fedseg.training.prepare import prepare_case

_TINY = 1e-7


@dataclass(frozen=True)
class RoutingSettings:
    """How gates are adapted; the defaults are the published ones.

    Attributes:
        epochs: passes over the images, one patch of each; 0 leaves equal gates.
        learning_rate: of Adam.
        entropy, consistency, smoothness: weights of the three terms, see ``routing_loss``.
        width: voxels of the cube whose extrema tell where a border is.
        noise: standard deviation of what is added to the second view of a patch, in units of the normalised image.
        seed: of routers, order, patches and views.
    """

    epochs: int = setting(10, whole, least=0, most=1000)
    learning_rate: float = setting(1e-3, number, above=0, most=1)
    entropy: float = setting(10.0, number, least=0)
    consistency: float = setting(0.1, number, least=0)
    smoothness: float = setting(1e-6, number, least=0)
    width: int = setting(21, whole, most=101)
    noise: float = setting(0.1, number, least=0)
    seed: int = setting(0, whole, least=0)


@dataclass(frozen=True)
class Adapted:
    """What an adaptation gave.

    Attributes:
        losses: mean loss over the patches of each epoch.
        shares: mean gate of each expert over layers and the patches of the last epoch; empty without epochs.
    """

    losses: tuple[float, ...]
    shares: tuple[float, ...]


def adapt_routing(
    network: RoutedNetwork,
    task: Task,
    cases: Sequence[Case],
    settings: RoutingSettings,
    device: torch.device,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Adapted:
    """Adapt the gates of a network to the images of cases; the experts stay as they are (Jiang et al., TMI 2023).

    Each epoch takes one patch of every image, at random, and a step of Adam along ``routing_loss``. An image is read
    once in each epoch, and one is in memory at a time. A case that cannot be read is passed over.

    Args:
        network: on the device; its routers are changed.
        task: of the models.
        cases: with images; labels are not looked at.
        settings: see there.
        device: of the network.
        progress: wraps the epochs, to show how far the work is.

    Raises:
        ConfigurationError: the models' predictions are no masks.
        DataError: no case can be read.
        RefusalError: the loss is not finite (reason ``loss``).
    """
    kind = objective_of(task)
    if not kind.masks:
        raise ConfigurationError("task.objective", task.objective, "one whose predictions are masks, for routing")
    parameters = [each for router in network.routers() for each in router.parameters()]
    optimizer = torch.optim.Adam(parameters, settings.learning_rate)
    losses, shares = [], torch.zeros(0)
    for epoch in progress(range(settings.epochs)):
        found, seen = [], []
        order = generator(settings.seed, epoch, "order").permutation(len(cases))
        with _learning(network, derive_seed(settings.seed, epoch, "dropout")):
            for place, case in enumerate(cases[int(index)] for index in order):
                patch = _patch(task, case, settings, epoch)
                if patch is not None:
                    step = epoch * len(cases) + place
                    loss = routing_loss(network, kind, patch.to(device), settings, step)
                    check_loss(loss)
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    optimizer.step()
                    found.append(float(loss.detach()))
                    seen.append(network.shares().cpu())
        if not found:
            raise DataError(f"None of the {len(cases)} case(s) can be read, so no gates can be adapted to them.")
        losses.append(sum(found) / len(found))
        shares = torch.stack(seen).mean(dim=0)
    return Adapted(tuple(losses), tuple(shares.tolist()))


@contextmanager
def _learning(network: RoutedNetwork, seed: int) -> Iterator[None]:
    """Dropout in the routers inside, which follows from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for router in network.routers():
            router.train()
        try:
            yield
        finally:
            network.eval()


def routing_loss(
    network: torch.nn.Module, kind: Objective, patch: torch.Tensor, settings: RoutingSettings, step: int = 0
) -> torch.Tensor:
    """The loss without labels of a patch [1, C, ...], a scalar: the sum of the weighted terms

    1. ``entropy`` of the probabilities: the mean over voxels, in nats. Of a task whose regions exclude each other it is
       that of background and regions; else the mean over the regions of each one's own.
    2. ``consistency``: mean squared difference to the probabilities of a second view, which is flipped along some of
       the task's axes at random, has noise, and is flipped back. (The publication rotates as well; images here need not
       have cubic voxels.)
    3. ``smoothness``: the sum of ``border`` over voxels and regions, which grows with the length of the outline.

    Args:
        network: gives logits [1, out, ...].
        kind: of the task; its activated values are probabilities.
        patch: on the network's device.
        settings: see there.
        step: makes the second view another one each time.
    """
    probabilities = kind.activate(network(patch).float())
    loss = settings.entropy * entropy_of(probabilities, kind.task.exclusive)
    if settings.consistency:
        draw = generator(settings.seed, step, "view")
        axes = [2 + axis for axis in sorted(set(kind.task.flip_axes)) if draw.random() < 0.5]
        noise = torch.from_numpy(draw.normal(0, settings.noise, tuple(patch.shape))).to(patch)
        other = kind.activate(network((patch + noise).flip(axes)).float()).flip(axes)
        loss = loss + settings.consistency * functional.mse_loss(other, probabilities)
    if settings.smoothness:
        loss = loss + settings.smoothness * border(probabilities, settings.width).sum()
    return loss


def entropy_of(probabilities: torch.Tensor, exclusive: bool) -> torch.Tensor:
    """Mean entropy of the regions' probabilities [B, K, ...] in nats, a scalar; see ``routing_loss``."""
    rest = 1 - (probabilities.sum(dim=1, keepdim=True) if exclusive else probabilities)
    inside = -(probabilities * probabilities.clamp_min(_TINY).log())
    outside = -(rest * rest.clamp_min(_TINY).log())
    return inside.sum(dim=1).mean() + outside.mean() if exclusive else (inside + outside).mean()


def border(probabilities: torch.Tensor, width: int) -> torch.Tensor:
    """Largest minus smallest probability in the cube of ``width`` voxels around each voxel: [B, K, X, Y, Z], 0 inside
    and outside of a region, up to 1 near its border. An even width counts as the next odd one."""
    return _largest(probabilities, width) + _largest(-probabilities, width)


def _largest(values: torch.Tensor, width: int) -> torch.Tensor:
    """The largest value in the cube around each voxel, one axis after the other, which is as good and far faster."""
    reach = width // 2
    for axis in range(3):
        size, pad = [1, 1, 1], [0, 0, 0]
        # Padding may be half a window at most, and a window beyond the image sees nothing more.
        most = min(reach, values.shape[2 + axis] - 1)
        size[axis], pad[axis] = 2 * most + 1, most
        values = functional.max_pool3d(values, size, stride=1, padding=pad)
    return values


def _patch(task: Task, case: Case, settings: RoutingSettings, epoch: int) -> torch.Tensor | None:
    """A patch [1, C, ...] of a case at random; None of one that cannot be read."""
    try:
        prepared = prepare_case(task, replace(case, label=None), training=False)
    except DataError:
        return None
    corner = choose_corner(task, prepared, generator(settings.seed, epoch, prepared.id, "patch"))
    return cut(prepared.image, corner, task.patch_size, (0, 0, 0))[None]

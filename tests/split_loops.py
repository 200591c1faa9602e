"""Split training of several sites in one process, without messages: what the protocol must equal, and its baselines.

Every round takes ``start`` and ``end``, the fractions of the whole job at which it starts and ends: the learning rate
follows them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch

from fedseg.networks.split.parts import Tensors
from fedseg.training.patches import Sample
from fedseg.training.split.message import SCALE, StepBytes, message_bytes, pack, unpack
from fedseg.training.split.server_half import CutGradients, ServerHalf
from fedseg.training.split.site_half import SiteHalf
from fedseg.training.split.weights import average_parts


@dataclass
class Iteration:
    """What one iteration gave.

    Attributes:
        loss: of all samples together.
        losses: each site's own.
        bytes: what each site would have sent and received.
    """

    loss: float
    losses: dict[str, float]
    bytes: dict[str, StepBytes]


@dataclass
class _Wire:
    """Rounds tensors as a message would, and counts its bytes."""

    precision: str
    up: dict[str, int] = field(default_factory=dict)
    down: dict[str, int] = field(default_factory=dict)

    def carry(self, way: dict[str, int], site: str, tensors: Tensors) -> Tensors:
        arrays = pack(tensors, self.precision)
        self.count(way, site, message_bytes(arrays))
        shapes = {name: value.shape[1:] for name, value in arrays.items() if not name.startswith(SCALE)}
        return unpack(arrays, shapes, self.precision)

    def count(self, way: dict[str, int], site: str, size: int) -> None:
        way[site] = way.get(site, 0) + size


def splitavg_step(
    server: ServerHalf, sites: Mapping[str, SiteHalf], batches: Mapping[str, Sample], progress: float
) -> Iteration:
    """One iteration of SplitAVG.

    Args:
        server: the server's half.
        sites: the halves of the sites that take part.
        batches: a batch for each of them; batches may differ in size.
        progress: finished fraction of the whole job, 0 to 1.
    """
    split, names = server.split, sorted(sites)
    wire = _Wire(split.message)
    for half in (server, *sites.values()):
        half.set_progress(progress)
    features = {s: wire.carry(wire.up, s, sites[s].forward(batches[s]["image"])) for s in names}
    predictions = server.forward(features)
    classes = {s: batches[s]["classes"] for s in names}
    if split.labels == "private":
        found = _from_private_labels(server, sites, predictions, classes, wire)
    else:
        for site in names:
            wire.count(wire.up, site, classes[site].numel())
        found = server.backward_labels(classes)
    back = {s: sites[s].backward(wire.carry(wire.down, s, found.gradients[s])) for s in names}
    total = server.step(back)
    for site in names if total else ():
        sites[site].apply(total)
        for way, gradients in ((wire.up, back[site]), (wire.down, total)):
            wire.count(way, site, sum(value.numel() * value.element_size() for value in gradients.values()))
    return Iteration(found.loss, found.losses, {s: StepBytes(wire.up[s], wire.down[s]) for s in names})


def splitavg_round(
    server: ServerHalf,
    sites: Mapping[str, SiteHalf],
    batches: Mapping[str, Iterator[Sample]],
    steps: int,
    start: float,
    end: float,
) -> list[Iteration]:
    """A round of SplitAVG: ``steps`` iterations of all sites, then the average of their parts if that is asked for.

    Args:
        server: the server's half.
        sites: the sites' halves.
        batches: of each site, at least ``steps`` of them.
        steps: iterations.
        start: fraction of the job before the round.
        end: fraction of the job after it.
    """
    done, samples = [], dict.fromkeys(sites, 0)
    for number in range(steps):
        drawn = {site: next(batches[site]) for site in sorted(sites)}
        done.append(splitavg_step(server, sites, drawn, start + (end - start) * number / steps))
        for site, batch in drawn.items():
            samples[site] += len(batch["image"])
    if server.split.site_update == "averaged":
        mean = average_parts({site: half.weights() for site, half in sites.items()}, samples)
        for half in sites.values():
            half.set_weights(mean)
    return done


def splitnn_round(
    server: ServerHalf,
    sites: Mapping[str, SiteHalf],
    batches: Mapping[str, Iterator[Sample]],
    steps: Mapping[str, int],
    start: float,
    end: float,
) -> list[Iteration]:
    """A round of sequential split learning (Gupta and Raskar, 2018): site after site, each alone with the server.

    A site begins with the weights of the part at the site before it (the first one with those of the last one in the
    round before); optimizers stay where they are. Sites come in the order of their names.

    Args:
        server: the server's half, with the settings of one site: nothing is averaged or summed over sites.
        sites: the sites' halves.
        batches: of each site.
        steps: how many batches each site takes.
        start: fraction of the job before the round.
        end: fraction of the job after it.
    """
    names = sorted(sites)
    done: list[Iteration] = []
    holder, total = sites[names[-1]], sum(steps[site] for site in sites)
    for site in names:
        sites[site].set_weights(holder.weights())
        holder = sites[site]
        for _ in range(steps[site]):
            progress = start + (end - start) * len(done) / total
            done.append(splitavg_step(server, {site: holder}, {site: next(batches[site])}, progress))
    return done


def _from_private_labels(
    server: ServerHalf,
    sites: Mapping[str, SiteHalf],
    predictions: Mapping[str, torch.Tensor],
    classes: Mapping[str, torch.Tensor],
    wire: _Wire,
) -> CutGradients:
    gradients, losses = {}, {}
    for site, predicted in predictions.items():
        seen = wire.carry(wire.down, site, {"predictions": predicted})["predictions"]
        answer, losses[site] = sites[site].loss_gradient(seen, classes[site])
        gradients[site] = wire.carry(wire.up, site, {"gradient": answer})["gradient"]
    return server.backward_gradients(gradients, losses)

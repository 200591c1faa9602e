"""Halves of a tiny network in double precision, and random batches for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from fedseg.contract.plan import Plan, parse_plan
from fedseg.contract.split_settings import parse_split
from fedseg.tasks.segmentation.losses import SegmentationLoss
from fedseg.training.patches import Sample
from fedseg.training.split.half import Half
from fedseg.training.split.halves import plan_loss, plan_parts
from fedseg.training.split.server_half import ServerHalf
from fedseg.training.split.site_half import SiteHalf
from split_baselines import WholeNetwork
from tiny import PLAN, TASK

OVERLAPPING = {**TASK, "patch_size": [8, 8, 8]}
EXCLUSIVE = {**OVERLAPPING, "regions": {"inner": ["inner"], "outer": ["outer"]}}
# Clipping is off where it is not what is tested.
PLAIN = {"gradient_clip": 1e9, "schedule": "constant", "weight_decay": 0.0, "optimizer": "sgd", "momentum": 0.0}


def plan_of(task: dict[str, Any] = OVERLAPPING, network: dict[str, Any] | None = None, **training: Any) -> Plan:
    """A plan of the tiny task for patches of 8 voxels; training as in ``PLAIN`` where nothing else is said."""
    settings = {**PLAN["training"], **PLAIN, "learning_rate": 0.1, **training}
    return parse_plan({**PLAN, "task": task, "network": network or PLAN["network"], "training": settings})


def halves(
    plan: Plan, sites: str, loss: SegmentationLoss | None = None, double: bool = True, **split: Any
) -> tuple[ServerHalf, dict[str, SiteHalf]]:
    """The server's half and one for each letter of ``sites``."""
    loss = plan_loss(plan) if loss is None else loss
    dtype = torch.float64 if double else torch.float32
    settings = parse_split({"message": "float64" if double else "float32", **split})
    server = ServerHalf(plan_parts(plan, settings)[1].to(dtype), plan.training, settings, loss)
    made = {
        site: SiteHalf(
            plan_parts(plan, settings)[0].to(dtype), site, plan.training, settings, loss=loss, seed=1, simulated=True
        )
        for site in sites
    }
    return server, made


def whole(plan: Plan, double: bool = True) -> WholeNetwork:
    """The network in one piece."""
    network = plan.build_network()
    return WholeNetwork(network.double() if double else network, plan.training, plan_loss(plan))


def batch(seed: int, size: int) -> Sample:
    """Noise with blobs of both classes."""
    generator = np.random.default_rng(seed)
    classes = generator.integers(0, 3, (size, 1, 8, 8, 8)).astype(np.uint8)
    images = generator.normal(size=(size, 1, 8, 8, 8)) + 0.5 * classes
    return {"image": torch.from_numpy(images), "classes": torch.from_numpy(classes)}


def stream(site: str, *sizes: int) -> Iterator[Sample]:
    """Endless batches of a site whose sizes repeat."""
    number = 0
    while True:
        yield batch(1000 * ord(site) + number, sizes[number % len(sizes)])
        number += 1


def distance(half: Half, other: Half) -> float:
    """The largest difference of two halves in the arrays that both have."""
    mine, its = half.weights(), other.weights()
    common = mine.keys() & its.keys()
    assert common
    return max(float(np.abs(mine[name] - its[name]).max()) for name in common)


def all_weights(server: ServerHalf, sites: Mapping[str, SiteHalf]) -> dict[str, Any]:
    """Every array of every half, to compare runs to the bit."""
    found = {("", name): value for name, value in server.weights().items()}
    return found | {(site, n): value for site, half in sites.items() for n, value in half.weights().items()}


def same_bits(first: dict[Any, Any], second: dict[Any, Any]) -> bool:
    """Whether two sets of arrays are equal to the last bit."""
    return first.keys() == second.keys() and all(np.array_equal(first[n], second[n]) for n in first)

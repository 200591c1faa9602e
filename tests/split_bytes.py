"""What the messages of split training weigh, foretold from the costs of a cut alone."""

from __future__ import annotations

from fedseg.contract.split_settings import SplitSettings
from fedseg.networks.split.costs import CutCost
from fedseg.training.split.message import StepBytes


def step_bytes(cost: CutCost, split: SplitSettings, batch: int) -> StepBytes:
    """What ``message_bytes`` gives for all messages of one site in one iteration.

    Features up and their gradients down in the precision of the message; labels up as one byte a voxel, or predictions
    down and the gradient at them up; with ``summed`` the gradient of the site's part up and the sum of them down, in
    float32 (float64 if that is the precision). What ``handed_on`` adds is ``turn_bytes``.
    """
    width = {"float16": 2, "float32": 4, "float64": 8}[split.message]
    scale = 8 if split.message == "float16" else 0
    features = cost.values * batch * width + scale * len(cost.shapes)
    predictions = cost.prediction_values * batch * width + scale
    up, down = features, features
    if split.labels == "private":
        up, down = up + predictions, down + predictions
    else:
        up += cost.voxels * batch
    if split.site_update == "summed":
        part = cost.site_parameters * max(width, 4)
        up, down = up + part, down + part
    return StepBytes(up, down)


def turn_bytes(cost: CutCost, split: SplitSettings) -> StepBytes:
    """What a site receives and sends once a turn beside its iterations: with ``handed_on`` the part of the network.

    Parts are never rounded: each value has its own four bytes (float32), once down and once up.
    """
    part = 4 * cost.site_parameters if split.in_turn else 0
    return StepBytes(part, part)

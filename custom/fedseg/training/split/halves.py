"""Both halves of split training as a job's plan asks for them."""

from __future__ import annotations

import torch
from torch import nn

from fedseg.contract.plan import Plan
from fedseg.contract.split_settings import SplitSettings
from fedseg.errors import ConfigurationError
from fedseg.networks.demand import check_pass
from fedseg.networks.split.costs import CutCost, cut_costs
from fedseg.networks.split.parts import ServerPart, SitePart, join_weights, split_network
from fedseg.networks.split.stages import cut_stages
from fedseg.networks.weights import Arrays, check_weights
from fedseg.tasks.segmentation.losses import SegmentationLoss
from fedseg.training.optimisation import plan_loss
from fedseg.training.split.checks import check_mean_over_samples
from fedseg.training.split.server_half import ServerHalf
from fedseg.training.split.site_half import SiteHalf


def check_split(split: SplitSettings, plan: Plan, where: str = "split") -> None:
    """Refuse what cannot work with a plan, before anything runs.

    Raises:
        ConfigurationError: the plan's network has no such cut, or labels shall stay at the sites under a loss that is
            not a mean over samples.
    """
    cut_stages(plan.network, split.cut, f"{where}.cut")
    if split.labels == "private":
        check_mean_over_samples(segmentation_loss(plan))


def segmentation_loss(plan: Plan) -> SegmentationLoss:
    """The loss of a plan, which must be one of segmentation.

    Raises:
        ConfigurationError: it is another kind of task, whose network cannot be trained in two parts.
    """
    loss = plan_loss(plan)
    if not isinstance(loss, SegmentationLoss):
        raise ConfigurationError("task.objective", plan.task.objective, "segmentation in a job of split training")
    return loss


def plan_parts(plan: Plan, split: SplitSettings) -> tuple[SitePart, ServerPart]:
    """Both parts of the plan's network with the weights of its seed: every site starts from the same ones."""
    return split_network(plan.network, len(plan.task.channels), plan.task.output_channels, split.cut, plan.seed)


def plan_cost(plan: Plan, split: SplitSettings) -> CutCost:
    """What crosses the cut for one patch of the plan's task: shapes of every message, and bytes."""
    task = plan.task
    return cut_costs(plan.network, len(task.channels), task.output_channels, task.patch_size, [split.cut])[0]


def site_half(
    plan: Plan, split: SplitSettings, site: str, *, simulated: bool = False, device: torch.device | str = "cpu"
) -> SiteHalf:
    """A site's half, with the weights of the plan's seed.

    Raises:
        ConfigurationError: see ``check_split``.
    """
    check_split(split, plan)
    part, _ = plan_parts(plan, split)
    return SiteHalf(
        part,
        site,
        plan.training,
        split,
        loss=segmentation_loss(plan),
        seed=plan.seed,
        simulated=simulated,
        device=device,
    )


def server_half(plan: Plan, split: SplitSettings, device: torch.device | str = "cpu") -> ServerHalf:
    """The server's half, with the weights of the plan's seed.

    Raises:
        ConfigurationError: see ``check_split``, or a pass through the network does not fit into this machine's memory.
    """
    check_split(split, plan)
    check_pass(plan.network, len(plan.task.channels), plan.objective.output_channels, plan.task.patch_size)
    _, part = plan_parts(plan, split)
    return ServerHalf(part, plan.training, split, segmentation_loss(plan), device)


def whole_weights(plan: Plan, site: SiteHalf | Arrays, server: ServerHalf | Arrays) -> Arrays:
    """Weights of the plan's ordinary network from a site's part and the server's, ready for ``write_model``.

    Raises:
        RefusalError: they are not the two parts of this network (reason ``weights``).
    """
    parts = [half if isinstance(half, dict) else half.weights() for half in (site, server)]
    joined = join_weights(*parts)
    check_weights(_build(plan).state_dict(), joined)
    return joined


def _build(plan: Plan) -> nn.Module:
    return plan.build_network()

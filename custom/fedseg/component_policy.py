"""The component classes that fedseg's jobs may name: what a site allows a job to load, and nothing else."""

from __future__ import annotations

from typing import Any

FEDSEG_CLASSES = (
    "fedseg.aggregators.control_variates.ControlVariates",
    "fedseg.aggregators.dos.DOS",
    "fedseg.aggregators.fedavg.FedAvg",
    "fedseg.aggregators.fedcostwavg.FedCostWAvg",
    "fedseg.aggregators.fedmix.FedMix",
    "fedseg.aggregators.fednova.FedNova",
    "fedseg.aggregators.fedpidavg.FedPID",
    "fedseg.aggregators.fedpidavg.FedPIDAvg",
    "fedseg.aggregators.fedpod.FedPOD",
    "fedseg.aggregators.krum.Krum",
    "fedseg.aggregators.loss_focused.LossFocused",
    "fedseg.aggregators.norm_clipping.NormClipped",
    "fedseg.aggregators.robust.CoordinateMedian",
    "fedseg.aggregators.robust.GeometricMedian",
    "fedseg.aggregators.robust.TrimmedMean",
    "fedseg.aggregators.server_optimizers.FedAdagrad",
    "fedseg.aggregators.server_optimizers.FedAdam",
    "fedseg.aggregators.server_optimizers.FedAvgM",
    "fedseg.aggregators.server_optimizers.FedYogi",
    "fedseg.aggregators.similarity.RegAgg",
    "fedseg.aggregators.similarity.SimAgg",
    "fedseg.aggregators.staleness.Staleness",
    "fedseg.executors.segmentation.SegmentationExecutor",
    "fedseg.training.class_weights.ClassWeights",
    "fedseg.training.ditto.Ditto",
    "fedseg.training.fedmax.FedMax",
    "fedseg.training.fedprox.FedProx",
    "fedseg.training.moon.MOON",
    "fedseg.training.scaffold.Scaffold",
    "fedseg.workflows.federated_training.FederatedTraining",
    "fedseg.workflows.selection.AllSites",
    "fedseg.workflows.selection.DropSlow",
    "fedseg.workflows.selection.LargestSites",
    "fedseg.workflows.selection.PoissonBySize",
    "fedseg.workflows.selection.RandomSites",
)
FLARE_CLASSES = (
    "nvflare.app_common.widgets.convert_to_fed_event.ConvertToFedEvent",
    "nvflare.app_opt.tracking.tb.tb_receiver.TBAnalyticsReceiver",
)


def site_resources() -> dict[str, Any]:
    """Content of ``local/resources.json``: the exact allow-list (FLARE matches by prefix, so whole class paths)."""
    return {
        "format_version": 2,
        "class_allow_list": sorted(FEDSEG_CLASSES + FLARE_CLASSES),
        "components": [],
    }

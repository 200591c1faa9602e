"""The component classes that fedseg's jobs use: what a site allows a job to load, and nothing else."""

from __future__ import annotations

from typing import Any

FEDSEG_CLASSES = (
    "fedseg.aggregators.fedavg.FedAvg",
    "fedseg.executors.segmentation.SegmentationExecutor",
    "fedseg.workflows.federated_training.FederatedTraining",
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

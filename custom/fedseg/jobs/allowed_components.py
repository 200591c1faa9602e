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
    "fedseg.executors.training.SegmentationExecutor",
    "fedseg.executors.split.executor.SplitExecutor",
    "fedseg.filters.encrypt.DecryptModel",
    "fedseg.filters.encrypt.EncryptUpdate",
    "fedseg.filters.dp_sgd.DPSGD",
    "fedseg.filters.layers.PrivateLayers",
    "fedseg.filters.layers.SharedLayers",
    "fedseg.filters.noise.GaussianNoise",
    "fedseg.filters.noise.LaplaceNoise",
    "fedseg.filters.norm_clip.NormClip",
    "fedseg.filters.quantize.QuantizeUpdate",
    "fedseg.filters.restore.RestoreUpdate",
    "fedseg.filters.share_fraction.ShareFraction",
    "fedseg.filters.sparse_vector.SparseVector",
    "fedseg.training.methods.class_weights.ClassWeights",
    "fedseg.training.methods.ditto.Ditto",
    "fedseg.training.methods.fedmax.FedMax",
    "fedseg.training.methods.fedprox.FedProx",
    "fedseg.training.methods.moon.MOON",
    "fedseg.training.methods.scaffold.Scaffold",
    "fedseg.workflows.cyclic_training.CyclicTraining",
    "fedseg.workflows.encrypted_training.EncryptedTraining",
    "fedseg.workflows.federated_training.FederatedTraining",
    "fedseg.workflows.selection.AllSites",
    "fedseg.workflows.selection.DropSlow",
    "fedseg.workflows.selection.LargestSites",
    "fedseg.workflows.selection.PoissonBySize",
    "fedseg.workflows.selection.RandomSites",
    "fedseg.workflows.split_training.SplitTraining",
)
FLARE_CLASSES = ("nvflare.app_opt.tracking.tb.tb_receiver.TBAnalyticsReceiver",)

GUARD = "fedseg.filters.guard.guard.Guard"
"""Not among the classes that a job may name: the site declares it."""
LAUNCHER = "fedseg.resilience.supervised_launcher.SupervisedLauncher"
"""Starts the processes of jobs; the site declares it too."""
LOST_JOBS = "fedseg.resilience.lost_jobs.LostJobs"
"""Finds jobs that ended with the server's process; the server declares it."""
STEADY_MEMORY = "fedseg.resilience.steady_memory.SteadyMemory"
"""Gives freed memory of FLARE's processes back; server and sites declare it."""


def site_resources() -> dict[str, Any]:
    """Content of ``local/resources.json``: the exact allow-list (FLARE matches by prefix, so whole class paths).

    No log is streamed to the server: logs hold paths, and FLARE would let any job ask for them. For the same reason
    no class of FLARE is listed that sends a site's local events on, since log messages are among these.
    """
    return {
        "format_version": 2,
        "allow_log_streaming": False,
        "class_allow_list": sorted(FEDSEG_CLASSES + FLARE_CLASSES),
        "components": [],
    }


def site_launcher(part_id: str) -> dict[str, Any]:
    """The component of ``local/resources.json`` in place of FLARE's own starter of job processes.

    Args:
        part_id: under which FLARE declares its own.
    """
    return {"id": part_id, "path": LAUNCHER, "args": {"restarts": 3, "pause": 5.0}}


def server_components() -> list[dict[str, Any]]:
    """The components that a server's ``local/resources.json`` has besides FLARE's own."""
    return [{"id": "lost_jobs", "path": LOST_JOBS, "args": {}}, *site_components()]


def site_components() -> list[dict[str, Any]]:
    """The components that a site's ``local/resources.json`` has besides FLARE's own and the launcher."""
    return [{"id": "steady_memory", "path": STEADY_MEMORY, "args": {}}]


def site_privacy() -> dict[str, Any]:
    """Content of ``local/privacy.json``: the guard, and a scope, without which FLARE ignores the guard."""
    return {
        "scopes": [{"name": "fedseg"}],
        "default_scope": "fedseg",
        "components": [{"id": "guard", "path": GUARD, "args": {}}],
    }

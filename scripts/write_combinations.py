"""Write docs/reference/combinations.md: which parts of methods go together, and why others do not.

Run it after a part was added or what it needs has changed: ``python scripts/write_combinations.py``. Tests compare the
page, and try its cells. Every cell is what the check of a job with both parts says.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedseg.contract.update import DENSE, Stage
from fedseg.errors import ConfigurationError
from fedseg.filters.base import UpdateFilter
from fedseg.jobs.allowed_components import bases, component_classes
from fedseg.jobs.job import Job
from fedseg.version import __version__
from fedseg.workflows.run.workflow import Workflow

PAGE = "docs/reference/combinations.md"
RULES, OPTIMIZERS, SELECTIONS, HOOKS = "rule", "server optimizer", "selection", "local objective"
FILTERS, ROUNDS, STOPPING = "filter", "kind of round", "stopping rule"
KINDS = (RULES, OPTIMIZERS, SELECTIONS, HOOKS, FILTERS, ROUNDS, STOPPING)
_ALONE = (RULES, OPTIMIZERS, SELECTIONS, ROUNDS)
"""Kinds of which a job has one."""
_SGD = {"optimizer": "sgd", "momentum": 0.0, "schedule": "constant"}
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "FedNova": {"momentum": 0.0},
    "LargestSites": {"k": 2},
    "RandomSites": {"k": 2},
    "SitesBySize": {"k": 2},
    "PrivateLayers": {"kind": "norm"},
    "SharedLayers": {"kind": "norm"},
    "ShareFraction": {"fraction": 0.1},
    "NormClip": {"norm": 1.0},
    "DPSGD": {"clip": 1.0, "noise_multiplier": 8.0},
    "GaussianNoise": {"clip": 1.0, "noise_multiplier": 8.0},
    "LaplaceNoise": {"clip": 1.0, "noise_multiplier": 8.0},
    "SparseVector": {
        "fraction": 0.1, "clip": 0.1, "threshold": 0.01, "epsilon_threshold": 1, "epsilon_query": 1,
        "epsilon_release": 1,
    },
}  # fmt: skip
_TRAINING = {"FedNova": _SGD, "Scaffold": _SGD, "FedPOD": {"validate_after": True}}
_VARIANTS: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "FedAvg": (("uniform", {"weight_by": "uniform"}), ("unbiased", {"unbiased": True})),
    "FedNova": (("with mu", {"momentum": 0.0, "mu": 0.01}),),
    "PoissonBySize": (("iterations", {"fewer": "iterations"}),),
    "FedCostWAvg": (("by val_loss", {"cost": "val_loss"}), ("by val_dice", {"cost": "val_dice"})),
}
_SHARED = {
    "Scaffold": "fedseg.aggregators.control_variates.ControlVariates",
    "AdversarialAlignment": "fedseg.aggregators.shared_features.SharedFeatures",
    "Combat": "fedseg.aggregators.landmark_moments.LandmarkMoments",
    "HarmoFL": "fedseg.aggregators.mean_amplitude.MeanAmplitude",
    "HistogramStandardisation": "fedseg.aggregators.standard_landmarks.StandardLandmarks",
    "LCFed": "fedseg.aggregators.site_heads.SiteHeads",
    "SynapticIntelligence": "fedseg.aggregators.importance.Importance",
}
# Hooks whose sites send arrays before the first round, and the part of the network that has them.
_SHARE = {"Combat": "combat", "HarmoFL": "amplitude", "HistogramStandardisation": "standard_scale"}
# Parts of the network without which a hook does nothing.
_NETWORK_PARTS = {**_SHARE, "LCFed": "head_calibration", "MixedSupervision": "second_network"}
_STOPPING = {"target_dice": 0.9, "patience": 3, "max_hours": 5.0, "max_epsilon": 8.0}
_EXECUTOR = "fedseg.executors.training.SegmentationExecutor"
# Kinds of round whose sites have an executor of their own, and the task that only they answer.
_EXECUTORS = {
    "SplitTraining": "fedseg.executors.split.executor.SplitExecutor",
    "BrainTorrentTraining": "fedseg.executors.peers.torrent_executor.BrainTorrentExecutor",
    "SwarmTraining": "fedseg.executors.peers.executor.SwarmExecutor",
}
_TASKS = {"EncryptedTraining": "upload", "SwarmTraining": "merge"}
_NO_RULE = {"AsynchronousTraining", "BrainTorrentTraining", "CyclicTraining", "IncrementalTraining", "SplitTraining"}


@dataclass(frozen=True)
class MethodPart:
    """A part as a job names it.

    Attributes:
        kind: one of ``KINDS``.
        name: its class, and what sets it apart from others of the class.
        path: of the class; empty for a stopping rule, which is an argument of the workflow.
        arguments: of the class.
    """

    kind: str
    name: str
    path: str = ""
    arguments: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def component(self) -> dict[str, Any]:
        """As it stands in a job."""
        return {"path": self.path, "args": dict(self.arguments)}

    @property
    def class_name(self) -> str:
        return self.path.rpartition(".")[2]


def parts() -> list[MethodPart]:
    """Every part of the method table, in the order of the page."""
    kinds = {
        RULES: bases()["aggregator"],
        OPTIMIZERS: bases()["server optimizer"],
        SELECTIONS: bases()["selection of sites"],
        HOOKS: bases()["training hook"],
        FILTERS: UpdateFilter,
        ROUNDS: Workflow,
    }
    found = []
    for kind, base in kinds.items():
        for path, each in component_classes().items():
            if issubclass(each, base):
                name, given = each.__name__, _ARGUMENTS.get(each.__name__, {})
                found.append(MethodPart(kind, name, path, given))
                found += [MethodPart(kind, f"{name}, {v}", path, args) for v, args in _VARIANTS.get(name, ())]
    return found + [MethodPart(STOPPING, name) for name in _STOPPING]


def job_of(chosen: Iterable[MethodPart], **plan: Any) -> Job:
    """A small job with these parts, and with what they cannot do without.

    Args:
        chosen: the parts; of those that need a companion, such as a limit of epsilon a guarantee, it is added.
        plan: keys of the plan in place of the small ones.
    """
    chosen = _with_companions(list(chosen))
    of = {kind: [part for part in chosen if part.kind == kind] for kind in KINDS}
    rounds, names = (of[ROUNDS][0].class_name if of[ROUNDS] else "FederatedTraining"), {p.class_name for p in chosen}
    arguments: dict[str, Any] = {"num_rounds": 2, **{part.name: _STOPPING[part.name] for part in of[STOPPING]}}
    for key, kind in (("aggregator", RULES), ("server_optimizer", OPTIMIZERS), ("selection", SELECTIONS)):
        for part in of[kind]:
            arguments[key] = part.component
    for name in sorted(names & set(_SHARED)):
        arguments["shared_arrays"] = {"path": _SHARED[name]}
    workflow = component_path(rounds)
    task = "upload" if rounds == "EncryptedTraining" else "train"
    tasks = ["prepare", "train", "validate", *(["share"] if names & set(_SHARE) else [])]
    tasks += [_TASKS[rounds]] if rounds in _TASKS else []
    hooks = [{"id": part.class_name, **part.component} for part in of[HOOKS]]
    executor: dict[str, Any] = {"path": _EXECUTORS.get(rounds, _EXECUTOR)}
    executor |= {"args": {"hooks": [hook["id"] for hook in hooks]}} if hooks else {}
    client: dict[str, Any] = {"format_version": 2, "executors": [{"tasks": tasks, "executor": executor}]}
    client |= {"components": hooks}
    server: dict[str, Any] = {"format_version": 2, "workflows": [{"path": workflow, "args": arguments}]}
    chain = sorted(of[FILTERS], key=lambda part: _stage(part))
    if chain:
        client["task_result_filters"] = [{"tasks": [task], "filters": [part.component for part in chain]}]
        # What sites send before the first round goes through filters that protect such arrays.
        sharing = [part.component for part in chain if component_classes()[part.path].accepts_shared_arrays]  # type: ignore[attr-defined]
        if sharing and names & set(_SHARE):
            client["task_result_filters"].append({"tasks": ["share"], "filters": sharing})
    if "EncryptUpdate" in names:
        decrypt = [{"path": component_path("DecryptModel"), "args": {}}]
        client["task_data_filters"] = [{"tasks": ["train", "validate"], "filters": decrypt}]
    if any(component_classes()[part.path].gives not in (None, DENSE) for part in chain):  # type: ignore[attr-defined]
        restore = [{"path": component_path("RestoreUpdate"), "args": {}}]
        server["task_result_filters"] = [{"tasks": ["train"], "direction": "in", "filters": restore}]
    return Job(Path("."), "combination", _plan(chosen, names, rounds, plan), server, client)


def component_path(name: str) -> str:
    """The whole path of a class of fedseg."""
    return next(path for path in component_classes() if path.rpartition(".")[2] == name)


def _with_companions(chosen: list[MethodPart]) -> list[MethodPart]:
    every = {part.name: part for part in parts()}
    names, kinds = {part.name for part in chosen}, {part.kind for part in chosen}
    guaranteed = any(getattr(component_classes().get(part.path), "guarantees", False) for part in chosen)
    if "max_epsilon" in names and not guaranteed:
        chosen = [*chosen, every["GaussianNoise"]]
    if "EncryptedTraining" in names and "EncryptUpdate" not in names:
        chosen = [*chosen, every["EncryptUpdate"]]
    if "EncryptUpdate" in names and ROUNDS not in kinds:
        chosen = [*chosen, every["EncryptedTraining"]]
    if "SynapticIntelligence" in names and ROUNDS not in kinds:
        chosen = [*chosen, every["CyclicTraining"]]
        names.add("CyclicTraining")
    if "FedRep" in names and not names & {"PrivateLayers", "SharedLayers"}:
        chosen = [*chosen, every["PrivateLayers"]]
    if "FedNova, with mu" in names and "FedProx" not in names:
        chosen = [*chosen, every["FedProx"]]
    if RULES not in kinds and not names & _NO_RULE:
        chosen = [*chosen, every["FedAvg, uniform"]]
    return chosen


def _stage(part: MethodPart) -> int:
    return int(getattr(component_classes()[part.path], "stage", Stage.LAYERS))


def _plan(chosen: Sequence[MethodPart], names: set[str], rounds: str, given: dict[str, Any]) -> dict[str, Any]:
    training: dict[str, Any] = {"local_epochs": 1}
    for name in sorted(names & set(_TRAINING)):
        training |= _TRAINING[name]
    if any("cost" in part.arguments for part in chosen):
        training |= {"validate_after": True}
    network: dict[str, Any] = {"name": "residual_unet", "channels": [4, 8], "strides": [2], "res_units": 1}
    added = [{"name": part} for hook, part in _NETWORK_PARTS.items() if hook in names]
    network |= {"parts": added} if added else {}
    plan: dict[str, Any] = {
        "fedseg_version": __version__,
        "task": "hippocampus",
        "network": network,
        "training": training,
    }
    plan |= {**({"split": {}} if rounds == "SplitTraining" else {}), **given}
    if "HistogramStandardisation" in names:
        task = plan["task"] if isinstance(plan["task"], dict) else {"name": plan["task"]}
        plan["task"] = {**task, "normalisation": "landmarks"}
    return plan


def refusal(*chosen: MethodPart) -> str:
    """Why a job with these parts is refused, as its check says; empty where it is not."""
    try:
        job_of(chosen).check()
    except ConfigurationError as error:
        return error.remedy if error.name == "job" else str(error)
    return ""


def reason(*chosen: MethodPart) -> str:
    """The same with an ellipsis in the place of the parts, so that it is the reason of other pairs, too."""
    text = refusal(*chosen)
    for name in sorted({part.class_name or part.name for part in chosen}, key=len, reverse=True):
        text = re.sub(rf"(?:fedseg\.[\w.]+\.|\b){name}\b", "…", text)
    for name in _SHARED.values():
        text = text.replace(name.rpartition(".")[2], "…")
    return text


def pairs() -> list[tuple[MethodPart, MethodPart]]:
    """All pairs of parts of which a job can have both."""
    return [(a, b) for a, b in itertools.combinations(parts(), 2) if a.kind != b.kind or a.kind not in _ALONE]


_HEAD = """# Which parts go together

Parts of [methods](method-table.md) combine freely where nothing stands here. A job with two parts that cannot work
together is refused when it is checked, before anybody trains, and again by the server and its sites; the reasons below
are what the check says. The page is written by `python scripts/write_combinations.py`, and tests try its cells.

In the tables `+` stands for parts that work together, and a number for the reason why they do not. Kinds of parts of
which no pair is refused have no table. A part is tried with the arguments that it needs at least, and with the other
half of its method, such as SCAFFOLD's control variates; a limit of epsilon with Gaussian noise, FedNova's `mu` with
FedProx, FedRep with private layers, synaptic intelligence with cyclic transfer, and a pair without a rule with FedAvg
and equal weights. An ellipsis in a reason stands for a part of the pair.
"""


def page() -> str:
    """The page."""
    found = {frozenset(pair): reason(*pair) for pair in pairs()}
    reasons = {text: number for number, text in enumerate(dict.fromkeys(filter(None, found.values())), 1)}
    tables, free = [], []
    for rows, columns in itertools.combinations_with_replacement(KINDS, 2):
        table = _table(rows, columns, found, reasons)
        heading = f"{rows.capitalize()} and {columns}"
        (tables if "| +" in table and any(f" {n} |" in table for n in reasons.values()) else free).append(
            (heading, table)
        )
    everywhere = ", ".join(heading[0].lower() + heading[1:] for heading, table in free if table)
    parts_of_page = [_HEAD, f"Every pair works of: {everywhere}.\n"]
    parts_of_page += [f"## {heading}\n\n{table}" for heading, table in tables]
    listed = "\n".join(f"{number}. {text}" for text, number in reasons.items())
    return "\n".join([*parts_of_page, f"## Reasons\n\n{listed}\n"])


def _table(rows: str, columns: str, found: dict[frozenset[MethodPart], str], reasons: dict[str, int]) -> str:
    above, beside = ([part for part in parts() if part.kind == kind] for kind in (columns, rows))
    lines = []
    for row in beside:
        texts = [found.get(frozenset((row, column))) for column in above]
        cells = ["" if text is None else str(reasons[text]) if text else "+" for text in texts]
        if any(cells):
            lines.append(f"| {row.name} | " + " | ".join(cells) + " |")
    head = f"| | {' | '.join(part.name for part in above)} |\n|{'---|' * (len(above) + 1)}\n"
    return head + "\n".join(lines) + "\n" if lines else ""


if __name__ == "__main__":
    (Path(__file__).parents[1] / PAGE).write_text(page(), "utf-8")
    print(f"{PAGE} written")

"""A tiny segmentation problem that a small network learns in seconds: bright balls in noise, two classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from fedseg.contract.plan import parse_plan
from fedseg.data.datalist import Case, Datalist, write_datalist
from fedseg.models.model_file import write_model
from fedseg.networks.weights import get_weights
from fedseg.version import __version__

TASK: dict[str, Any] = {
    "name": "tiny",
    "modality": "MR",
    "channels": ["a"],
    "labels": {"inner": 1, "outer": 2},
    "regions": {"inner": ["inner"], "whole": ["inner", "outer"]},
    "normalisation": "zscore",
    "patch_size": [16, 16, 16],
    "sampling": {"background": 1, "inner": 1, "outer": 1},
    "flip_axes": [0],
}
EXCLUSIVE: dict[str, Any] = {name: value for name, value in TASK.items() if name != "regions"}
"""The same task with one region of each class."""
PLAN: dict[str, Any] = {
    "fedseg_version": __version__,
    "seed": 3,
    "task": TASK,
    "network": {"name": "residual_unet", "channels": [4, 8, 8], "strides": [2, 2], "res_units": 1},
    "training": {
        "local_epochs": 1,
        "batch_size": 2,
        "learning_rate": 0.01,
        "augmentation": "intensity",
        "threads": 1,
    },
}

TRANSFORMERS: dict[str, dict[str, Any]] = {
    "swin_unetr": {"feature_size": 12, "depths": [2, 1, 1, 1], "heads": [3, 3, 6, 6], "window": [4, 4, 2]},
    "unetr": {"feature_size": 4, "hidden_size": 24, "mlp_size": 32, "heads": 3},
}
"""Networks by name that are large unless a plan makes them small, and the arguments that do."""
SMALL: dict[str, dict[str, Any]] = {
    "residual_unet": {"channels": [4, 8, 12], "strides": [2, 2]},
    "dynunet": {"filters": [4, 6, 8], "strides": [1, 2, 2]},
    "segresnet": {"init_filters": 8, "blocks_down": [1, 2], "blocks_up": [1]},
    "residual_encoder_unet": {"features": [4, 8], "strides": [1, 2], "blocks": [1, 2], "blocks_up": [1]},
    "mednext": {"init_filters": 4, "blocks_down": [1, 2], "blocks_up": [1, 1], "blocks_bottom": 1},
    **TRANSFORMERS,
}
"""Every network by name, with arguments that make it small."""
LARGER = {"swin_unetr": (32, 32, 64)}
"""Patches of networks that take none of 32 x 32 x 32 voxels."""


def small(name: str, **arguments: Any) -> dict[str, Any]:
    """A network of the registry by name, small enough for a test."""
    return {"name": name, **TRANSFORMERS.get(name, {}), **arguments}


def make_image(seed: int, size: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Image and label: a ball of class 1 within a shell of class 2."""
    generator = np.random.default_rng(seed)
    centre = generator.uniform(7, size - 7, 3)
    distance = np.linalg.norm(np.indices((size, size, size)) - centre[:, None, None, None], axis=0)
    label = np.where(distance < 3, 1, np.where(distance < 5, 2, 0)).astype(np.uint8)
    image = np.array([0.0, 300.0, 150.0])[label] + generator.normal(100, 25, label.shape)
    return image.astype(np.float32), label


def write_case(folder: Path, name: str, seed: int, affine: np.ndarray | None = None) -> Case:
    """Write one case and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    image, label = make_image(seed)
    affine = np.eye(4) if affine is None else affine
    nib.save(nib.Nifti1Image(image, affine), folder / f"{name}_image.nii.gz")
    nib.save(nib.Nifti1Image(label, affine), folder / f"{name}.nii.gz")
    return Case((folder / f"{name}_image.nii.gz",), folder / f"{name}.nii.gz", name)


def make_sites(folder: Path, sizes: dict[str, tuple[int, int]], with_test: bool = False) -> Path:
    """Write ``folder/<site>/datalist.json`` with (training, validation) cases per site."""
    for number, (site, (training, validation)) in enumerate(sizes.items()):
        count = training + validation + int(with_test)
        cases = [write_case(folder / site / "images", f"{site}-{i}", 100 * number + i) for i in range(count)]
        split = training + validation
        datalist = Datalist(tuple(cases[:training]), tuple(cases[training:split]), tuple(cases[split:]), task="tiny")
        write_datalist(datalist, folder / site / "datalist.json")
    return folder


def make_model_and_site(folder: Path, validation: int = 2) -> Path:
    """Write ``model.safetensors`` after five rounds, its ``task.json``, and the site ``a`` with all splits."""
    plan = parse_plan(PLAN)
    write_model(folder / "model.safetensors", plan, get_weights(plan.build_network()), 4)
    (folder / "task.json").write_text(json.dumps(TASK))
    return make_sites(folder, {"a": (2, validation)}, with_test=True)

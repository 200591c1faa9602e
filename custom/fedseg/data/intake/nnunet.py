"""nnU-Net's raw data sets: a file a channel, ``imagesTr/<case>_0000.nii.gz``..., and ``labelsTr/<case>.nii.gz``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedseg.data.datalist import Case
from fedseg.errors import DataError


def is_nnunet(content: Mapping[str, Any]) -> bool:
    """Whether a ``dataset.json`` is one of nnU-Net, version 2: it says how its files end, or what its channels are."""
    return "channel_names" in content or "file_ending" in content


def as_decathlon(content: Mapping[str, Any]) -> dict[str, Any]:
    """Channels and labels as a Decathlon ``dataset.json`` says them; regions of several labels are left out."""
    labels = content.get("labels")
    plain = (
        {str(value): name for name, value in labels.items() if type(value) is int} if isinstance(labels, dict) else {}
    )
    return {"modality": content.get("channel_names"), "labels": plain}


def read_nnunet(path: Path, content: Mapping[str, Any], channels: int) -> tuple[Case, ...]:
    """The labelled cases of a raw data set; nnU-Net names no patients, so each case counts as one.

    Args:
        path: of ``dataset.json``.
        content: of it.
        channels: how many the task takes.

    Raises:
        DataError: the data set has another number of channels, or an image has no label.
    """
    names, ending = content.get("channel_names"), content.get("file_ending", ".nii.gz")
    if not isinstance(ending, str) or not ending.startswith("."):
        raise DataError(f"{path}: 'file_ending' must be an ending such as .nii.gz.")
    if isinstance(names, dict) and len(names) != channels:
        raise DataError(
            f"{path} has {len(names)} channel(s) {list(names.values())}, but the task needs {channels}. "
            "Choose the task that this data set was made for."
        )
    folder = path.parent
    labels = {file.name.removesuffix(ending): file for file in sorted((folder / "labelsTr").glob(f"*{ending}"))}
    for image in sorted((folder / "imagesTr").glob(f"*_0000{ending}")):
        if image.name.removesuffix(f"_0000{ending}") not in labels:
            raise DataError(f"{image} has no label in labelsTr. Label it, or take the case out.")
    return tuple(
        Case(tuple(folder / "imagesTr" / f"{name}_{c:04d}{ending}" for c in range(channels)), label, name)
        for name, label in labels.items()
    )

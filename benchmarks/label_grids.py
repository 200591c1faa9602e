"""How much of a tumour's outline a voxel grid can hold: the labels of training, brought back to the image's own grid.

    python benchmarks/label_grids.py

Ellipsoids of three sizes (half axes of 1, 0.85 and 1.15 times the radius), eight of each, are labelled on 0.8 x 0.8 x
2.5 mm as in the Decathlon's pancreas set, and resampled to the grids as in training. A network that learned its labels
perfectly would have the Dice that is printed.
"""

import statistics
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from fedseg.data.datalist import Case
from fedseg.tasks.objective import objective_of
from fedseg.tasks.registry import resolve_task
from fedseg.training.inference import predict_case
from fedseg.training.prepare import prepare_case

SPACING, SHAPE, REPEATS = (0.8, 0.8, 2.5), (80, 80, 28), 8
RADII = (5, 8, 12)
GRIDS = (
    (2.0, 2.0, 4.0), (1.6, 1.6, 4.0), (1.5, 1.5, 4.0), (2.0, 2.0, 2.5), (1.5, 1.5, 2.5), (0.8, 0.8, 2.5),
)  # fmt: skip


def draw(folder: Path, radius: float, number: int) -> Case:
    """Write one ellipsoid whose centre lies anywhere in a voxel, with some air beside it, as CT images have."""
    spacing = np.array(SPACING)
    shift = np.random.default_rng([int(radius), number]).uniform(-0.5, 0.5, 3)
    offsets = np.moveaxis(np.indices(SHAPE), 0, -1) - (np.array(SHAPE) - 1) / 2 - shift
    inside = np.square(offsets * spacing / (radius * np.array([1.0, 0.85, 1.15]))).sum(axis=-1) < 1
    image = np.where(inside, 100, 40)
    image[:2] = -1000
    paths = [folder / f"{kind}-{radius}-{number}.nii.gz" for kind in ("image", "label")]
    for path, values in zip(paths, (image.astype(np.int16), inside.astype(np.uint8)), strict=True):
        nib.save(nib.Nifti1Image(values, np.diag([*SPACING, 1.0])), path)
    return Case((paths[0],), paths[1], f"{radius}-{number}")


def best_dice(case: Case, grid: tuple[float, float, float]) -> float:
    """Dice of the labels of training themselves, on the grid of the file."""
    task = resolve_task({"name": "pancreas", "spacing": list(grid)})
    prepared = prepare_case(task, case, training=False)
    logits = 40.0 * torch.cat([prepared.classes == value for value in range(3)])[None]
    predicted, reference = predict_case(objective_of(task), prepared, logits) > 0, prepared.reference > 0
    return float(2 * (predicted & reference).sum() / (predicted.sum() + reference.sum()))


def main() -> None:
    print("| grid (mm) | " + " | ".join(f"radius {radius} mm" for radius in RADII) + " |")
    print("|---" * (len(RADII) + 1) + "|")
    with tempfile.TemporaryDirectory() as folder:
        cases = {radius: [draw(Path(folder), radius, n) for n in range(REPEATS)] for radius in RADII}
        for grid in GRIDS:
            means = [statistics.mean(best_dice(case, grid) for case in found) for found in cases.values()]
            print(f"| {' x '.join(f'{s:g}' for s in grid)} | " + " | ".join(f"{m:.3f}" for m in means) + " |")


if __name__ == "__main__":
    main()

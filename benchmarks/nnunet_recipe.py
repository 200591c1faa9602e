"""A plain training loop of PyTorch and MONAI with nnU-Net's recipe for the hippocampus: the opponent of
``training_quality.py``, without a line of fedseg.

What nnU-Net version 2 plans for Task04 (its ``3d_fullres`` configuration), and its trainer does: z-scores, a plain
convolutional U-Net of four levels with two convolutions each, instance normalisation and leaky ReLU, patches of 40 x 56
x 40 voxels, deep supervision with weights 1 and 1/2 and none for the coarsest level, Dice (of each patch, without the
background) plus cross-entropy, SGD with Nesterov's momentum 0.99, weight decay 3e-5, gradients clipped at 12, a rate
that falls as (1 - t)^0.9, one third of each batch with foreground in the centre, its augmentations, and prediction by
sliding windows averaged over mirror images. Differences: the batch, the width, the rate, the momentum and the mirrors
are arguments, since nine patches of a network of 32 feature maps are for a GPU, and a momentum of 0.99 is for many
steps; turns and zooms act on the patch and not on a larger cut, which makes no difference where a patch holds nearly
the whole image; the time that is spent takes the place of epochs. Source: Isensee et al., Nat Methods 2021, and
nnU-Net's code, version 2.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.networks.nets import DynUNet
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    NormalizeIntensityd,
    RandAdjustContrastd,
    RandCropByLabelClassesd,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandRotated,
    RandScaleIntensityd,
    RandScaleIntensityFixedMeand,
    RandSimulateLowResolutiond,
    RandSpatialCropd,
    RandZoomd,
    SpatialPadd,
)

PATCH, CLASSES, LEVELS = (40, 56, 40), 3, 4
BOTH, INTERPOLATION = ("image", "label"), ("bilinear", "nearest")
FOREGROUND = 0.33
SUPERVISION = (2 / 3, 1 / 3)
VIEWS = [axes for count in range(4) for axes in combinations((2, 3, 4), count)]
Case = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """What may differ from nnU-Net's plan.

    Attributes:
        width: feature maps at full resolution, doubled at each level below; nnU-Net's is 32.
        batch: patches of a step; nnU-Net's is 9.
        learning_rate: at the beginning; nnU-Net's is 0.01.
        momentum: Nesterov's; nnU-Net's is 0.99.
        mirrored: mirror in training and average over mirror images in prediction, as nnU-Net does.
    """

    width: int = 32
    batch: int = 2
    learning_rate: float = 0.01
    momentum: float = 0.99
    mirrored: bool = True


def load_cases(images: Sequence[Path], labels: Sequence[Path]) -> list[Case]:
    """Images as z-scores, padded to at least one patch, and their labels."""
    steps = Compose(
        [
            LoadImaged(BOTH),
            EnsureChannelFirstd(BOTH),
            NormalizeIntensityd("image"),
            SpatialPadd(BOTH, PATCH),
        ]
    )
    found = [steps({"image": str(image), "label": str(label)}) for image, label in zip(images, labels, strict=True)]
    return [{name: case[name].as_tensor() for name in BOTH} for case in found]


def augmentation(mirrored: bool) -> Compose:
    """nnU-Net's random changes of a patch."""
    blur, turn = (0.5, 1.0), np.pi / 6
    mirrors = [RandFlipd(BOTH, prob=0.5, spatial_axis=axis) for axis in range(3)]
    return Compose(
        [
            RandRotated(BOTH, turn, turn, turn, prob=0.2, mode=INTERPOLATION, padding_mode="zeros"),
            RandZoomd(
                BOTH, prob=0.2, min_zoom=0.7, max_zoom=1.4, mode=("trilinear", "nearest"), padding_mode="constant"
            ),
            RandGaussianNoised("image", prob=0.1, std=0.1),
            RandGaussianSmoothd("image", blur, blur, blur, prob=0.1),
            RandScaleIntensityd("image", factors=0.25, prob=0.15),
            RandScaleIntensityFixedMeand("image", factors=0.25, preserve_range=True, prob=0.15),
            RandSimulateLowResolutiond("image", prob=0.125, zoom_range=(0.5, 1.0)),
            RandAdjustContrastd("image", prob=0.1, gamma=(0.7, 1.5), invert_image=True, retain_stats=True),
            RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
            *(mirrors if mirrored else []),
        ]
    )


def network_of(width: int) -> DynUNet:
    """nnU-Net's plain U-Net, as MONAI builds it; one coarser level has an output of its own in training."""
    return DynUNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=CLASSES,
        kernel_size=[3] * LEVELS,
        strides=[1, 2, 2, 2],
        upsample_kernel_size=[2, 2, 2],
        filters=[width << level for level in range(LEVELS)],
        norm_name=("INSTANCE", {"affine": True}),
        deep_supervision=True,
        deep_supr_num=1,
    ).to(memory_format=torch.channels_last_3d)


class Batches:
    """Batches of patches of random cases, the last third of each (at least one patch) with foreground in its centre."""

    def __init__(self, cases: Sequence[Case], recipe: Recipe, seed: int) -> None:
        self.cases, self.recipe, self.random = cases, recipe, np.random.RandomState(seed)
        self.anywhere = RandSpatialCropd(BOTH, PATCH, random_size=False)
        self.centred = RandCropByLabelClassesd(BOTH, "label", PATCH, [0, 1, 1], CLASSES, num_samples=1)
        self.change = augmentation(recipe.mirrored)
        for number, step in enumerate((self.anywhere, self.centred, self.change)):
            step.set_random_state(seed=seed + number)

    def draw(self) -> dict[str, torch.Tensor]:
        """``image`` and ``label`` [batch, 1, *PATCH]."""
        forced = max(1, round(self.recipe.batch * FOREGROUND))
        patches = []
        for place in range(self.recipe.batch):
            case = self.cases[self.random.randint(len(self.cases))]
            centred = place >= self.recipe.batch - forced
            cut = self.centred(case)[0] if centred else self.anywhere(case)
            patches.append(self.change(cut))
        return {name: torch.stack([patch[name].as_tensor() for patch in patches]) for name in BOTH}


def train(cases: Sequence[Case], recipe: Recipe, seed: int, seconds: float) -> tuple[DynUNet, int]:
    """Train for so many seconds of the processor; the network, and how many steps it took."""
    torch.manual_seed(seed)
    network, batches = network_of(recipe.width).train(), Batches(cases, recipe, seed)
    loss_of = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, smooth_nr=1e-5, smooth_dr=1e-5)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=True, weight_decay=3e-5
    )
    begin, steps = time.process_time(), 0
    while (spent := time.process_time() - begin) < seconds:
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * (1 - spent / seconds) ** 0.9
        batch = batches.draw()
        optimizer.zero_grad(set_to_none=True)
        outputs = network(batch["image"].to(memory_format=torch.channels_last_3d)).unbind(1)
        loss = sum(share * loss_of(out, batch["label"]) for share, out in zip(SUPERVISION, outputs, strict=True))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()
        steps += 1
    return network.eval(), steps


def predictor(network: DynUNet, mirrored: bool) -> Callable[[Path], np.ndarray]:
    """Predicts the label map [X, Y, Z] of an image file, on its own grid."""
    steps = Compose([LoadImaged("image"), EnsureChannelFirstd("image"), NormalizeIntensityd("image")])

    def predict(path: Path) -> np.ndarray:
        image = steps({"image": str(path)})["image"].as_tensor()[None]
        views = VIEWS if mirrored else VIEWS[:1]
        with torch.inference_mode():
            images = torch.cat([image.flip(axes) for axes in views])
            logits: Any = sliding_window_inference(images, PATCH, 4, network, overlap=0.5, mode="gaussian")
            shares = logits.softmax(1)
            total = sum(share[None].flip(axes) for share, axes in zip(shares, views, strict=True))
        return total[0].argmax(0).numpy().astype(np.uint8)

    return predict

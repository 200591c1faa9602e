"""The inversion probe: how much of an image somebody gets back who sees the features that cross a cut.

A decoder learns on public images how features come from images, and is then tried on features of a victim's images. It
is given the weights of the site's part, as the server has them where sites share one. What it reaches is what can be
reached at the least: a larger decoder, more images or more time give more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from fedseg.attacks.inversion.decoder import DecoderSettings, cut_out, fit_decoder, scale_of
from fedseg.attacks.inversion.patches import Box, ProbePatch
from fedseg.contract.settings import TrainingSettings
from fedseg.contract.split_settings import SplitSettings
from fedseg.errors import DataError
from fedseg.evaluation.inversion_result import CutInversion, Inversion, Reconstruction
from fedseg.models.model_file import ModelFile
from fedseg.networks.registry import Network
from fedseg.networks.split.parts import Tensors, cut_network
from fedseg.networks.split.stages import cut_names, cut_stages
from fedseg.randomness import derive_seed
from fedseg.tasks.reconstruction.metrics import Likeness, blurred, likeness, mean_likeness
from fedseg.training.split.message import message_bytes, pack, unpack
from fedseg.training.split.site_half import SiteHalf

LARGEST_BOX = 64  # voxels along each axis of the middle of a patch in which the decoder is trained and scored
REFERENCES = ("guess", "half", "quarter")
PUBLIC, VICTIM = "public", "victim"


@dataclass(frozen=True)
class Attack:
    """Who attacks whom, and how.

    Attributes:
        split: of the job; precision of messages and noise on features are used, and its cut is named.
        training: of the job; precision, batch size and threads are used.
        public: patches that the attacker has; at least one.
        victims: patches whose features the attacker sees; at least one, with some contrast.
        seed: of decoder and noise.
        settings: of the decoder.
        device: a torch device.
    """

    split: SplitSettings
    training: TrainingSettings
    public: Sequence[ProbePatch]
    victims: Sequence[ProbePatch]
    seed: int = 0
    settings: DecoderSettings = field(default_factory=DecoderSettings)
    device: torch.device | str = "cpu"


def probe(
    model: ModelFile,
    attack: Attack,
    cuts: Sequence[str] | None = None,
    progress: Callable[[Iterable[str]], Iterable[str]] = iter,
) -> tuple[Inversion, list[Reconstruction]]:
    """Probe the cuts of a network.

    Args:
        model: the whole network with its weights, the victim's part in it.
        attack: who attacks whom.
        cuts: which; None for all.
        progress: wraps the cuts, to show how far the work is.

    Returns:
        The numbers, and the victim's patches with what was made of them.

    Raises:
        ConfigurationError: the network has no such cut.
        DataError: no patch of the victim has any contrast.
        RefusalError: features are not finite (reason ``loss``).
    """
    chosen = cut_names(model.network) if cuts is None else tuple(cuts)
    for cut in chosen:
        cut_stages(model.network, cut)
    stride = model.network.arguments.divisor
    box = central_box(attack.public[0].image.shape[1:], stride)
    images = torch.stack([patch.image[(slice(None), *box)] for patch in attack.public])
    views = [_view(patch, box, images.mean(0)) for patch in attack.victims]
    whole = model.build()
    threads = torch.get_num_threads()
    torch.set_num_threads(attack.training.threads)
    try:
        found = tuple(_probe_cut(whole, model.network, cut, attack, images, views, box) for cut in progress(chosen))
    finally:
        torch.set_num_threads(threads)
    inversion = Inversion(
        cut=attack.split.cut,
        message=attack.split.message,
        feature_noise=float(attack.split.feature_noise),
        seed=attack.seed,
        box=tuple(part.stop - part.start for part in box),
        public_patches=len(attack.public),
        victim_patches=len(attack.victims),
        references={name: _scores(views, name)[0] for name in REFERENCES},
        cuts=found,
    )
    return inversion, views


def central_box(patch: Sequence[int], stride: Sequence[int], largest: int = LARGEST_BOX) -> Box:
    """The middle of a patch, at most ``largest`` voxels long along each axis; corner and size are whole strides."""
    found = []
    for length, step in zip(patch, stride, strict=True):
        size = min(length, max(step, largest // step * step))
        start = (length - size) // 2 // step * step
        found.append(slice(start, start + size))
    x, y, z = found
    return x, y, z


def features_as_sent(half: SiteHalf, images: Sequence[torch.Tensor], box: Box, batch: int) -> tuple[Tensors, int]:
    """Features of whole patches as they arrive at the server, and of these the part that belongs to a box.

    Args:
        half: of a site; with the precision, noise and type of message of a job.
        images: of patches, [C, X, Y, Z] each.
        box: of the patch; whole strides of the network.
        batch: patches that leave together.

    Returns:
        Tensors [N, features, X', Y', Z'] float32 by name, and the bytes of one patch on the way.

    Raises:
        RefusalError: features are not finite (reason ``loss``).
    """
    corner, size = [part.start for part in box], [part.stop - part.start for part in box]
    parts: dict[str, list[torch.Tensor]] = {}
    total, precision = 0, half.split.message
    for first in range(0, len(images), batch):
        given = torch.stack(list(images[first : first + batch]))
        with torch.no_grad():
            sent = half.forward(given)
        half.forget()
        half.steps += 1  # the noise of a site is new in every step
        arrays = pack(sent, precision)
        total += message_bytes(arrays)
        for name, value in unpack(arrays, {n: v.shape[1:] for n, v in sent.items()}, precision).items():
            scale = scale_of(value, given)
            parts.setdefault(name, []).extend(cut_out(one, corner, size, scale).float() for one in value)
    return {name: torch.stack(value) for name, value in parts.items()}, round(total / len(images))


def _probe_cut(
    whole: nn.Module,
    network: Network,
    cut: str,
    attack: Attack,
    images: torch.Tensor,
    views: Sequence[Reconstruction],
    box: Box,
) -> CutInversion:
    """Train a decoder for one cut and try it; the reconstructions are added to ``views``."""
    split, batch = replace(attack.split, cut=cut, labels="shared"), attack.training.batch_size
    sent = []
    for owner, patches in ((PUBLIC, attack.public), (VICTIM, attack.victims)):
        part, _ = cut_network(whole, network, cut)
        half = SiteHalf(part, owner, attack.training, split, seed=attack.seed, simulated=True, device=attack.device)
        sent.append(features_as_sent(half, [patch.image for patch in patches], box, batch))
    (public, _), (theirs, size) = sent
    seed, stride = derive_seed(attack.seed, cut, "decoder"), network.arguments.divisor
    decoder, steps = fit_decoder(public, images, stride, attack.settings, seed, attack.device)
    for index, (patch, view) in enumerate(zip(attack.victims, views, strict=True)):
        with torch.no_grad():
            made = decoder({name: value[index : index + 1].to(attack.device) for name, value in theirs.items()})
        view.copies[cut] = made[0].cpu()[(slice(None), *_within(patch, box))]
    mean, ssim = _scores(views, cut)
    return CutInversion(cut, mean, ssim, steps, size)


def _view(patch: ProbePatch, box: Box, guess: torch.Tensor) -> Reconstruction:
    """The part of a patch that is both in the box and in the image, and the references for it."""
    window = (slice(None), *_within(patch, box))
    original, classes = (value[(slice(None), *box)][window] for value in (patch.image, patch.classes))
    copies = {"guess": guess[window], "half": blurred(original, 2), "quarter": blurred(original, 4)}
    return Reconstruction(original, classes, patch.aspect, copies)


def _within(patch: ProbePatch, box: Box) -> Box:
    """Where the image lies in the box."""
    pairs = zip(patch.inside, box, strict=True)
    x, y, z = (slice(max(0, i.start - b.start), min(b.stop, i.stop) - b.start) for i, b in pairs)
    return x, y, z


def _scores(views: Sequence[Reconstruction], name: str) -> tuple[Likeness, tuple[float, ...]]:
    """Mean over the victim's patches, and the SSIM of each one that has any contrast."""
    found = [score for view in views if (score := likeness(view.original, view.copies[name])) is not None]
    mean = mean_likeness(found)
    if mean is None:
        raise DataError("The victim's images have no contrast where the probe looks; nothing can be compared.")
    return mean, tuple(score.ssim for score in found)

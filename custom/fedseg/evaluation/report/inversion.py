"""The section of a report on the inversion probe: what came back from features, in numbers, words and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from fedseg.evaluation.report.drawing import QUIET, picture_grid, save, style
from fedseg.evaluation.report.split_words import own_models, submitted_parts
from fedseg.evaluation.report.text_tables import TextTable, shown, shown_bytes
from fedseg.evaluation.report.views import largest_slice, radiological
from fedseg.evaluation.summary import Summary, number, part, rows
from fedseg.tasks.task import Task

if TYPE_CHECKING:
    from fedseg.evaluation.inversion_result import Reconstruction

PICTURE = "inversion.png"
SHOWN_PATCHES = 2
WIDTH, GAP = 9.6, 0.04  # inches
ALIKE = 0.02  # difference in SSIM up to which a reconstruction shows about as much as a copy
# What a line of the table or a panel of the picture shows instead of a reconstruction.
REFERENCES = {
    "half": "the image itself at half the resolution",
    "quarter": "the image itself at a quarter of the resolution",
    "guess": "no features: the mean of the attacker's images",
}


def inversion_table(summary: Summary) -> TextTable:
    """Each cut, and below the references in the same units."""
    inversion = part(summary, "inversion")
    if not inversion:
        return TextTable(())
    body = []
    for entry in rows(inversion, "cuts"):
        name = str(entry.get("cut"))
        mark = " (this job)" if name == inversion.get("cut") else ""
        steps = shown(entry.get("steps"), ".0f")
        body.append([f"features of {name}{mark}", *_numbers(entry), steps, shown_bytes(entry.get("bytes"))])
    references = part(inversion, "references")
    body += [[text, *_numbers(part(references, name)), "", ""] for name, text in REFERENCES.items()]
    header = (
        "What the image is compared with",
        "SSIM",
        "PSNR (dB)",
        "Correlation",
        "Decoder steps",
        "Sent for a patch",
    )
    return TextTable(header, body, len(REFERENCES), 1)


def inversion_verdict(summary: Summary) -> str:
    """What the number of the job's own cut means; where it was not probed, that, and the clearest of the others."""
    inversion = part(summary, "inversion")
    entries = {str(entry.get("cut")): entry for entry in rows(inversion, "cuts")}
    cuts = {name: number(entry.get("ssim")) for name, entry in entries.items()}
    half, quarter, guess = (number(part(inversion, "references", n).get("ssim")) for n in ("half", "quarter", "guess"))
    name, unprobed = str(inversion.get("cut")), ""
    if cuts and name not in cuts:
        unprobed = f"The job's own cut, {name}, was not measured. "
        name = max(cuts, key=lambda cut: cuts[cut] or 0.0)
    ssim = cuts.get(name)
    if ssim is None or half is None or quarter is None or guess is None:
        return "The probe gave no number."
    steps = number(entries[name].get("steps"))
    trained = "" if steps is None else f" by a decoder that was trained for {steps:.0f} step{'s' * (steps != 1)}"
    likeness = f"an SSIM of {shown(ssim)} (1 is the image itself)"
    start = f"{unprobed}From the features of {name} an image was reconstructed{trained} with {likeness}"
    return start + _beside_references(ssim, half, quarter, guess)


def _beside_references(ssim: float, half: float, quarter: float, guess: float) -> str:
    """What a likeness means beside those of copies at half and a quarter of the resolution and of a guess."""
    if ssim > half + ALIKE:
        return f": the server sees more of an image than a copy at half its resolution shows ({shown(half)})."
    for reference, resolution in ((half, "half"), (quarter, "a quarter of")):
        if abs(ssim - reference) <= ALIKE:
            seen = f"the server sees about as much of an image as a copy at {resolution} its resolution shows"
            return f": {seen} ({shown(reference)})."
    if ssim > quarter:
        return (
            f": the server sees an image about as a copy at between a quarter ({shown(quarter)}) and half "
            f"({shown(half)}) of its resolution shows it."
        )
    if ssim > guess:
        return (
            f": less than a copy at a quarter of its resolution shows ({shown(quarter)}), more than a guess "
            f"({shown(guess)})."
        )
    return f", no more than a guess without features ({shown(guess)}). This decoder failed; a better one may not."


def inversion_words(summary: Summary) -> list[str]:
    """What was done, and what the probe does not say."""
    inversion = part(summary, "inversion")
    if not inversion:
        return []
    attacker, victim = part(inversion, "attacker"), part(inversion, "victim")
    sites = ", ".join(str(site) for site in attacker.get("sites") or [])
    has = f"the training images of {sites}" if sites else "simulated images (phantoms)"
    whose = f"images of {victim.get('site')}" if victim.get("site") else "other simulated images"
    patches = f"{inversion.get('public_patches')} patches of {has}"
    noise = number(inversion.get("feature_noise")) or 0.0
    sent = f"in {inversion.get('message')}" + (f", with noise of standard deviation {noise:g}" if noise else "")
    return [
        f"A small decoder learned on {patches} how features come from images, and then reconstructed "
        f"{inversion.get('victim_patches')} patches of {whose} from their features alone, as these leave a site "
        f"({sent}). It was given the weights of the site's part of the network as they were at the end of the run."
        f"{_known_parts(summary)}",
        "This is a lower bound: what was reached here can be reached, and an attacker with more images, more time or "
        "a larger decoder may reach more. A low number is no guarantee.",
    ]


def _known_parts(summary: Summary) -> str:
    """Whether the server itself has the weights that the probe was given, where sites have parts of their own."""
    if not own_models(summary):
        return ""
    return (
        " During the training the server knows the parts of the sites as they began only. At the end it got that of "
        f"{', '.join(submitted_parts(summary)) or 'no site'}, as a site's policy allows (rule submit_model): the very "
        "weights that the probe used, which it can apply to features that it has kept."
    )


def draw_reconstructions(views: Sequence[Reconstruction], cuts: Sequence[str], task: Task, path: Path) -> Path:
    """Original, a copy at half the resolution, and what each cut gave; one line for each of a few patches.

    Args:
        views: the victim's patches.
        cuts: whose reconstructions are shown, from left to right.
        task: names the channels; the last one is shown.
        path: of the PNG.
    """
    named = {"original": "original", "half": "half resolution", **{cut: cut for cut in cuts}}
    # From over all of them: neighbours may be of one case.
    shown_views = views[:: -(-len(views) // SHOWN_PATCHES)]
    side = min(1.7, (WIDTH + GAP) / len(named) - GAP)
    tops = [0.24 + row * (side + GAP) for row in range(len(shown_views))]
    lefts = [column * (side + GAP) for column in range(len(named))]
    with style():
        figure, panels = picture_grid(tops, lefts, side, 0.04)
        for line, view in zip(panels, shown_views, strict=True):
            axial = largest_slice([view.classes.numpy() > 0], view.classes.shape[3])
            images = {"original": view.original, **view.copies}
            slices = {name: radiological(images[name][-1, :, :, axial].numpy()) for name in named}
            low, high = np.percentile(slices["original"], [0.5, 99.5])
            for axes, name in zip(line, named, strict=True):
                axes.imshow(slices[name], cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=view.aspect)
        for axes, title in zip(panels[0], named.values(), strict=True):
            _title(axes, title)
        return save(figure, path)


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="center", fontsize=8, fontweight="normal", color=QUIET, pad=3)


def _numbers(entry: object) -> list[str]:
    values = part(entry)
    return [shown(values.get("ssim")), shown(values.get("psnr"), ".1f"), shown(values.get("correlation"))]

"""ComBat over sites: what each site's scanner does to histograms is estimated, shrunk, and taken away."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from fedseg.contract.combinations import STATISTICS
from fedseg.contract.plan import Plan
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.networks.parts.combat import COMBAT, COMBAT_AFTER, COMBAT_BEFORE
from fedseg.networks.weights import Arrays
from fedseg.tasks.landmarks import LEVELS, landmarks
from fedseg.training.hooks import LocalTraining, TrainingHook
from fedseg.training.prepare import prepare_case

NORMALISATIONS = ("zscore", "zscore_nonzero", "window")
LEAST_IMAGES = 2
_TOLERANCE, _MOST_ROUNDS, _TINY = 1e-10, 10_000, 1e-12


@dataclass(frozen=True)
class SiteEffect:
    """What ComBat finds of one site, for each feature [F].

    Attributes:
        location, scale: gamma and delta as they are measured, in units of the pooled deviation.
        shrunk_location, shrunk_scale: the same by empirical Bayes; ``scale`` is a deviation, no variance.
    """

    location: np.ndarray
    scale: np.ndarray
    shrunk_location: np.ndarray
    shrunk_scale: np.ndarray


def grand(moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Grand mean and pooled deviation within sites, each [F], of sums over all sites.

    Args:
        moments: numbers of images, sums, and squared deviations within sites, [3, F].
    """
    count = np.maximum(moments[0], 1)
    deviation = np.sqrt(np.maximum(moments[2], 0) / count)
    return moments[1] / count, np.where(deviation > _TINY, deviation, 1.0)


def site_effect(own: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> SiteEffect:
    """Location and scale of a site by parametric empirical Bayes (Johnson, Li and Rabinovic, Biostatistics 2007).

    The features of a site share a normal prior of their locations and an inverse gamma prior of their variances, whose
    parameters are the moments over the features; the conditional posterior means are iterated until they stay. It is
    neuroCombat (Fortin et al., NeuroImage 2018) without covariates.

    Args:
        own: numbers of images (2 at least), sums, and squared deviations of the site, [3, F].
        mean, deviation: see ``grand``.
    """
    count = own[0]
    location = (own[1] / count - mean) / deviation
    squares = own[2] / deviation**2
    variance = squares / (count - 1)
    prior_mean, prior_variance = location.mean(), _variance(location)
    average, spread = variance.mean(), _variance(variance)
    shrunk, shrunk_variance = location.copy(), variance.copy()
    for _ in range(_MOST_ROUNDS):
        before = shrunk, shrunk_variance
        weight = count * prior_variance
        shrunk = (weight * location + shrunk_variance * prior_mean) / np.maximum(weight + shrunk_variance, _TINY)
        if spread > _TINY:
            shape, rate = (2 * spread + average**2) / spread, (average * spread + average**3) / spread
            total = squares + count * (location - shrunk) ** 2
            shrunk_variance = (total / 2 + rate) / (count / 2 + shape - 1)
        else:
            shrunk_variance = np.full_like(variance, average)  # all features agree: nothing is between them
        if all(
            np.allclose(a, b, rtol=_TOLERANCE, atol=_TINY)
            for a, b in zip(before, (shrunk, shrunk_variance), strict=True)
        ):
            break
    return SiteEffect(location, np.sqrt(variance), shrunk, np.sqrt(shrunk_variance))


def adjusted(effect: SiteEffect, mean: np.ndarray, deviation: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Features [..., F] of images of the site without what is the site's."""
    standard = (values - mean) / deviation
    scale = np.where(effect.shrunk_scale > _TINY, effect.shrunk_scale, 1.0)
    found: np.ndarray = (standard - effect.shrunk_location) / scale * deviation + mean
    return found


def site_curve(own: np.ndarray, total: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean landmarks of a site and what ComBat makes of them, each [C, L]; zeros for a channel that it does not have.

    Args:
        own: moments of the site, [C, 3, L].
        total: their sums over all sites, [C, 3, L].
    """
    channels, _, levels = own.shape
    before, after = np.zeros((channels, levels)), np.zeros((channels, levels))
    there = own[:, 0, 0] > 0
    if not there.any():
        return before, after
    flat = own[there].transpose(1, 0, 2).reshape(3, -1)
    mean, deviation = grand(total[there].transpose(1, 0, 2).reshape(3, -1))
    effect = site_effect(flat, mean, deviation)
    before[there] = (flat[1] / flat[0]).reshape(-1, levels)
    found = adjusted(effect, mean, deviation, flat[1] / flat[0]).reshape(-1, levels)
    after[there] = np.maximum.accumulate(found, axis=1)  # a curve does not turn round
    return before, after


class Combat(TrainingHook):
    """Harmonises sites by ComBat on landmarks of histograms (Johnson et al., 2007; Fortin et al., 2018).

    1. The features of an image are the landmarks of its normalised channels: 1st percentile, deciles, 99th.
    2. Before round 0 a site sends how many training images it has of each channel, the sums of their landmarks and the
       squared deviations from its own means; ``aggregators.landmark_moments.LandmarkMoments`` adds them up.
    3. From the sums follow the grand mean and the pooled deviation, and from them and its own moments the site's
       location and scale of each landmark, shrunk by empirical Bayes over all its landmarks (``site_effect``).
    4. The part ``combat`` of the site's network, an array of the site's own, maps the site's mean landmarks to what
       ComBat makes of them. All images of a site meet one curve: what differs between its patients stays.
    """

    prefix = "combat/"
    # Squared deviations with noise are those of nothing, and may be below 0.
    needs = TrainingHook.needs | {STATISTICS}

    def __init__(self) -> None:
        self._own: np.ndarray | None = None

    def check_plan(self, plan: Plan) -> None:
        plan.network.require_part(COMBAT, "Combat")
        if plan.task.normalisation not in NORMALISATIONS:
            remedy = "Landmarks that are brought to fixed places have lost what ComBat looks at."
            raise ConfigurationError(
                "task.normalisation", plan.task.normalisation, f"one of {list(NORMALISATIONS)} for Combat", remedy
            )

    def arrays_before_rounds(self, training: LocalTraining) -> Arrays:
        return {f"{self.prefix}moments": self._moments(training)}

    def before_round(self, training: LocalTraining, global_weights: Arrays, round_number: int) -> None:
        total = training.received_shared_arrays.get(f"{self.prefix}moments")
        if total is None or not total.any():
            raise RefusalError("weights", "The server sent no landmarks: its job lacks LandmarkMoments.")
        curve = site_curve(self._moments(training), total)
        arrays = dict(training.network.named_buffers())
        for name, values in zip((COMBAT_BEFORE, COMBAT_AFTER), curve, strict=True):
            arrays[name].copy_(torch.from_numpy(values))

    def _moments(self, training: LocalTraining) -> np.ndarray:
        """Those of the site's training images, [C, 3, L]; read once.

        Raises:
            RefusalError: there is one image only of a channel, so that it has no spread (``data``).
        """
        if self._own is None:
            self._own = moments(training)
        return self._own

    def state(self) -> dict[str, Any]:
        return {} if self._own is None else {"moments": torch.from_numpy(self._own)}

    def load_state(self, state: dict[str, Any] | None) -> None:
        if state and "moments" in state:
            self._own = state["moments"].cpu().numpy()


def moments(training: LocalTraining) -> np.ndarray:
    """Numbers of a site's training images, sums of their landmarks, squared deviations, for each channel, [C, 3, L].

    Raises:
        RefusalError: a channel has a single image, so that its landmarks have no spread (reason ``data``).
    """
    task = training.training_cases.task
    found: list[list[np.ndarray]] = [[] for _ in task.channels]
    for case in training.training_cases.cases:
        for channel, values in enumerate(prepare_case(task, replace(case, label=None), training=False).image.numpy()):
            counted = values[values != 0] if task.zero_is_nothing else values.ravel()
            if channel not in case.missing and counted.size and np.ptp(counted) > 0:
                found[channel].append(landmarks(counted))
    if any(len(images) == 1 for images in found):
        raise RefusalError(
            "data", f"ComBat needs at least {LEAST_IMAGES} training images of each channel at a site, and one has 1."
        )
    result = np.zeros((len(task.channels), 3, len(LEVELS)))
    for channel, images in enumerate(found):
        if images:
            values = np.stack(images)
            result[channel] = (
                np.full(len(LEVELS), len(values)), values.sum(0), ((values - values.mean(0)) ** 2).sum(0)
            )  # fmt: skip
    return result


def _variance(values: np.ndarray) -> float:
    """Sample variance over features."""
    return float(values.var(ddof=1)) if values.size > 1 else 0.0

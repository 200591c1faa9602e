"""How a network is trained in two parts, as checked values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from fedseg import allowed
from fedseg.errors import ConfigurationError

HANDED_ON = "handed_on"
_CHOICES = {
    "labels": ("shared", "private"),
    "cut_gradient": ("own", "mean"),
    "site_update": ("separate", "averaged", "summed", HANDED_ON),
    "message": ("float32", "float16", "float64"),
}


@dataclass(frozen=True)
class SplitSettings:
    """Settings of split training, the same at the server and at every site of a job.

    Attributes:
        cut: last stage of the network at the sites, see ``networks.split_stages``.
        labels: ``shared``: sites send their labels with the features, and the server computes the loss of all samples
            together. ``private``: the server returns predictions, and a site answers with the gradient of its own loss
            at them. That gradient tells the labels to whoever looks for them; see docs/explanation/split-learning.md.
        cut_gradient: what a site gets back. ``own``: the gradient of the loss of all samples at its own features.
            ``mean``: the mean of that over the sites, sample by sample, as the code that was published with the
            method does; batches must be equal.
        site_update: ``separate``: each site trains a part of its own (published). ``averaged``: the parts are averaged
            by samples after every round. ``summed``: in every step the sites' gradients are added up and all sites
            apply the sum, so that their parts stay one; this is training on all samples together. ``handed_on``: in
            a round site after site trains alone with the server, in the order of their names, one pass over its own
            cases each, and begins with the part of the site before it: sequential split learning (SplitNN).
        message: type of the numbers in features, predictions and their gradients on the way. ``float16`` carries a
            scale for each tensor, so that small gradients survive; ``float64`` is for checks.
        feature_noise: standard deviation of Gaussian noise on every feature that leaves a site. Features are not
            clipped, so no epsilon belongs to it.
    """

    cut: str = "encoder1"
    labels: str = "shared"
    cut_gradient: str = "own"
    site_update: str = "separate"
    message: str = "float32"
    feature_noise: float = 0.0

    @property
    def in_turn(self) -> bool:
        """Whether the sites of a round train one after the other."""
        return self.site_update == HANDED_ON

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form."""
        return asdict(self)


def parse_split(declaration: Mapping[str, Any], where: str = "split") -> SplitSettings:
    """Check a job's settings of split training.

    Raises:
        ConfigurationError: a name is unknown or a value is not allowed.
    """
    if not isinstance(declaration, Mapping):
        raise ConfigurationError(where, declaration, "an object of settings")
    known = sorted(f.name for f in fields(SplitSettings))
    for key, value in declaration.items():
        if key not in known:
            raise ConfigurationError(f"{where}.{key}", value, f"absent: the settings are {known}")
    settings = SplitSettings(**declaration)
    for name, choices in _CHOICES.items():
        if getattr(settings, name) not in choices:
            raise ConfigurationError(f"{where}.{name}", getattr(settings, name), f"one of {choices}")
    if settings.site_update == HANDED_ON and settings.cut_gradient == "mean":
        why = "One site trains at a time."
        raise ConfigurationError(f"{where}.cut_gradient", "mean", f"own with site_update {HANDED_ON}", why)
    noise = settings.feature_noise
    allowed.number(f"{where}.feature_noise", noise, least=0)
    return settings

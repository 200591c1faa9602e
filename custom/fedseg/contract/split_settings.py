"""How a network is trained in two parts, as checked values."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from fedseg.allowed import number, one_of, setting, settings, text
from fedseg.errors import ConfigurationError

HANDED_ON = "handed_on"


@dataclass(frozen=True)
class SplitSettings:
    """Settings of split training, the same at the server and at every site of a job.

    Attributes:
        cut: last stage of the network at the sites, see ``networks.split_stages``.
        labels: ``shared``: sites send their labels with the features, and the server computes the loss of all samples
            together. ``private``: the server returns predictions, and a site answers with the gradient of its own loss
            at them. An attacker can read the labels off that gradient; see docs/explanation/split-learning.md.
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

    cut: str = setting("encoder1", text)
    labels: str = setting("shared", one_of, choices=("shared", "private"))
    cut_gradient: str = setting("own", one_of, choices=("own", "mean"))
    site_update: str = setting("separate", one_of, choices=("separate", "averaged", "summed", HANDED_ON))
    message: str = setting("float32", one_of, choices=("float32", "float16", "float64"))
    feature_noise: float = setting(0.0, number, least=0)

    @property
    def in_turn(self) -> bool:
        """Whether the sites of a round train one after the other."""
        return self.site_update == HANDED_ON

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form."""
        return asdict(self)


def parse_split(declaration: Any) -> SplitSettings:
    """Check a job's settings of split training, an object of values by name.

    Raises:
        ConfigurationError: a name is unknown or a value is not allowed.
    """
    split = settings(SplitSettings, declaration, "split")
    if split.site_update == HANDED_ON and split.cut_gradient == "mean":
        why = "One site trains at a time."
        raise ConfigurationError("split.cut_gradient", "mean", f"own with site_update {HANDED_ON}", why)
    return split

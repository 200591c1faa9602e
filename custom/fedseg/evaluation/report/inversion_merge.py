"""Two probes of one model: what is known after both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def merge_probes(earlier: Any, found: dict[str, Any], names: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """An earlier result and a new one: for each cut the one with the higher SSIM, for the probe is a lower bound.

    Args:
        earlier: ``inversion`` of the summary, if there is one. It counts only if it is of the same model, the same
            images and the same messages; otherwise its numbers cannot stand beside the new ones.
        found: the new one.
        names: of all cuts, from the image on.

    Returns:
        The result, and the cuts to draw anew; none where the picture of the earlier probe shall stay, since it shows
        the job's own cut and the new one would not, or since nothing is better.
    """
    told = ("model_digest", "attacker", "victim", "references", "message", "feature_noise", "cut")
    if not isinstance(earlier, dict) or any(earlier.get(key) != found[key] for key in told):
        return found, list(found["pictured"])
    cuts = {entry["cut"]: entry for entry in earlier["cuts"]}
    better = [new["cut"] for new in found["cuts"] if new["cut"] not in cuts or new["ssim"] > cuts[new["cut"]]["ssim"]]
    cuts |= {new["cut"]: new for new in found["cuts"] if new["cut"] in better}
    merged = {**found, "cuts": [cuts[name] for name in names if name in cuts], "pictured": earlier["pictured"]}
    stays = found["cut"] in earlier["pictured"] and found["cut"] not in better
    return merged, [] if stays else better

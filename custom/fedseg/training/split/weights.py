"""What the sites' parts have in common: their average between rounds, and the sum of their gradients."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedseg.errors import ConfigurationError, RefusalError
from fedseg.networks.split.parts import Tensors
from fedseg.networks.weights import Arrays, check_weights, is_averaged
from fedseg.training.split.half import shapes


def average_parts(weights: Mapping[str, Mapping[str, np.ndarray]], samples: Mapping[str, int]) -> Arrays:
    """The mean of the sites' parts, weighted by samples, in float64 and in the order of the sites' names.

    Args:
        weights: of each site's part.
        samples: how many samples each of these sites has contributed, at least one in all.

    Returns:
        Arrays of the parts' types; what is not of floating point is that of the first site.

    Raises:
        RefusalError: the parts do not fit to each other (reason ``weights``).
        ConfigurationError: a number of samples is missing or negative, or there are none.
    """
    sites = sorted(weights)
    counts = [samples.get(site, -1) for site in sites]
    if not counts or min(counts) < 0 or not sum(counts):
        raise ConfigurationError("samples", dict(samples), f"a number from 0 up for each of {sites}, not all 0")
    first = dict(weights[sites[0]])
    for site in sites[1:]:
        check_weights(first, weights[site])
    shares = [count / sum(counts) for count in counts]
    mean = {}
    for name, value in first.items():
        parts = [np.asarray(weights[site][name], np.float64) * share for site, share in zip(sites, shares, strict=True)]
        mean[name] = np.sum(parts, axis=0).astype(value.dtype) if is_averaged(value) else value
    return mean


def check_part(expected: Mapping[str, np.ndarray], weights: Mapping[str, np.ndarray]) -> None:
    """Refuse what is not a part of the network as it is handed on: nothing of it is rounded or converted.

    Args:
        expected: a part of the same cut.
        weights: as they came over the wire.

    Raises:
        RefusalError: names, shapes or types differ, or a value is not finite (reason ``weights``).
    """
    check_weights(expected, weights)
    for name, value in expected.items():
        if np.asarray(weights[name]).dtype != value.dtype:
            raise RefusalError("weights", f"{name} is {np.asarray(weights[name]).dtype}, not {value.dtype}.")


def sum_gradients(gradients: Mapping[str, Tensors]) -> Tensors:
    """The sum over the sites, in the order of their names.

    Args:
        gradients: for each site the gradient of every parameter of its part.

    Raises:
        RefusalError: there are none, or they are not all of one part (reason ``data``).
    """
    sites = sorted(gradients)
    if not sites:
        raise RefusalError("data", "No site has sent the gradients of its part.")
    total = {name: value.clone() for name, value in gradients[sites[0]].items()}
    for site in sites[1:]:
        if shapes(gradients[site]) != shapes(total):
            raise RefusalError("data", f"The gradients of {site} are not of the part that the other sites have.")
        for name, value in gradients[site].items():
            total[name] += value
    return total

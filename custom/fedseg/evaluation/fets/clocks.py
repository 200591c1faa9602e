"""A clock that does not depend on the machine: how long the rounds of a run take at sites of drawn speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedseg import allowed
from fedseg.errors import ConfigurationError, DataError
from fedseg.evaluation.summary import Summary, number, part, rows, site_names
from fedseg.files.documents import load_json

PROFILE_SEED = 0xFEEDFACE
_SHORTEST = 1.0  # seconds; a draw below counts as this
_ALLOWED = "[mean, standard deviation] in seconds, the mean above 0"


@dataclass(frozen=True)
class Rate:
    """A normal distribution of seconds."""

    mean: float
    std: float

    def draw(self, random: np.random.RandomState) -> float:
        """Seconds of one draw, at least 1."""
        return max(_SHORTEST, float(random.normal(self.mean, self.std)))


@dataclass(frozen=True)
class Compute:
    """How fast a site computes: seconds for one case and epoch of training, and to score one case."""

    training: Rate
    validation: Rate


@dataclass(frozen=True)
class Network:
    """How fast a site's line is: seconds to get, and to send, a whole model."""

    download: Rate
    upload: Rate


@dataclass(frozen=True)
class Profiles:
    """What sites can be like: each gets one of ``compute`` and, drawn apart from it, one of ``network``."""

    name: str
    compute: tuple[Compute, ...]
    network: tuple[Network, ...]


OWN_PROFILES = Profiles(
    "fedseg-1 (round numbers of ours, not those of FeTS)",
    (
        Compute(Rate(2, 0.1), Rate(8, 0.5)),
        Compute(Rate(5, 0.4), Rate(15, 1)),
        Compute(Rate(12, 2), Rate(40, 5)),
    ),
    (
        Network(Rate(15, 3), Rate(25, 5)),
        Network(Rate(60, 10), Rate(90, 15)),
        Network(Rate(180, 40), Rate(300, 60)),
    ),
)


def read_profiles(path: Path) -> Profiles:
    """Profiles from a JSON file.

    ``{"name": ..., "compute": [{"training": [mean, std], "validation": [mean, std]}, ...],
    "network": [{"download": [mean, std], "upload": [mean, std]}, ...]}``, all in seconds.

    Raises:
        DataError: the file cannot be read as JSON.
        ConfigurationError: something in it is missing, unknown or no rate.
    """
    try:
        content = load_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not readable as JSON: {error}.") from None
    content = _object(content, "profiles", ("name", "compute", "network"))
    if not isinstance(content["name"], str) or not content["name"]:
        raise ConfigurationError("profiles.name", content["name"], "a text")
    compute = [Compute(**rates) for rates in _rates(content, "compute", ("training", "validation"))]
    network = [Network(**rates) for rates in _rates(content, "network", ("download", "upload"))]
    return Profiles(content["name"], tuple(compute), tuple(network))


def assign_profiles(profiles: Profiles, sites: Sequence[str]) -> dict[str, tuple[Compute, Network]]:
    """The speed of each site, always the same for the same sites in the same order: the seed is fixed."""
    random = np.random.RandomState(PROFILE_SEED)
    assigned = {}
    for site in sites:
        compute = profiles.compute[random.randint(len(profiles.compute))]
        assigned[site] = (compute, profiles.network[random.randint(len(profiles.network))])
    return assigned


def simulated_seconds(summary: Summary, profiles: Profiles, validation_cases: Mapping[str, int]) -> list[float]:
    """The duration of each round as the harness of the FeTS challenge (Task 1, 2022) counts it, in seconds.

    A round takes as long as its slowest site::

        download + n_val * validation                                                     every site of the job
        + n_train * epochs * training + n_val * validation + upload                       if it trained in the round

    With ``n_train`` the cases of an epoch where the round shortened it.

    Each rate is a draw of the site's own normal distribution, at least 1 s, in this order, sites by name, from numpy's
    legacy generator seeded with the number of the round: the harness draws the same way. As there, a site that a
    selection left out counts as one that gets and scores the model.

    Args:
        summary: of the run; names sites, rounds, training cases and local epochs.
        profiles: what sites can be like.
        validation_cases: of every site.

    Raises:
        DataError: the summary does not say how many epochs or cases there were.
    """
    sites = sorted(site_names(summary))
    epochs = number(part(summary, "training").get("local_epochs"))
    if epochs is None:
        raise DataError("the summary does not say training.local_epochs, which the simulated clock needs.")
    if missing := [site for site in sites if site not in validation_cases]:
        raise DataError(f"nobody knows how many validation cases {', '.join(missing)} has; use the measured clock.")
    assigned = assign_profiles(profiles, sites)
    durations = []
    for index, entry in enumerate(rows(summary, "rounds")):
        random = np.random.RandomState(int(number(entry.get("round", index)) or 0))
        trained = part(entry, "sites")
        times = []
        for site in sites:
            cases = number(part(trained, site).get("num_samples"))
            if site in trained and cases is None:
                raise DataError(f"the summary does not say how many cases {site} trained on in round {index}.")
            each = number(part(trained, site).get("epoch_cases"))
            seen = None if cases is None else min(cases, each or cases) * epochs
            times.append(_site_seconds(*assigned[site], seen, validation_cases[site], random))
        durations.append(max(times))
    return durations


def _site_seconds(
    compute: Compute, network: Network, epoch_cases: float | None, validating: int, random: np.random.RandomState
) -> float:
    """A site's seconds in a round; ``epoch_cases`` is training cases times epochs, None for a site that only scores."""
    time = network.download.draw(random)
    time += validating * compute.validation.draw(random)
    if epoch_cases is not None:
        time += epoch_cases * compute.training.draw(random)
        time += validating * compute.validation.draw(random)
        time += network.upload.draw(random)
    return time


def _object(content: Any, name: str, keys: Sequence[str]) -> dict[str, Any]:
    if not isinstance(content, dict) or set(content) != set(keys):
        found = sorted(content) if isinstance(content, dict) else content
        raise ConfigurationError(name, found, f"an object with exactly {', '.join(keys)}")
    return content


def _rates(content: Mapping[str, Any], kind: str, keys: Sequence[str]) -> list[dict[str, Rate]]:
    entries = content[kind]
    if not isinstance(entries, list) or not entries:
        raise ConfigurationError(f"profiles.{kind}", entries, "a list with at least one object")
    result = []
    for index, entry in enumerate(entries):
        name = f"profiles.{kind}[{index}]"
        result.append({key: _rate(_object(entry, name, keys)[key], f"{name}.{key}") for key in keys})
    return result


def _rate(value: Any, name: str) -> Rate:
    if not (isinstance(value, list) and len(value) == 2 and all(map(allowed.is_number, value))):
        raise ConfigurationError(name, value, _ALLOWED)
    mean, std = map(float, value)
    if mean <= 0 or std < 0:
        raise ConfigurationError(name, value, _ALLOWED)
    return Rate(mean, std)

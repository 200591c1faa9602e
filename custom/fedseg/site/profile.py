"""Where a site keeps its data and its state: its own file, never the job's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedseg import allowed
from fedseg.data.datalist import FILE_NAME, parse_drawn
from fedseg.errors import ConfigurationError, DataError, RefusalError
from fedseg.files.documents import read_json
from fedseg.memory import GIB
from fedseg.site.policy import Budget, SitePolicy, parse_policy

PROFILE_FILE = "fedseg.json"
MOST_GIB = 2**20
POLICY_FILE = "policy.json"
DATA_VARIABLE = "FEDSEG_DATA"
STATE_VARIABLE = "FEDSEG_STATE"
LEDGER_VARIABLE = "FEDSEG_LEDGER"
KIT_FILE = "fed_client.json"
CONTEXT_FILE = "client_context.tenseal"
SERVER_CONTEXT_FILE = "server_context.tenseal"


@dataclass(frozen=True)
class SiteProfile:
    """What a site has.

    Attributes:
        datasets: dataset name -> datalist; the name ``*`` stands for every name.
        state: folder for what must survive the client process.
        cache: folder for prepared cases (``cache: disk``).
        device: torch device, or ``auto``.
        memory: bytes that a job may take; None for what the machine has.
        lacks: dataset name -> channels that none of its cases has; ``*`` as in ``datasets``.
        ledger: folder of the privacy ledger: one for all jobs of the site.
        encryption_context: file with the sites' shared key, which the server never has; it may be missing.
        simulated: whether this is a site of a simulation, whose ledger counts for nothing real.
        policy: the site's limits; None where it states none.
        drawn: dataset name -> names of the regions that were drawn in all its cases, for datalists that do not say it;
            the name ``*`` stands for every name.
    """

    datasets: Mapping[str, Path]
    state: Path
    cache: Path
    device: str = "auto"
    ledger: Path = Path("ledger")
    encryption_context: Path = Path(CONTEXT_FILE)
    simulated: bool = False
    policy: SitePolicy | None = None
    memory: int | None = None
    drawn: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    lacks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def lacking(self, dataset: str) -> tuple[str, ...]:
        """Channels that no case of a data set has."""
        return self.lacks.get(dataset) or self.lacks.get("*", ())

    def datalist(self, dataset: str) -> Path:
        """The datalist of a data set.

        Raises:
            RefusalError: the site has no data set of this name (reason ``data``).
        """
        path = self.datasets.get(dataset) or self.datasets.get("*")
        if path is None:
            raise RefusalError("data", f"This site offers no data set named {dataset!r}.")
        return path

    def drawn_regions(self, dataset: str) -> tuple[str, ...] | None:
        """Regions that were drawn in the cases of a data set whose datalist says nothing of it; None: all."""
        return self.drawn.get(dataset) or self.drawn.get("*")


def read_profile(site: str, config_folder: Path, work_folder: Path) -> SiteProfile:
    """The profile of this site.

    A provisioned site has ``fedseg.json`` in the ``local`` folder of its workspace, and nothing else counts there: a
    site is provisioned if its ``startup`` folder holds FLARE's ``fed_client.json``. In the simulator the environment
    variable ``FEDSEG_DATA`` names a folder with ``<site>/datalist.json``, ``FEDSEG_STATE`` one for the state, and
    ``FEDSEG_LEDGER`` one for privacy ledgers that outlive the run (otherwise they lie with the state). There a site's
    policy may stand in ``<site>/policy.json``, beside its datalist.

    Args:
        site: the site's name.
        config_folder: the site's ``local`` folder.
        work_folder: for the state in the simulator where ``FEDSEG_STATE`` is not set.

    Raises:
        RefusalError: there is neither (reason ``data``); the text names no path, since it leaves the site.
        ConfigurationError: the file is wrong; for the site's own log.
    """
    path = config_folder / PROFILE_FILE
    if path.exists():
        return _parse(read_json(path, "the profile of a site"), config_folder)
    # Only a provisioned site has FLARE's kit; at such a site simulation mode would draw noise that a seed foretells.
    provisioned = (config_folder.parent / "startup" / KIT_FILE).is_file()
    root = None if provisioned else os.environ.get(DATA_VARIABLE)
    if not root:
        raise RefusalError(
            "data",
            f"This site has no data configured: neither {PROFILE_FILE} in its local folder nor {DATA_VARIABLE}.",
        )
    state = Path(os.environ.get(STATE_VARIABLE) or work_folder / "fedseg_state") / site
    ledger = Path(os.environ[LEDGER_VARIABLE]) / site if os.environ.get(LEDGER_VARIABLE) else state / "ledger"
    limits = Path(root) / site / POLICY_FILE
    return SiteProfile(
        {"*": Path(root) / site / FILE_NAME},
        state,
        state / "cache",
        ledger=ledger,
        encryption_context=state / CONTEXT_FILE,
        simulated=True,
        policy=parse_policy(read_json(limits, "the policy of a site"), POLICY_FILE) if limits.exists() else None,
    )


def read_state_folder(name: str, config_folder: Path, work_folder: Path) -> Path:
    """Where a server keeps what must survive its job process: checkpoints.

    A provisioned server names the folder as ``state`` in ``fedseg.json`` of its ``local`` folder; in the simulator it
    is ``FEDSEG_STATE``/<name>. With neither it lies in the job's own folder, which ends with the job.

    Raises:
        ConfigurationError: the file is wrong.
    """
    path = config_folder / PROFILE_FILE
    if path.exists():
        content = read_json(path, "the profile of a server")
        if not isinstance(content, dict):
            raise ConfigurationError(PROFILE_FILE, content, "an object with state, a folder that outlives jobs")
        return _place("state", content.get("state"), config_folder)
    return Path(os.environ.get(STATE_VARIABLE) or work_folder / "fedseg_state") / name


def server_context_file(config_folder: Path, state: Path) -> Path:
    """Where a server has the parameters of encrypted jobs: in its ``startup`` folder; in the simulator with its state.

    Args:
        config_folder: the server's ``local`` folder.
        state: see ``read_state_folder``.
    """
    provisioned = config_folder.parent / "startup" / SERVER_CONTEXT_FILE
    return provisioned if provisioned.exists() else state / SERVER_CONTEXT_FILE


_KEYS = ("cache", "datasets", "device", "drawn", "lacks", "memory_gb", "policy", "state")


def _parse(content: Any, base: Path) -> SiteProfile:
    if not isinstance(content, dict):
        raise ConfigurationError(PROFILE_FILE, content, "an object")
    for key, value in content.items():
        if key not in _KEYS and not key.startswith("_"):
            raise ConfigurationError(f"{PROFILE_FILE}: {key}", value, f"absent: a profile has {list(_KEYS)}")
    datasets = content.get("datasets")
    if not isinstance(datasets, dict):
        raise ConfigurationError(f"{PROFILE_FILE}: datasets", datasets, "an object of names and datalist paths")
    paths = {name: _place(f"datasets.{name}", path, base) for name, path in datasets.items()}
    state = _place("state", content.get("state"), base)
    policy = parse_policy(content["policy"], f"{PROFILE_FILE}: policy") if "policy" in content else None
    if policy is not None:
        _check_budgets(paths, policy)
    memory = allowed.optional(
        allowed.number, f"{PROFILE_FILE}: memory_gb", content.get("memory_gb"), above=0, most=MOST_GIB
    )
    return SiteProfile(
        paths,
        state,
        _place("cache", content["cache"], base) if "cache" in content else state / "cache",
        allowed.text(f"{PROFILE_FILE}: device", content.get("device", "auto")),
        state / "ledger",
        base.parent / "startup" / CONTEXT_FILE,
        policy=policy,
        memory=None if memory is None else int(memory * GIB),
        drawn=_drawn(content.get("drawn", {}), paths),
        lacks=_lacks(content.get("lacks", {}), paths),
    )


def _drawn(value: Any, datasets: Mapping[str, Path]) -> dict[str, tuple[str, ...]]:
    """Regions drawn in data sets of the profile, by name."""
    name, found = f"{PROFILE_FILE}: drawn", {}
    if not isinstance(value, dict) or not set(value) <= set(datasets):
        raise ConfigurationError(
            name, value, f"an object of some of the data sets {sorted(datasets)} and their regions"
        )
    for dataset, regions in value.items():
        try:
            found[dataset] = parse_drawn(regions, f"{name}.{dataset}") or ()
        except DataError:
            raise ConfigurationError(f"{name}.{dataset}", regions, "a list of different names, at least one") from None
    return {dataset: regions for dataset, regions in found.items() if regions}


def _lacks(declaration: Any, datasets: Mapping[str, Path]) -> dict[str, tuple[str, ...]]:
    """Channels by the data set whose cases never have them.

    Raises:
        ConfigurationError: it names a data set that the site does not offer, or something else than channels.
    """
    name = f"{PROFILE_FILE}: lacks"
    if not isinstance(declaration, dict):
        raise ConfigurationError(name, declaration, "an object of names of data sets and lists of channels")
    for dataset, channels in declaration.items():
        allowed.one_of(name, dataset, tuple(datasets))
        if not isinstance(channels, list) or not all(isinstance(each, str) and each for each in channels):
            raise ConfigurationError(f"{name}.{dataset}", channels, 'a list of channels, such as ["t1ce"]')
    return {dataset: tuple(channels) for dataset, channels in declaration.items()}


def _place(key: str, value: Any, base: Path) -> Path:
    """A file or a folder that a profile names; relative paths count from the folder of the profile.

    Raises:
        ConfigurationError: it is no path, or one that means another place for each user who starts FLARE.
    """
    name, fits = f"{PROFILE_FILE}: {key}", "the path of a file or folder of the site, from / on or from this folder on"
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ConfigurationError(name, value, fits)
    if value.startswith("~") or "$" in value:
        raise ConfigurationError(name, value, fits, "Write it out: ~ and $ are not replaced here.")
    return base / value


def _check_budgets(datasets: Mapping[str, Path], policy: SitePolicy) -> None:
    """Refuse two budgets for one datalist: a job chooses the name, and with it would choose the larger one."""
    budgets: dict[Path, Budget] = {}
    for name in sorted({*datasets, *policy.epsilon_budget}):
        path, budget = datasets.get(name) or datasets.get("*"), policy.budget(name)
        if path is None or budget is None:
            continue
        file = (path / FILE_NAME if path.is_dir() else path).resolve()
        if budgets.setdefault(file, budget) != budget:
            raise ConfigurationError(
                f"{PROFILE_FILE}: policy.epsilon_budget.{name}", budget, "that of every other name of the same datalist"
            )

"""Where a site keeps its data and its state: its own file, never the job's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedseg.data.datalist import FILE_NAME
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.training.plan import read_json

PROFILE_FILE = "fedseg.json"
DATA_VARIABLE = "FEDSEG_DATA"
STATE_VARIABLE = "FEDSEG_STATE"


@dataclass(frozen=True)
class SiteProfile:
    """What a site has.

    Attributes:
        datasets: dataset name -> datalist; the name ``*`` stands for every name.
        state: folder for what must survive the client process.
        cache: folder for prepared cases (``cache: disk``).
        device: torch device, or ``auto``.
    """

    datasets: Mapping[str, Path]
    state: Path
    cache: Path
    device: str = "auto"

    def datalist(self, dataset: str) -> Path:
        """The datalist of a data set.

        Raises:
            RefusalError: the site has no data set of this name (reason ``data``).
        """
        path = self.datasets.get(dataset) or self.datasets.get("*")
        if path is None:
            raise RefusalError("data", f"This site offers no data set named {dataset!r}.")
        return path


def read_profile(site: str, config_folder: Path, work_folder: Path) -> SiteProfile:
    """The profile of this site.

    A provisioned site has ``fedseg.json`` in the ``local`` folder of its workspace. In the simulator the environment
    variable ``FEDSEG_DATA`` names a folder with ``<site>/datalist.json`` and ``FEDSEG_STATE`` one for the state.

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
        return _parse(read_json(path), config_folder)
    root = os.environ.get(DATA_VARIABLE)
    if not root:
        raise RefusalError(
            "data",
            f"This site has no data configured: neither {PROFILE_FILE} in its local folder nor {DATA_VARIABLE}.",
        )
    state = Path(os.environ.get(STATE_VARIABLE) or work_folder / "fedseg_state") / site
    return SiteProfile({"*": Path(root) / site / FILE_NAME}, state, state / "cache")


def read_state_folder(name: str, config_folder: Path, work_folder: Path) -> Path:
    """Where a server keeps what must survive its job process: checkpoints.

    A provisioned server names the folder as ``state`` in ``fedseg.json`` of its ``local`` folder; in the simulator it
    is ``FEDSEG_STATE``/<name>. With neither it lies in the job's own folder, which ends with the job.

    Raises:
        ConfigurationError: the file is wrong.
    """
    path = config_folder / PROFILE_FILE
    if path.exists():
        content = read_json(path)
        if not isinstance(content, dict) or not isinstance(content.get("state"), str) or not content["state"]:
            raise ConfigurationError(
                f"{PROFILE_FILE}: state", content, "an object with state, a folder that outlives jobs"
            )
        return config_folder / content["state"]
    return Path(os.environ.get(STATE_VARIABLE) or work_folder / "fedseg_state") / name


def _parse(content: Any, base: Path) -> SiteProfile:
    if not isinstance(content, dict):
        raise ConfigurationError(PROFILE_FILE, content, "an object")
    known = {"datasets", "state", "cache", "device"}
    for key, value in content.items():
        if key not in known and not key.startswith("_"):
            raise ConfigurationError(f"{PROFILE_FILE}: {key}", value, f"absent: a profile has {sorted(known)}")
    datasets = content.get("datasets")
    if not isinstance(datasets, dict) or not all(isinstance(v, str) and v for v in datasets.values()):
        raise ConfigurationError(f"{PROFILE_FILE}: datasets", datasets, "an object of names and datalist paths")
    if not isinstance(content.get("state"), str) or not content["state"]:
        raise ConfigurationError(
            f"{PROFILE_FILE}: state", content.get("state"), "a folder of the site that outlives its jobs"
        )
    state = base / content["state"]
    return SiteProfile(
        {name: base / path for name, path in datasets.items()},
        state,
        base / content.get("cache", state / "cache"),
        str(content.get("device", "auto")),
    )

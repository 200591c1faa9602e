"""Whether ``nvflare deploy prepare`` has made a kit ready for Docker, Kubernetes or Slurm.

Such a kit has another launcher of jobs, lacks the scripts that start FLARE on the machine itself, and its paths of data
and state are those inside of a container.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedseg.deployment.kits.installed_kit import LOCAL, RESOURCES_FILE
from fedseg.errors import FedsegError
from fedseg.files.documents import read_json

# What it deletes of a kit, beside ``local/resources.json``.
TAKEN_AWAY = ("startup/start.sh", "startup/sub_start.sh", "startup/stop_fl.sh")


@dataclass(frozen=True)
class Runtime:
    """What runs the processes of a prepared kit.

    Attributes:
        name: of it.
        start: how FLARE is started from the kit.
        look: the command by which one sees whether it runs.
    """

    name: str
    start: str
    look: str


_RUNTIMES = {
    "docker_launcher": Runtime("Docker", "startup/start_docker.sh", "docker ps"),
    "k8s_launcher": Runtime("Kubernetes", "kubectl (docs/how-to/kubernetes.md)", "kubectl get pods"),
    "slurm_launcher": Runtime("Slurm", "startup/start_slurm.sh", "squeue"),
}


def runtime_of(kit: Path) -> Runtime | None:
    """For what a kit was prepared; None for a kit as it came, whose processes run on the machine itself."""
    try:
        parts = read_json(kit / LOCAL / f"{RESOURCES_FILE}.default", "FLARE's settings of a kit")["components"]
        return next((_RUNTIMES[part["id"]] for part in parts if part.get("id") in _RUNTIMES), None)
    except (FedsegError, KeyError, TypeError, AttributeError):
        # A damaged file says nothing about that; the check of the files finds it.
        return None

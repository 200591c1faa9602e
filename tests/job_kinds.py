"""The job folders of the repository, and which of them train."""

import json
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "jobs"
ALL = sorted(path.parent for path in FOLDER.glob("*/meta.json"))


def trains(job: Path) -> bool:
    """Whether a job has rounds of training."""
    server = json.loads((job / "app" / "config" / "config_fed_server.json").read_text("utf-8"))
    return "num_rounds" in server["workflows"][0]["args"]


TRAINING = [job for job in ALL if trains(job)]

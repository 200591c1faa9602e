"""Jobs of a server that keeps a ciphertext, and what sites said to them; for runs in one process and over TLS alike."""

import json
from pathlib import Path

from fedseg.jobs.job import read_job
from tiny import PLAN

ROOT = Path(__file__).parents[1]


def encrypted_job(workflow, **arguments):
    """An encrypted job with another workflow in the place of its own, and the smallest network."""
    job = read_job(ROOT / "jobs" / "hippocampus_he")
    for key in ("task", "network", "training"):
        job.set(key, PLAN[key])
    job.workflow.clear()
    job.server["workflows"][0] = {"path": f"{workflow.__module__}.{workflow.__name__}", "args": arguments}
    return job


def without_encryption(job):
    """The same job, whose sites would decrypt the model, and answer with plain arrays."""
    job.client["task_result_filters"] = []
    return job


def said_by(record):
    """How many results a site sent of training and of ciphertexts, and what it refused, by its own record of a run."""
    lines = [json.loads(line) for line in record.read_text("utf-8").splitlines()]
    sent = sum(line["kind"] == "sent" and line["task"] != "prepare" for line in lines)
    return sent, {line["text"] for line in lines if line["kind"] == "refused"}

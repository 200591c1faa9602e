"""A small run as server and sites would record it, with a stop in between, and a forger who rewrites whole chains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fedseg.contract.plan import parse_plan
from fedseg.files.digest import model_digest
from fedseg.files.hash_chain import RESERVED, HashChain
from fedseg.files.hash_chain_check import verify
from fedseg.networks.weights import get_weights
from fedseg.provenance.run_log import RunLog
from fedseg.workflows.run.record import RunRecord
from tiny import PLAN

RUN = "run-1"
CASES = {"alpha": 4, "beta": 2}
NO_PRIVACY: dict[str, Any] = {"epsilon": None, "privacy": []}
PLAN_OF_RUN = parse_plan(PLAN)
COUNTS = {site: {"training": count, "validation": 1, "test": 0} for site, count in CASES.items()}


def job(number: int) -> dict[str, Any]:
    """What the record says of the job's submission: the first one, or that which went on."""
    submitter = {"name": "ada@example.org", "organisation": "Example"}
    return {"job": "tiny", "job_id": f"job-{number}", "job_hash": str(number) * 64, "submitter": submitter}


def model_after(number: int) -> dict[str, np.ndarray]:
    """Weights after a round; -1 for the initial ones."""
    weights = get_weights(PLAN_OF_RUN.network.build(1, 2, 0))
    return {name: value + 0.01 * (number + 1) for name, value in weights.items()}


class RecordedRun:
    """Records under ``state/<name>/<run id>``, models and a copy of the server's record under the folder of a run."""

    def __init__(self, out: Path, run_id: str = RUN) -> None:
        self.out, self.run_id = out, run_id
        self.record = RunRecord(out / "models")
        self.record.keep_in(RunLog(self.path("server"), "server", "server", run_id))
        self.sites = {site: RunLog(self.path(site), "site", site, run_id) for site in CASES}

    def path(self, name: str) -> Path:
        """The record of the server or of a site."""
        return self.out / "state" / name / self.run_id / "record.jsonl"

    def start(self, number: int, after: int = -1) -> None:
        """A start of the server; every site accepts."""
        self.record.job = job(number)
        facts = {**job(number), "plan": PLAN_OF_RUN.digest}
        digest = model_digest(model_after(after))
        self.record.append("resumed" if number else "start", **facts, start=f"s{number}", round=after, model=digest)
        self.record.event("prepare", sites=list(CASES), run_id=self.run_id)
        for site in CASES:
            self.sites[site].append("accepted", **facts, cases=COUNTS[site])
            self.record.event("accepted", site=site, cases=COUNTS[site])

    def round(self, number: int, start: int, left_out: str = "") -> None:
        """A round in which both sites train; one may be left out by the server."""
        place = {"round": number, "start": f"s{start}"}
        for site, count in CASES.items():
            received = model_digest(model_after(number - 1))
            self.sites[site].append("received", task="train", **place, model=received, cases=count)
            self.sites[site].append("sent", task="train", **place, content="WEIGHT_DIFF", bytes=9, **NO_PRIVACY)
        sites = {site: {"cases": n, **NO_PRIVACY} for site, n in CASES.items() if site != left_out}
        why = {left_out: "too late"} if left_out else {}
        self.record.append("round", **place, sites=sites, left_out=why, model=model_digest(model_after(number)))

    def finish(self, number: int) -> None:
        """The last model, scored, stored and copied."""
        digest = model_digest(model_after(number))
        self.record.append("final", name="last", round=number, model=digest)
        for site in CASES:
            self.sites[site].append("scored", name="last", model=digest, cases={"validation": 1})
        self.record.model("last.safetensors", PLAN_OF_RUN, model_after(number), number)
        self.record.finished(mean_dice=0.5)
        self.record._log.copy_to(self.out / "report")

    def whole(self) -> RecordedRun:
        """Two rounds, a stop within the third, and two rounds after it."""
        self.start(0)
        self.round(0, 0)
        self.round(1, 0, left_out="beta")
        interrupted = {"round": 2, "start": "s0", "model": model_digest(model_after(1)), "cases": CASES["alpha"]}
        self.sites["alpha"].append("received", task="train", **interrupted)
        self.start(1, after=1)
        self.round(2, 1)
        self.round(3, 1)
        self.finish(3)
        return self


def forge(path: Path, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    """Rewrite a record as somebody could who may write it and its head: every hash fits again.

    Args:
        path: the record.
        change: gets the lines without what the chain adds, and changes the list in place.
    """
    lines = [{k: v for k, v in entry.items() if k not in RESERVED} for entry in verify(path).entries]
    change(lines)
    path.unlink()
    path.with_name(path.name + ".head").unlink()
    for line in lines:
        HashChain(path).append(line)

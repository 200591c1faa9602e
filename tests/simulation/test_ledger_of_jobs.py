"""A row of jobs on the same patients: what the ledger, the reports and the site's commands say of it."""

import json
from pathlib import Path

import pytest

from fedseg.cli import main
from fedseg.data.datalist import read_datalist
from fedseg.errors import ConfigurationError
from fedseg.evaluation.privacy_summary import privacy_summary
from fedseg.jobs.job import read_job
from fedseg.privacy.accounting.ledger import Ledger
from fedseg.simulation.in_process import InProcessFederation
from tiny import PLAN, make_sites

JOBS = Path(__file__).parents[2] / "jobs"
PRIVATE = {"path": "fedseg.filters.dp_sgd.DPSGD", "args": {"clip": 1.0, "noise_multiplier": 8.0}}
# One release of 4 sensitivities of noise, and two, at delta 1e-5: by the formula of Balle and Wang.
ONE, TWO = 0.92634, 1.35647


def job(*filters, **workflow):
    found = read_job(JOBS / "hippocampus_fedavg")
    for key, value in (("task", PLAN["task"]), ("network", PLAN["network"]), ("training.local_epochs", 1)):
        found.set(key, value)
    if filters:
        found.client["task_result_filters"] = [{"tasks": ["train"], "direction": "out", "filters": list(filters)}]
    found.workflow.update({"num_rounds": 1, **workflow})
    return found


def test_plain_private_and_plain_jobs_on_the_same_patients_read_rightly(tmp_path, capsys):
    data = make_sites(tmp_path / "data", {"alpha": (3, 1)})
    datalists = {"alpha": read_datalist(data / "alpha")}

    def run(plan):
        federation = InProcessFederation(plan, datalists, state=tmp_path / "state")
        federation.run()
        federation.local.close()
        assert federation.events == []
        return privacy_summary(federation.rounds)

    def ledger(*arguments):
        capsys.readouterr()
        assert main(["privacy", "ledger", str(tmp_path / "state" / "alpha"), *arguments]) == 0
        return capsys.readouterr().out

    with pytest.raises(ConfigurationError, match="needs the training loss"):
        run(job(PRIVATE, aggregator={"path": "fedseg.aggregators.fedcostwavg.FedCostWAvg"}))
    assert not list((tmp_path / "state").rglob("ledger.jsonl")), "a job that is refused charges nothing"

    assert run(job()) == {}
    left = [e["what"] for e in Ledger(tmp_path / "state" / "alpha" / "ledger", True).history(guaranteed=False)]
    assert left == ["curves", "update"]
    assert "no guaranteed release; 2 release(s) without a guarantee, so no epsilon" in " ".join(ledger().split())

    total = run(job(PRIVATE))["total"]
    assert (total["epsilon"], total["without_guarantee"]) == (pytest.approx(ONE, abs=1e-5), 2)
    said = " ".join(ledger().split())
    assert "of 1 guaranteed release(s); 2 release(s) without a guarantee, which this epsilon does not cover" in said

    assert run(job()) == {}
    spent = json.loads(ledger("--json"))["spent"]["tiny"]
    assert (spent["epsilon"], spent["releases"], spent["without_guarantee"]) == (pytest.approx(ONE, abs=1e-5), 1, 4)
    total = run(job(PRIVATE))["total"]
    assert (total["epsilon"], total["without_guarantee"]) == (pytest.approx(TWO, abs=1e-5), 4)

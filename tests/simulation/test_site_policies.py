"""One federation whose sites allow different things: each rule that the job breaks is named, and the others go on."""

import json
from pathlib import Path

import pytest

from fedseg.jobs.job import read_job
from fedseg.simulation.in_process import simulate_in_process
from fedseg.simulation.results import build_summary
from fedseg.simulation.run_folder import prepare_output
from tiny import PLAN, make_sites

JOB = Path(__file__).parents[2] / "jobs" / "hippocampus_partial"
# The job shares 10 % in the clear, does not clip, and every site has 3 training cases.
POLICIES = {
    "allows": {"max_fraction": 0.1, "min_cases": 3, "jobs": ["hippocampus_*"], "tasks": ["tiny"], "max_bytes": 10**7},
    "fraction": {"max_fraction": 0.05},
    "cases": {"min_cases": 4},
    "encrypted": {"require_encryption": True},
    "budget": {"epsilon_budget": {"*": {"epsilon": 8, "delta": 1e-5}}},
}
RULES = {
    "fraction": "rule max_fraction: the job sends 0.1 of the model's parameters in one update; this site lets out 0.05",
    "cases": "rule min_cases: the job would train on the cases that this site has; this site takes part with 4",
    "encrypted": "rule require_encryption: the job does not encrypt its updates",
    "budget": "rule epsilon_budget: the job computes no epsilon for its updates",
}


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policies")
    make_sites(folder / "data", dict.fromkeys((*POLICIES, "open"), (3, 1)))
    for site, policy in POLICIES.items():
        (folder / "data" / site / "policy.json").write_text(json.dumps(policy))
    job = read_job(JOB)
    for key in ("task", "network", "training"):
        job.set(key, PLAN[key])
    job.set("workflow.num_rounds", 2)
    plan = job.check()
    prepare_output(folder / "run", False)
    result = simulate_in_process(job, folder / "data", folder / "run", [*POLICIES, "open"], lambda event: None)
    job.declaration.setdefault("method", plan.method)
    return build_summary(job, result, folder / "run" / "state")


@pytest.mark.parametrize("site", RULES)
def test_a_site_whose_rule_is_broken_says_which(summary, site):
    (what,) = [e["what"] for e in summary["events"] if e["site"] == site]
    assert "policy: " in what
    assert RULES[site] in what


def test_the_others_go_on_to_the_end(summary):
    assert len(summary["rounds"]) == 2
    for entry in summary["rounds"]:
        assert set(entry["sites"]) == {"allows", "open"}
    assert set(summary["final"]["sites"]) == {"allows", "open"}
    assert [e for e in summary["events"] if e["site"] in ("allows", "open")] == []

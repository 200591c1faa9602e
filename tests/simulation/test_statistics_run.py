"""Federated statistics in one process: what leaves the sites, what stays, and what their ledgers say."""

import json
import re
from pathlib import Path

import pytest

import job_kinds
from fedseg.cli import main
from fedseg.data.datalist import SPLITS, read_datalist
from fedseg.errors import FedsegError, UsageError
from fedseg.jobs.job import read_job
from fedseg.privacy.accounting.ledger import Ledger
from fedseg.simulation.in_process import InProcessFederation, simulate_in_process
from fedseg.simulation.run_folder import prepare_output
from fedseg.statistics.document import parse_document, read_statistics
from fedseg.statistics.measuring import measure
from fedseg.statistics.site_statistics import released
from statistics_of_tiny import TINY
from tiny import PLAN, make_sites

SIZES = {"alpha": (5, 1), "beta": (4, 2), "gamma": (2, 1)}
STATISTICS = job_kinds.FOLDER / "hippocampus_statistics"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_sites(tmp_path_factory.mktemp("data"), SIZES, with_test=True)


def job(noise=None):
    found = read_job(STATISTICS)
    found.set("task", PLAN["task"])
    found.workflow["min_sites"] = 1
    if noise is not None:
        found.client["executors"][0]["executor"]["args"] = {"noise": noise}
    found.check()
    return found


def simulate(data, out, noise=None):
    prepare_output(out, False)
    return simulate_in_process(job(noise), data, out, sorted(SIZES), lambda event: None).results


def counted(data, site):
    datalist = read_datalist(data / site)
    return [case for split in ("training", "validation") for case in datalist.split(split)]


def with_policies(data, folder, policies):
    """The same data, with a policy for some of the sites."""
    for site in SIZES:
        (folder / site).mkdir(parents=True)
        content = json.loads((data / site / "datalist.json").read_text("utf-8"))
        for split in SPLITS:
            for case in content[split]:
                case |= {name: str(data / site / case[name]) for name in ("image", "label")}
        (folder / site / "datalist.json").write_text(json.dumps(content))
    for site, policy in policies.items():
        (folder / site / "policy.json").write_text(json.dumps(policy))
    return folder


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "plain"
    return out, simulate(data, out)


def test_pooled_numbers_are_those_of_all_cases_in_one_place(data, plain):
    found = parse_document(plain[1]["statistics"], "results")
    assert set(found.sites) == {"alpha", "beta"}
    whole = released(measure(TINY, [*counted(data, "alpha"), *counted(data, "beta")]), 1)
    pooled = found.pooled
    assert (pooled.cases, pooled.patients) == (12, 12)
    for name, moments in whole.moments.items():
        assert pooled.moments[name].mean == pytest.approx(moments.mean, rel=1e-6), name
        assert pooled.moments[name].deviation == pytest.approx(moments.deviation, rel=1e-6, abs=1e-9), name
    for name, histogram in whole.histograms.items():
        assert pooled.histograms[name].weight == pytest.approx(histogram.weight)
        exact, joined = histogram.quantile(0.5), pooled.histograms[name].quantile(0.5)
        assert abs(joined.value - exact.value) <= joined.error + exact.error, name


def test_a_site_with_too_few_patients_sends_nothing_and_is_named(plain):
    out, results = plain
    found = parse_document(results["statistics"], "results")
    assert set(found.left_out) == {"gamma"}
    assert re.search(
        r"rule min_patients: .* fewer patients; this site tells those of 5 at least", found.left_out["gamma"]
    )
    record = (out / "state" / "gamma" / results["run_id"] / "record.jsonl").read_text("utf-8")
    assert '"refused"' in record
    assert '"sent"' not in record
    assert not Ledger(out / "state" / "gamma" / "ledger", simulated=True).history(guaranteed=False)


def test_a_site_that_has_answered_as_often_as_it_allows_refuses_with_its_reason(data, tmp_path):
    """The earlier answer was of one case less, under another name; their difference would be that case."""
    folder = with_policies(data, tmp_path / "data", {"alpha": {"statistics": True, "max_statistics": 1}})
    out = tmp_path / "out"
    prepare_output(out, False)
    earlier = [case.patient for case in counted(data, "alpha")][1:]
    ledger = Ledger(out / "state" / "alpha" / "ledger", simulated=True)
    ledger.enter("elsewhere", earlier, "statistics", job="j", run_id="r", round_number=-1)
    results = simulate_in_process(job(), folder, out, sorted(SIZES), lambda event: None).results
    found = parse_document(results["statistics"], "results")
    assert set(found.sites) == {"beta"}
    assert "1 answer(s) with statistics without noise have left" in found.left_out["alpha"]
    assert "allows 1 (max_statistics of its policy)" in found.left_out["alpha"]
    assert len(ledger.history(guaranteed=False)) == 1


def test_what_left_stands_in_the_ledger_as_a_release_without_guarantee(data, plain):
    out, _ = plain
    for site, (training, validation) in list(SIZES.items())[:2]:
        (entry,) = Ledger(out / "state" / site / "ledger", simulated=True).history(guaranteed=False)
        assert (entry["what"], entry["patient_count"]) == ("statistics", training + validation)


def test_no_name_of_a_patient_or_a_file_is_in_what_left(data, plain):
    out, results = plain
    told = json.dumps(results["statistics"])
    for site in SIZES:
        for case in read_datalist(data / site).training:
            assert case.patient not in told
            assert case.images[0].name not in told
    assert str(data) not in told
    assert (out / "workspace" / "server").is_dir()


def test_with_noise_the_ledger_is_charged(data, tmp_path):
    found = parse_document(simulate(data, tmp_path / "out", {"epsilon": 3.0})["statistics"], "results")
    assert set(found.sites) == {"alpha", "beta"}
    for site, part in found.sites.items():
        assert part.noise["epsilon"] == 3.0
        assert not part.moments
        ledger = Ledger(tmp_path / "out" / "state" / site / "ledger", simulated=True)
        (entry,) = ledger.history()
        assert (entry["mechanism"], entry["unit"], entry["round"]) == ("laplace", "patient", -1)
        assert ledger.spent(1e-5).epsilon == pytest.approx(3.0, rel=1e-3)
        assert not ledger.history(guaranteed=False)


BUDGET = {"epsilon_budget": {"*": {"epsilon": 2.0, "delta": 1e-5}}, "statistics": True}


def test_policies_decide_what_leaves(data, tmp_path):
    policies = {"alpha": BUDGET, "beta": {"statistics": False}, "gamma": {"statistics": True, "min_patients": 3}}
    found = parse_document(
        simulate(with_policies(data, tmp_path / "data", policies), tmp_path / "out")["statistics"], ""
    )
    assert set(found.sites) == {"gamma"}
    assert found.sites["gamma"].minimum == 3
    assert "rule epsilon_budget: the job computes no epsilon for its statistics" in found.left_out["alpha"]
    assert "rule statistics" in found.left_out["beta"]


def test_a_budget_is_spent_and_then_nothing_leaves(data, tmp_path):
    place = with_policies(data, tmp_path / "data", {"alpha": BUDGET})
    enough = parse_document(simulate(place, tmp_path / "a", {"epsilon": 1.5})["statistics"], "")
    assert "alpha" in enough.sites
    too_much = parse_document(simulate(place, tmp_path / "b", {"epsilon": 2.5})["statistics"], "")
    assert "alpha" not in too_much.sites
    assert too_much.left_out["alpha"].startswith("privacy")
    ledger = Ledger(tmp_path / "b" / "state" / "alpha" / "ledger", simulated=True)
    assert not ledger.history()


def test_a_run_with_too_few_sites_fails_with_the_reasons(data, tmp_path):
    few = job()
    few.workflow["min_sites"] = 3
    prepare_output(tmp_path / "out", False)
    with pytest.raises(FedsegError, match=r"2 site.* but 3 must.*gamma: policy: .*min_patients"):
        simulate_in_process(few, data, tmp_path / "out", sorted(SIZES), lambda event: None)


def test_it_has_no_rounds(data):
    with pytest.raises(UsageError, match="Only a job that trains has rounds"):
        InProcessFederation(job(), {site: read_datalist(data / site) for site in SIZES})


def test_the_command_runs_a_job_of_statistics_and_shows_it(data, tmp_path, capsys):
    task = json.dumps(PLAN["task"])
    out = tmp_path / "out"
    settings = ["--set", f"task={task}", "--set", "workflow.min_sites=1"]
    where = ["--data", str(data), "--out", str(out), "--in-process"]
    assert main(["simulate", str(STATISTICS), *where, *settings]) == 0
    shown = capsys.readouterr()
    assert "Each pair of sites" in shown.out
    assert "gamma told nothing" in shown.err
    assert set(read_statistics(out / "report").sites) == {"alpha", "beta"}
    page = (out / "report" / "statistics.html").read_text("utf-8")
    assert "alpha and beta" in page
    assert main(["statistics", str(out), "--out", str(tmp_path / "again")]) == 0
    assert read_statistics(tmp_path / "again") == read_statistics(out / "report")
    assert main(["audit-log", "verify", str(out)]) == 0
    assert (
        Path(out / "report" / "statistics.csv").read_text("utf-8").startswith("site,quantity,of,statistic,value,error")
    )

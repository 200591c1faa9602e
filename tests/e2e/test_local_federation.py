"""One real federation: kits, a server and three sites as processes that meet over mutual TLS, their jobs, the end.

Some of the jobs are attacks, of the coordinator and of the server.
"""

import json
import re
from contextlib import ExitStack
from types import SimpleNamespace

import numpy as np
import pytest
from attack_parts import ports, smuggle, steal, submit_raw, turn_hostile, watch
from federation_parts import COORDINATOR, ENCRYPTED_TEMPLATE, POLICY, SITES, fedseg, shakes_hands, tiny_job
from safetensors.numpy import load_file

from canary import attacks, canary
from fedseg.data.datalist import read_datalist
from fedseg.deployment.coordination.fetched_run import fetch_into
from fedseg.deployment.kits.project_file import read_project
from fedseg.deployment.local.federation import PROCESSES_FILE, STATE, running
from fedseg.deployment.local.processes import listens
from fedseg.jobs.job import read_job
from fedseg.privacy.accounting.ledger import Ledger
from fedseg.provenance.run_log import RECORD_FILE
from fedseg.simulation.in_process import InProcessFederation
from fedseg.statistics.document import read_statistics
from fedseg.tasks.objective import SCORED, objective_of
from fedseg.tasks.task import parse_task
from job_kinds import FOLDER
from stolen_ciphertexts import said_by
from tiny import TASK, make_sites

ROUNDS, SECONDS = 2, 240
# gamma takes the first job only.
LIMITS = {"gamma": {"jobs": ["*_fedcostwavg"]}}
# What the sites say before the last job: gamma scores only, beta tells no scores of so few cases.
LATER = {"alpha": {"submit_model": True}, "beta": {"min_scored_cases": 5}, "gamma": {"evaluate_only": True}}
# What they say before the job of statistics: alpha and gamma tell theirs, beta has fewer patients than five.
TELLING = {
    "alpha": {"statistics": True, "min_patients": 4},
    "beta": {"statistics": True},
    "gamma": {"statistics": True, "min_patients": 3},
}


# With this address FLARE finds out its own one: it connects a datagram socket, which sends nothing.
FLARES_OWN = ["10.255.255.255", 1]
KINDS = ("client asks", "server asks", "meta asks", "meta reads", "client reads", "environment", "kit")
KINDS += ("hocon environment", "more configuration")


# What a site says of a model: means, counts, and intervals that it has made of its own cases.
KIND = objective_of(parse_task(TASK))
AGGREGATES = {"split", "cases", "loss", "defined", SCORED, "intervals", *KIND.counts}
AGGREGATES |= {score.name for score in KIND.scores}


def change_policy(kit, rules):
    """Write a site's policy anew while the site runs."""
    path = kit / "local" / "fedseg.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), "policy": rules}), "utf-8")


def hostile_job(folder, trace):
    """A job that names a function of fedseg as if it were a component: built, it would write phantoms."""
    job = tiny_job("hippocampus_fedpidavg", folder, 1)
    arguments = ["phantom", "brats", "--sites", "1", "--cases", "3", "--out", str(trace)]
    job.client.setdefault("components", []).append(
        {"id": "x", "path": "fedseg.cli.main", "args": {"arguments": arguments}}
    )
    return job


def statistics_job(folder):
    """The job of statistics, of the tiny task."""
    job = read_job(FOLDER / "hippocampus_statistics")
    job.set("task", TASK)
    job.check()
    return read_job(job.write(folder / job.name))


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Everything that happened in one federation, written down while it ran."""
    folder = tmp_path_factory.mktemp("federation")
    data, out = make_sites(folder / "data", SITES), folder / "out"
    out.mkdir()
    (folder / "jobs").mkdir()
    first = tiny_job("hippocampus_fedcostwavg", folder / "jobs", ROUNDS)
    seen = SimpleNamespace(folder=folder, data=data, out=out, first=first, run=folder / "run", trace=folder / "trace")
    with ExitStack() as stack:
        address, seen.asked = stack.enter_context(canary())
        seen.sockets = watch(stack.enter_context(pytest.MonkeyPatch.context()), folder)
        federation = running(
            *(read_project(ENCRYPTED_TEMPLATE), POLICY, data, list(SITES), out, LIMITS),
            before_start=lambda local: turn_hostile(local.federation.of_role("server")[0].folder),
        )
        local = stack.enter_context(federation)
        kits = {kit.name: kit.folder for kit in local.federation.kits}
        kit = kits[COORDINATOR]
        seen.kits, seen.port = kits, local.port
        try:
            with local.coordinator(SECONDS) as coordinator:
                seen.submit = fedseg("submit", first.folder, "--kit", kit, "--wait")
                seen.job_id = seen.submit.out.strip()
                second = coordinator.submit(tiny_job("hippocampus_fedavg", folder / "jobs", 1))
                third = coordinator.submit(hostile_job(folder / "jobs", seen.trace))
                seen.running = fedseg("fetch", second, "--kit", kit, "--out", folder / "early")
                seen.listening, seen.remote = ports(local.processes())
                seen.fetch = fedseg("fetch", seen.job_id, "--kit", kit, "--out", seen.run)
                seen.with_certificate = shakes_hands(local.port, kits["alpha"])
                seen.without_certificate = shakes_hands(local.port, kits["alpha"], certificate=False)
                auditor = kits["auditor@example.org"]
                seen.auditor_jobs = fedseg("jobs", "--kit", auditor)
                seen.auditor_submit = fedseg("submit", first.folder, "--kit", auditor)
                seen.auditor_fetch = fedseg("fetch", seen.job_id, "--kit", auditor, "--out", folder / "auditor")
                seen.unknown = fedseg("fetch", "no-such-job", "--kit", kit, "--out", folder / "unknown")
                seen.attacks = {
                    kind: (submit_raw(coordinator, job), fedseg("submit", job, "--kit", kit))
                    for kind, job in attacks(first.folder, address, data / "alpha" / "datalist.json").items()
                }
                smuggled = smuggle(first.folder, kit, address, folder / "smuggled.zip")
                seen.smuggled = submit_raw(coordinator, smuggled).removeprefix("accepted as ")
                seen.status = {job_id: coordinator.wait(job_id, timeout=SECONDS) for job_id in (second, third)}
                seen.status[seen.smuggled] = coordinator.wait(seen.smuggled, timeout=SECONDS)
                seen.smuggled_fetch = fedseg("fetch", seen.smuggled, "--kit", kit, "--out", folder / "fourth")
                seen.second, seen.third = second, third
                seen.stolen = steal(coordinator, folder / "jobs", SECONDS)
                (folder / "second").mkdir()
                seen.second_run, seen.second_failure = fetch_into(coordinator, second, folder / "second")
                seen.third_fetch = fedseg("fetch", third, "--kit", kit, "--out", folder / "third")
                seen.jobs = fedseg("jobs", "--kit", kit)
                for site, rules in LATER.items():
                    change_policy(kits[site], rules)
                across = tiny_job("hippocampus_cross_site_evaluation", folder / "jobs", 1, leave_one_out=False)
                seen.across = coordinator.submit(across)
                seen.status[seen.across] = coordinator.wait(seen.across, timeout=SECONDS)
                seen.across_fetch = fedseg("fetch", seen.across, "--kit", kit, "--out", folder / "across")
                for site, rules in TELLING.items():
                    change_policy(kits[site], rules)
                seen.counting = coordinator.submit(statistics_job(folder / "jobs"))
                seen.status[seen.counting] = coordinator.wait(seen.counting, timeout=SECONDS)
                seen.counting_fetch = fedseg("fetch", seen.counting, "--kit", kit, "--out", folder / "counting")
        except Exception as error:
            pytest.fail(f"{type(error).__name__}: {error}\n{local.tails()}")
        seen.alive = [process.pid for process in local.processes()]
    seen.left, seen.listens = [process.pid for process in local.processes()], listens(local.port)
    seen.after = fedseg("jobs", "--kit", kit)
    return seen


@pytest.fixture(scope="module")
def summary(seen):
    assert seen.fetch.code == 0, seen.fetch.err
    return json.loads((seen.run / "report" / "summary.json").read_text("utf-8"))


def test_the_job_ends_well_with_all_three_sites(seen, summary):
    assert seen.submit.code == 0, seen.submit.err
    assert "connected sites: alpha, beta, gamma" in seen.submit.err
    assert re.search(rf"running: round [1-{ROUNDS}] of {ROUNDS}\b", seen.submit.err), seen.submit.err
    assert "finished:completed" in seen.submit.err
    assert [sorted(entry["sites"]) for entry in summary["rounds"]] == [["alpha", "beta", "gamma"]] * ROUNDS
    assert sorted(summary["final"]["sites"]) == ["alpha", "beta", "gamma"]
    assert summary["events"] == []


def test_the_fetched_run_has_the_form_of_a_run(seen, summary):
    assert summary["simulated"] is False
    assert summary["cost"]["peak_rss_mb"] == {}
    assert summary["federation"]["job_id"] == seen.job_id
    assert summary["federation"]["submitter"] == "coordinator@example.org"
    assert (seen.run / summary["final"]["model"]).is_file()
    assert "hippocampus_fedcostwavg" in (seen.run / "report" / "report.html").read_text("utf-8")


def test_the_model_is_the_one_of_a_simulation_with_the_same_seed(seen, summary):
    simulated = InProcessFederation(seen.first, {site: read_datalist(seen.data / site) for site in SITES})
    simulated.run()
    federated = load_file(seen.run / "models" / "last.safetensors")
    for name, value in simulated.model.weights.items():
        np.testing.assert_allclose(federated[name], value, rtol=0, atol=1e-6, err_msg=name)
    for mine, theirs in zip(simulated.rounds, summary["rounds"], strict=True):
        assert theirs["weights"] == pytest.approx(mine["weights"])


def test_each_process_has_a_certificate_of_its_own(seen):
    entries = json.loads((seen.out / PROCESSES_FILE).read_text("utf-8"))
    assert [(e["role"], e["name"], e["subject"]) for e in entries] == [
        ("server", "localhost", "O=coordination,CN=localhost"),
        ("client", "alpha", "O=alpha,CN=alpha"),
        ("client", "beta", "O=beta,CN=beta"),
        ("client", "gamma", "O=gamma,CN=gamma"),
    ]
    assert {e["pid"] for e in entries} <= set(seen.alive)


def test_the_server_talks_with_nobody_without_a_certificate(seen):
    assert seen.with_certificate is True
    assert seen.without_certificate is False


def test_a_site_refuses_a_job_that_its_policy_does_not_name_and_the_others_go_on(seen):
    assert seen.status[seen.second] == "FINISHED:COMPLETED", seen.second_failure
    (event,) = seen.second_run["events"]
    assert event["site"] == "gamma"
    assert "rule jobs: the job is called 'hippocampus_fedavg'; this site takes ['*_fedcostwavg']" in event["what"]
    assert [sorted(entry["sites"]) for entry in seen.second_run["rounds"]] == [["alpha", "beta"]]


def test_a_function_is_no_component(seen):
    # Each site refuses for itself; the server, whose half of the job is in order, is left with none.
    assert seen.status[seen.third] == "FINISHED:EXECUTION_EXCEPTION"
    assert "0 site(s) accepted the job, but 1 must." in seen.third_fetch.err
    assert not seen.trace.exists(), "the function was called"
    log = (seen.kits["alpha"] / seen.third / "log.txt").read_text("utf-8")
    assert "Component 'fedseg.cli.main' at config path 'components.#1' is not in allow_list" in log
    assert seen.third_fetch.code == 1
    assert "ended without a finished model" in seen.third_fetch.err
    assert (seen.folder / "third" / "workspace" / "workspace" / "log.txt").is_file(), "its log is fetched all the same"


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_that_reads_asks_or_tells_is_refused_at_submission(seen, kind):
    by_server, by_command = seen.attacks[kind]
    assert not by_server.startswith("accepted"), "FLARE's own session took it"
    assert re.search(r"is not known: a job holds|without \{, \}, \$ and @|written in JSON", by_server), by_server
    assert by_command.code in (1, 2)
    assert re.search(r"is not known|without \{|is not a job of fedseg", by_command.err)


def test_a_site_refuses_what_a_hostile_server_sends_in_the_place_of_a_job(seen):
    assert seen.status[seen.smuggled] == "FINISHED:FAILED_TO_RUN"
    for site in SITES:
        assert f"{site}: The job's file config/config_fed_client.conf is not known" in seen.smuggled_fetch.err
        assert not (seen.kits[site] / seen.smuggled).exists(), "nothing of it was unpacked"


@pytest.mark.parametrize(
    ("job", "sent", "why"),
    [
        # Of the honest round a report and a ciphertext; in the next one the ciphertext of one site came as the sum.
        ("keeping", 2, "not what the sites of that round encrypted"),
        ("reading", 0, "lets updates out that are not encrypted"),
    ],
)
def test_no_site_reads_another_sites_ciphertext_to_the_server(seen, job, sent, why):
    assert (seen.folder / "jobs" / "stolen.model").is_file(), "the server has kept it"
    job_id, status = seen.stolen[job]
    assert status == "FINISHED:EXECUTION_EXCEPTION"
    # gamma takes neither job; each run has the id of its first job.
    for site in ("alpha", "beta"):
        count, texts = said_by(seen.out / STATE / site / job_id / RECORD_FILE)
        assert (count, len(texts)) == (sent, 1)
        assert why in texts.pop()


def test_no_job_causes_a_connection_but_flares(seen):
    assert seen.asked == [], "the address that hostile jobs name"
    lines = [json.loads(line) for line in seen.sockets.read_text("utf-8").splitlines()]
    programs = {next((w for w in line["program"] if w.startswith("nvflare.private")), "") for line in lines}
    assert {f"nvflare.private.fed.app.{p}" for p in ("server.runner_process", "client.worker_process")} <= programs
    local = {"127.0.0.1", "::1", "localhost"}
    for line in lines:
        host, port = line["address"][:2]
        if [host, port] == FLARES_OWN:
            continue
        assert host in local, line
        assert not port or int(port) in seen.listening, line
    assert seen.remote
    assert {host for host, *_ in seen.remote} <= local


def test_no_secret_of_a_site_is_in_what_the_server_keeps(seen):
    names = [path.name.split(".")[0] for path in (seen.data / "alpha").rglob("*.nii.gz")]
    assert names
    kept = [path for folder in (seen.kits["localhost"], seen.out / "server") for path in folder.rglob("*")]
    for path in (path for path in kept if path.is_file()):
        content = path.read_bytes()
        assert b"MARKER-OF-THE-ENVIRONMENT" not in content, path
        assert not any(name.encode() in content for name in names), path


def test_who_has_no_right_and_what_does_not_exist_is_said(seen):
    for refused, what in ((seen.auditor_submit, "submit"), (seen.auditor_fetch, "fetch")):
        assert refused.code == 1
        assert f"auditor@example.org has no right to {what}" in refused.err
    assert seen.unknown.code == 1
    assert "the server knows no such job" in seen.unknown.err
    assert seen.running.code == 1
    assert "still running" in seen.running.err
    for name in ("early", "auditor", "unknown"):
        assert not (seen.folder / name).exists(), "a failed fetch leaves nothing"


def test_jobs_are_listed_for_those_who_may_see_them(seen):
    assert seen.auditor_jobs.code == seen.jobs.code == 0
    assert seen.job_id in seen.jobs.out
    assert seen.third in seen.jobs.out


def test_a_kit_of_a_site_is_no_kit_of_a_person(seen, tmp_path):
    refused = fedseg("jobs", "--kit", seen.kits["alpha"])
    assert refused.code == 2
    assert "is no kit of a person" in refused.err


@pytest.fixture(scope="module")
def wire(seen):
    """What the sites of the cross-site evaluation sent to the server: site, task and decoded result."""
    lines = [json.loads(line) for line in (seen.folder / "wire.jsonl").read_text("utf-8").splitlines()]
    payloads = [(line["site"], line["payload"]) for line in lines if line["topic"] == "submit_update"]
    sent = [(site, payload) for site, payload in payloads if isinstance(payload, dict)]
    of_job = [(s, p) for s, p in sent if p["__headers__"]["__peer_ctx__"]["__run_num__"] == seen.across]
    assert of_job
    return [(site, payload["__headers__"]["__task_name__"], payload) for site, payload in of_job]


def test_a_site_that_scores_only_fills_its_column_and_says_why_it_does_not_train(seen):
    assert seen.status[seen.across] == "FINISHED:COMPLETED", seen.across_fetch.err
    summary = json.loads((seen.folder / "across" / "report" / "summary.json").read_text("utf-8"))
    found = summary["cross_site_evaluation"]
    assert (found["sites"], found["evaluators"]) == (["alpha", "beta"], ["gamma"])
    cells = found["cells"]
    assert {name: cells[name]["gamma"]["cases"] for name in ("last", "best", "local-alpha")} == {
        "last": 1, "best": 1, "local-alpha": 1,
    }  # fmt: skip
    assert {name: cells[name]["beta"] for name in ("last", "local-alpha")} == {
        name: {"withheld": "fewer than 5 cases"} for name in ("last", "local-alpha")
    }
    told = {event["site"]: event["what"] for event in summary["events"]}
    assert told["gamma"] == "scores models only, and does not train: its policy says evaluate_only"
    assert "rule submit_model: the job asks for this site's own model" in told["beta"]
    assert [sorted(entry["sites"]) for entry in summary["rounds"]] == [["alpha", "beta"]]
    page = (seen.folder / "across" / "report" / "report.html").read_text("utf-8")
    assert "beta: withheld: fewer than 5 cases." in page


def test_nothing_but_permitted_aggregates_leaves_such_a_site(seen, wire):
    own = [(task, payload) for site, task, payload in wire if site == "gamma"]
    assert [task for task, _ in own] == ["prepare", *["validate"] * (len(own) - 1)]
    assert own[0][1]["DXO"]["data"] == {"evaluates": True}
    for _, payload in own[1:]:
        assert set(payload) == {"__headers__", "DXO"}
        assert payload["DXO"]["kind"] == "METRICS"
        assert payload["DXO"]["meta"] == {}
        (part,) = payload["DXO"]["data"].values()
        assert set(part) <= AGGREGATES
        assert not re.search(r"array|object|nii|gamma-|/", json.dumps(part))
    state = seen.out / "state" / "gamma" / seen.across
    kinds = [json.loads(line)["kind"] for line in (state / "record.jsonl").read_text("utf-8").splitlines()]
    assert set(kinds) == {"opened", "accepted", "sent", "scored"}


def test_a_site_below_its_minimum_tells_neither_scores_nor_counts_of_them(wire):
    own = [payload["DXO"]["data"] for site, task, payload in wire if (site, task) == ("beta", "validate")]
    assert own
    for data in own:
        for part in data.values():
            assert part == {"split": "validation", "withheld": True, "fewer_than": 5, "of": "cases"}


def test_nothing_is_left_running(seen):
    assert len(seen.alive) >= 1 + len(SITES)
    assert seen.left == []
    assert seen.listens is False
    assert seen.after.code == 1
    assert "Is the server running" in seen.after.err


def test_a_job_of_statistics_brings_sums_of_those_sites_that_tell_them(seen):
    assert seen.counting_fetch.code == 0, seen.counting_fetch.err
    found = read_statistics(seen.folder / "counting")
    assert {site: (part.cases, part.minimum) for site, part in found.sites.items()} == {
        "alpha": (5, 4),
        "gamma": (3, 3),
    }
    assert "rule min_patients" in found.left_out["beta"]
    assert found.pooled.cases == 8
    page = (seen.folder / "counting" / "report" / "statistics.html").read_text("utf-8")
    assert "beta" in page


def test_what_the_server_keeps_of_statistics_names_no_patient_and_no_file(seen):
    kept = [path for path in (seen.folder / "counting" / "workspace").rglob("*") if path.is_file()]
    names = {case.patient for site in SITES for case in read_datalist(seen.data / site).training}
    for path in kept:
        content = path.read_bytes()
        assert not any(name.encode() in content for name in names), path
        assert str(seen.data).encode() not in content, path


def test_statistics_without_noise_stand_in_the_ledgers_of_the_sites_that_told_them(seen):
    entries = {site: Ledger(seen.out / STATE / site / "ledger").history(guaranteed=False) for site in SITES}
    told = {site: [e["what"] for e in found if e["job"] == "hippocampus_statistics"] for site, found in entries.items()}
    assert told == {"alpha": ["statistics"], "beta": [], "gamma": ["statistics"]}

"""What a federation of real processes refuses, and what it says: one federation in which every site has its fault.

alpha would send NaN in one round, but has its guard; beta sends NaN in another round, and has none; gamma's disk is
full for a while; old runs another version of fedseg; lost has no datalist; strict does not allow a class of the job. A
stranger with a kit of another federation knocks all the while. Two further jobs are refused as a whole: one that was
made for another version, and one that brings code.
"""

import json
import os
import re
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from federation_parts import COORDINATOR, ENCRYPTED_TEMPLATE, POLICY, TEMPLATE, fedseg, shakes_hands, tiny_job

import fedseg as package
from fedseg.deployment.kits.installed_kit import RESOURCES_FILE
from fedseg.deployment.kits.project_file import HOST, on_this_machine, read_project
from fedseg.deployment.kits.provisioning import provision
from fedseg.deployment.local.federation import STATE, running
from fedseg.deployment.local.processes import free_port, launch
from fedseg.deployment.operation.kit_processes import living_processes
from fedseg.jobs.job import read_job
from fedseg.jobs.packaging import package_job
from fedseg.processes import end_processes
from fedseg.site.profile import PROFILE_FILE
from fedseg.site.state import SiteState
from fedseg.version import __version__
from tiny import make_sites

ROUNDS, SECONDS, TIMEOUT, START_SECONDS = 8, 300, 60, 90
NAN_ROUNDS = {"alpha": 0, "beta": 1}
UNREADABLE_ROUND, ONCE_UNREADABLE_ROUND = 3, 5
OTHER_VERSION = "0.0.1"
DISK_BYTES, FILE_BYTES = 2**20, 2**16
SITES = ("alpha", "beta", "gamma", "lost", "old", "strict")
BROKEN, UNREADABLE = "refusal_parts.NotANumber", "refusal_parts.Unreadable"
HERE = Path(__file__).parent


# ------------------------------------------------------------------- a disk that is full


class SmallDisk:
    """A file system of its own for one folder where this user may mount one; else a limit on the size of files.

    Both are the kernel's: writing fails with ENOSPC, or with EFBIG. A site's state is above the limit, a log below.
    """

    def __init__(self, folder):
        folder.mkdir(parents=True)
        self.folder, self.processes = folder, []
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
        self.mounted = shutil.which("mount") is not None and subprocess.run(command, check=False).returncode == 0

    def fill(self, processes):
        """From now on nothing more can be written, by these processes if they cannot have a disk of their own."""
        if self.mounted:
            with (self.folder / "filler").open("wb", buffering=0) as file:
                try:
                    while file.write(bytes(4096)):
                        pass
                except OSError:
                    return
        self.processes = [(process, process.rlimit(psutil.RLIMIT_FSIZE)) for process in processes]
        for process, (_, hard) in self.processes:
            process.rlimit(psutil.RLIMIT_FSIZE, (FILE_BYTES, hard))

    def free(self):
        """There is room again."""
        (self.folder / "filler").unlink(missing_ok=True)
        for process, limits in self.processes:
            process.rlimit(psutil.RLIMIT_FSIZE, limits)

    def remove(self):
        if self.mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


# -------------------------------------------------------------------- the faulty federation


def equip(local, folder):
    """Let the sites load the test's component, and place the faults that lie in files."""
    kits = {kit.name: kit.folder for kit in local.federation.kits}
    for name in SITES:
        resources = kits[name] / "local" / RESOURCES_FILE
        content = json.loads(resources.read_text("utf-8"))
        content["class_allow_list"] += [BROKEN, UNREADABLE] * (name != "strict")
        resources.write_text(json.dumps(content))
        # A site with a policy takes components of fedseg only.
        profile = kits[name] / "local" / PROFILE_FILE
        content = json.loads(profile.read_text("utf-8"))
        del content["policy"]
        profile.write_text(json.dumps(content))
    privacy = kits["beta"] / "local" / "privacy.json"
    content = json.loads(privacy.read_text("utf-8"))
    privacy.write_text(json.dumps({**content, "components": []}))
    (folder / "data" / "lost" / "datalist.json").unlink()
    other = Path(shutil.copytree(Path(package.__file__).parent, folder / "other" / "fedseg"))
    version = (other / "version.py").read_text("utf-8")
    assert __version__ in version
    (other / "version.py").write_text(version.replace(__version__, OTHER_VERSION))
    for name in SITES:
        # What comes first is imported: the site ``old`` has a package of another version.
        places = [str(folder / "other")] * (name == "old") + [str(HERE), os.environ.get("PYTHONPATH", "")]
        local.wrappers[name] = ["env", f"PYTHONPATH={os.pathsep.join(filter(None, places))}"]


def faulty_job(folder):
    job = tiny_job("hippocampus_fedavg", folder, ROUNDS)
    for key, value in (("round_timeout", TIMEOUT), ("prepare_timeout", TIMEOUT), ("keep_checkpoints", 0)):
        job.set(f"workflow.{key}", value)
    broken = {"path": BROKEN, "args": {"sites": NAN_ROUNDS}}
    times = {str(UNREADABLE_ROUND): 99, str(ONCE_UNREADABLE_ROUND): 1}
    unreadable = {"path": UNREADABLE, "args": {"sites": {"beta": times}}}
    job.client["task_result_filters"] = [{"tasks": ["train"], "filters": [broken, unreadable]}]
    return job


def stale_job(folder):
    """A job that was made for another version; for alpha only, to save time."""
    job = tiny_job("hippocampus_fedpidavg", folder, 1)
    job.declaration["fedseg_version"] = OTHER_VERSION
    written = job.write(folder / "stale")
    meta = json.loads((written / "meta.json").read_text("utf-8"))
    (written / "meta.json").write_text(json.dumps({**meta, "deploy_map": {"app": ["server", "alpha"]}}))
    return read_job(written)


def job_with_code(folder, trace):
    """A packed job whose code, once loaded, leaves a trace."""
    packed = package_job(tiny_job("hippocampus_fedcostwavg", folder, 1), folder / "packed")
    (packed / "app" / "custom" / "intruder.py").write_text(
        f"import pathlib\npathlib.Path({str(trace)!r}).touch()\nclass Intruder: ...\n"
    )
    job = read_job(packed)
    job.client.setdefault("components", []).append({"id": "x", "path": "intruder.Intruder", "args": {}})
    return job


def until(condition, what, seconds=SECONDS / 2):
    """Wait for something that must come about."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"{what} did not come about within {seconds} s"
        time.sleep(0.05)
    return found


def happened(progress, **what):
    """Whether the server has written an event with these values."""
    lines = progress.read_text("utf-8").splitlines() if progress.is_file() else []
    return any(what.items() <= entry.items() for entry in map(json.loads, lines))


def fill_and_empty_the_disk(local, disk, job_id, progress):
    """gamma's disk is full from its second finished round on, until the server has noted it. Gives its states then."""
    until(lambda: happened(progress, event="update", site="gamma", round=1), "gamma's second round")
    disk.fill([p for p in living_processes([local.participant("gamma").kit.folder]) if job_id in p.cmdline()])
    until(lambda: happened(progress, event="site", site="gamma"), "a note of gamma's disk")
    kept = {path.name: path.read_bytes() for path in disk.folder.glob("*/round-*.pt")}
    disk.free()
    return kept


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Everything that happened, written down while it ran."""
    folder = tmp_path_factory.mktemp("refusals")
    make_sites(folder / "data", dict.fromkeys(SITES, (2, 1)))
    out, jobs = folder / "out", folder / "jobs"
    for each in (out, jobs, folder / "stranger"):
        each.mkdir()
    seen = SimpleNamespace(folder=folder, out=out, trace=folder / "trace", run=folder / "run")
    disk, strangers = SmallDisk(out / STATE / "gamma"), []
    try:
        with running(
            read_project(TEMPLATE), POLICY, folder / "data", SITES, out, before_start=lambda local: equip(local, folder)
        ) as local:
            kits = {kit.name: kit.folder for kit in local.federation.kits}
            kit = kits[COORDINATOR]
            other = on_this_machine(read_project(TEMPLATE), ["alpha"], local.port)
            foreign = next(
                k for k in provision(other, POLICY, folder / "foreign", with_wheel=False).kits if k.name == "alpha"
            )
            try:
                with local.coordinator(SECONDS) as coordinator:
                    strangers.append(launch(foreign, folder / "stranger"))
                    job_id = coordinator.submit(faulty_job(jobs))
                    progress = kits[HOST] / job_id / "fedseg" / "progress.jsonl"
                    seen.kept = fill_and_empty_the_disk(local, disk, job_id, progress)
                    seen.status = coordinator.wait(job_id, timeout=SECONDS)
                    seen.sites = coordinator.sites()
                    seen.fetch = fedseg("fetch", job_id, "--kit", kit, "--out", seen.run)
                    stale = stale_job(jobs)
                    seen.stale = fedseg("submit", stale.folder, "--kit", kit, "--wait")
                    seen.stale_fetch = fedseg("fetch", seen.stale.out.strip(), "--kit", kit, "--out", folder / "stale")
                    with_code = coordinator.submit(job_with_code(jobs, seen.trace))
                    seen.code_status = coordinator.wait(with_code, timeout=SECONDS)
                    seen.code_fetch = fedseg("fetch", with_code, "--kit", kit, "--out", folder / "code")
                    admin = kits["admin@hospital-a.example.org"]
                    seen.admin = fedseg("submit", stale.folder, "--kit", admin)
                    seen.jobs = coordinator.jobs()
                seen.accepts = {
                    name: shakes_hands(local.port, shown, root=kits["alpha"])
                    for name, shown in (("own", kits["alpha"]), ("foreign", foreign.folder))
                }
                seen.stranger_log = strangers[0].log.read_text("utf-8", "replace")
                seen.alpha_log = local.participant("alpha").log.read_text("utf-8")
                seen.strict_log = (kits["strict"] / job_id / "log.txt").read_text("utf-8")
            except Exception as error:
                pytest.fail(f"{type(error).__name__}: {error}\n{local.tails()}")
            finally:
                end_processes(living_processes([foreign.folder], [each.process.pid for each in strangers]))
    finally:
        # Read first: with its own file system the state goes away.
        seen.states = {path.name: path.read_bytes() for path in (out / STATE / "gamma").glob("*/round-*.pt")}
        disk.remove()
    return seen


@pytest.fixture(scope="module")
def summary(seen):
    assert seen.fetch.code == 0, seen.fetch.err
    return json.loads((seen.run / "report" / "summary.json").read_text("utf-8"))


def notes(summary, site):
    return [(event["round"], event["what"]) for event in summary["events"] if event["site"] == site]


def rounds_of(summary, site):
    return [entry["round"] for entry in summary["rounds"] if site in entry["sites"]]


def test_the_job_ends_well_and_no_finished_round_is_lost(seen, summary):
    assert seen.status == "FINISHED:COMPLETED"
    assert [entry["round"] for entry in summary["rounds"]] == list(range(ROUNDS))
    assert sorted(summary["final"]["sites"]) == ["alpha", "beta", "gamma"]
    assert {event["site"] for event in summary["events"]} == set(SITES)


def test_nobody_is_waited_for(summary):
    """Every fault is answered at once: no round comes near to the time that it may take."""
    assert all(entry["seconds"] < TIMEOUT / 2 for entry in summary["rounds"])


def test_a_site_with_its_guard_keeps_nan_at_home(summary):
    ((number, what),) = notes(summary, "alpha")
    assert number == NAN_ROUNDS["alpha"]
    assert re.fullmatch(r"privacy: .* of the update holds values that are not finite\.", what)
    assert rounds_of(summary, "alpha") == [n for n in range(ROUNDS) if n != number]


def test_the_server_takes_no_nan_from_a_site_without_a_guard(summary):
    number, what = notes(summary, "beta")[0]
    assert number == NAN_ROUNDS["beta"]
    assert re.fullmatch(r"update left out: .* not finite\.", what)
    assert number not in rounds_of(summary, "beta")


def test_an_update_that_cannot_be_read_costs_its_site_this_round_and_nobody_anything_else(seen, summary):
    """The server's process stays; an update that can be read at the second attempt costs nothing."""
    number, what = notes(summary, "beta")[1]
    assert number == UNREADABLE_ROUND
    assert what == "failed: The answer to the task train could not be read in 3 attempts (RuntimeError)."
    assert [rounds_of(summary, "beta")[-4:], len(notes(summary, "beta"))] == [[4, 5, 6, 7], 2]
    assert rounds_of(summary, "alpha")[-7:] == list(range(1, ROUNDS))
    log = "\n".join(path.read_text("utf-8") for path in (seen.run / "workspace").rglob("log.txt"))
    assert [log.count(f"beta: attempt {attempt} to read the answer to train") for attempt in (1, 2, 3)] == [2, 1, 1]


def test_a_site_with_another_version_says_which(summary):
    text = f"version: The job was made for fedseg {__version__}, but this site runs fedseg {OTHER_VERSION}."
    assert notes(summary, "old") == [(-1, text)]


def test_a_site_that_may_not_build_the_job_leaves_it_and_the_others_go_on(seen, summary):
    assert f"Component '{BROKEN}'" in seen.strict_log
    assert "is not in allow_list" in seen.strict_log
    ((number, what),) = notes(summary, "strict")
    assert number == -1
    assert what.startswith("did not answer the task prepare")
    assert rounds_of(summary, "strict") == []


def test_a_site_without_its_datalist_says_so(summary):
    assert notes(summary, "lost") == [(-1, "data: The site's datalist is missing or cannot be read.")]


def test_a_full_disk_is_named_and_the_site_comes_back(summary):
    found = notes(summary, "gamma")
    missed = [number for number, _ in found]
    assert min(missed) >= 2
    assert all(re.match(r"state: .*(disk is full|No space left|File too large)", what) for _, what in found)
    assert rounds_of(summary, "gamma") == [n for n in range(ROUNDS) if n not in missed]
    assert ROUNDS - 1 not in missed, "with room on its disk it takes part again"


def test_a_full_disk_takes_no_finished_round_from_the_site(seen, summary, tmp_path):
    finished = [f"round-{number:05d}.pt" for number in rounds_of(summary, "gamma")]
    assert finished[:2] == ["round-00000.pt", "round-00001.pt"]
    assert set(finished[:2]) <= set(seen.kept)
    assert set(finished) <= set(seen.states)
    for name, content in seen.kept.items():
        assert seen.states[name] == content
    folder = tmp_path / summary["run_id"]
    folder.mkdir()
    for name, content in seen.states.items():
        (folder / name).write_bytes(content)
        assert SiteState(tmp_path, summary["run_id"]).load(int(name[6:11]) + 1)["network"]


def test_no_text_that_leaves_a_site_names_a_path_or_a_patient(seen, summary):
    texts = [json.dumps(summary["events"])]
    for run in (seen.run, seen.folder / "stale", seen.folder / "code"):
        files = [path for path in (run / "workspace").rglob("*") if path.suffix in (".txt", ".json", ".jsonl")]
        texts += [path.read_text("utf-8", "replace") for path in files]
    assert any("lost: data" in text for text in texts), "the server's own log is among them"
    told = "\n".join(texts)
    patients = [f"{site}-{number}" for site in SITES for number in range(3)]
    for word in (str(seen.folder / "data"), str(seen.out / STATE / "gamma"), "datalist.json", ".nii", *patients):
        assert word not in told, word


def test_a_job_for_another_version_is_refused_as_a_whole(seen):
    assert seen.stale.code == seen.stale_fetch.code == 1
    assert "ended with FINISHED:EXECUTION_EXCEPTION" in seen.stale.err
    assert "0 site(s) accepted the job, but 1 must. alpha: version:" in seen.stale_fetch.err
    assert f"made for fedseg {OTHER_VERSION}, but this site runs fedseg {__version__}" in seen.stale_fetch.err


def test_a_job_with_code_is_refused_before_anything_of_it_is_loaded(seen):
    assert seen.code_status == "FINISHED:FAILED_TO_RUN"
    assert seen.code_fetch.code == 1
    assert "Not started: server: BYOC not permitted" in seen.code_fetch.err
    assert not seen.trace.exists()


def test_a_site_admin_may_not_submit(seen):
    assert seen.admin.code == 1
    assert "admin@hospital-a.example.org has no right to submit" in seen.admin.err
    assert {job["submitter_name"] for job in seen.jobs} == {COORDINATOR}


def test_a_kit_of_another_federation_gets_no_answer_and_the_server_stays_well(seen):
    assert seen.accepts == {"own": True, "foreign": False}
    assert "CERTIFICATE_VERIFY_FAILED" in seen.stranger_log
    assert "Successfully registered client" in seen.alpha_log
    assert "Successfully registered client" not in seen.stranger_log
    assert seen.sites == sorted(SITES), "alpha is there once, and it is the one that was there before"


# ------------------------------------------------------------------- kits that are signed


def edit(path):
    path.write_text(path.read_text("utf-8") + " ", "utf-8")


def replace_certificate(path):
    shutil.copyfile(path.with_name("rootCA.pem"), path)


CHANGES = {
    "fed_client.json": (edit, "alpha"),
    "client.crt": (replace_certificate, "alpha"),
    "client.key": (edit, "alpha"),
    "fed_server.json": (edit, HOST),
}


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """Kits whose start-up folders are signed, started as they are and with one changed file each: code and log."""
    folder, port = tmp_path_factory.mktemp("signed"), free_port()
    project = on_this_machine(read_project(ENCRYPTED_TEMPLATE), ["alpha"], port)
    kits = {kit.name: kit for kit in provision(project, POLICY, folder / "out", with_wheel=False).kits}
    changed, found = {"nothing": kits["alpha"]}, {}
    for name, (change, participant) in CHANGES.items():
        copy = Path(shutil.copytree(kits[participant].folder, folder / name))
        change(copy / "startup" / name)
        changed[name] = replace(kits[participant], folder=copy)
    participants = {}
    try:
        for name, kit in changed.items():
            (folder / f"{name}.logs").mkdir()
            participants[name] = launch(kit, folder / f"{name}.logs")
        for name in CHANGES:
            found[name] = participants[name].process.wait(START_SECONDS), participants[name].log.read_text("utf-8")
        log = participants["nothing"].log
        until(lambda: f"localhost:{port}" in log.read_text("utf-8"), "the whole kit's look for its server")
        found["nothing"] = participants["nothing"].process.poll(), log.read_text("utf-8")
    finally:
        leaders = [each.process.pid for each in participants.values()]
        end_processes(living_processes([kit.folder for kit in changed.values()], leaders))
    return found


@pytest.mark.parametrize("name", CHANGES)
def test_flare_does_not_start_from_a_signed_folder_with_a_changed_file(started, name):
    code, log = started[name]
    assert code == 1
    assert log.splitlines()[-2:] == ["The following files are not secure content.", name]


def test_the_same_kit_starts_when_nothing_was_changed(started):
    code, log = started["nothing"]
    assert code is None, log
    assert "not secure content" not in log


@pytest.mark.parametrize("name", ["startup/sub_start.sh", "startup/fed_client.json", "startup/rootCA.pem"])
def test_a_site_is_not_started_from_a_kit_with_a_changed_file(tmp_path, name):
    """Every kit has a signed list of its files, scripts included, at which FLARE does not look."""
    project = on_this_machine(read_project(TEMPLATE), ["alpha"], free_port())
    kits = provision(project, POLICY, tmp_path / "out", with_wheel=False).kits
    alpha = next(kit for kit in kits if kit.name == "alpha")
    edit(alpha.folder / name)
    refused = fedseg("site", "start", "--kit", alpha.folder)
    try:
        assert refused.code == 1
        assert f"changed since the kit was made: {name}" in refused.err
        assert living_processes([alpha.folder]) == []
    finally:
        end_processes(living_processes([alpha.folder]))

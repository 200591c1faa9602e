"""``fedseg local-federation``: a real federation of processes on this machine, from provisioning to the report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from fedseg.commands.arguments import Command
from fedseg.commands.fetch import finish_run
from fedseg.commands.provision import default_policy
from fedseg.commands.submit import new_watch
from fedseg.console import err, track
from fedseg.data.site_folders import find_sites
from fedseg.deployment.kits.project_file import read_project
from fedseg.deployment.local.example_sites import hippocampi, make_example_sites
from fedseg.deployment.local.federation import LocalFederation, running
from fedseg.deployment.local.folder import prepare_output
from fedseg.errors import UsageError
from fedseg.files.locks import locked
from fedseg.files.outputs import check_copied_folder
from fedseg.files.shipped import find_shipped_files

if TYPE_CHECKING:
    from fedseg.jobs.job import Job

TEMPLATE = Path("workspace_templates") / "three_hospitals"
JOB, PHANTOM_JOB = Path("jobs") / "hippocampus_fedcostwavg", Path("jobs") / "brats_fedcostwavg"
# Phantoms are smaller than the patches of the job.
_FOR_PHANTOMS = ("task.patch_size=[48,48,48]", "training.overlap=0.25")


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    command = Command(subparsers, run)
    sites = "three sites of real hippocampi from FEDSEG_TEST_DATA, or of phantoms"
    folder = Path("runs/local_federation")
    command.path("--job", f"job folder (default: {JOB}; without images of hippocampi {PHANTOM_JOB})")
    command.value("--rounds", "training rounds (default 3)", int, default=3)
    command.path("--data", f"folder with <site>/datalist.json (default: {sites})", "DIR")
    command.value("--seed", "of the run and of the example sites (default: the job's)", int)
    command.settings()
    command.path("--out", f"folder of the run, made new (default {folder})", "DIR", default=folder)
    command.flag("--overwrite", "replace a former local federation in --out")
    command.path("--template", f"default {TEMPLATE}", "DIR", default=TEMPLATE)
    command.value("--timeout", "for the job (default 7200)", float, default=7200.0, metavar="SECONDS")


def run(options: argparse.Namespace) -> int:
    """``fedseg local-federation``: run a job in a real federation of processes on this machine.

    Provision a server and sites, start them as processes of this machine that meet over mutual TLS, submit a job, wait,
    fetch models and report, and stop every process.

    example: fedseg local-federation --job jobs/brats_fedcostwavg --data runs/phantoms --out runs/local
    """
    if options.rounds < 1:
        raise UsageError(f"--rounds {options.rounds}: the number of rounds must be a whole number of at least 1.")
    if not options.timeout > 0:
        raise UsageError(f"--timeout {options.timeout}: a time in seconds must be above 0.")
    from fedseg.simulation.run_folder import check_enough_sites

    template = _of_repository(options.template)
    project, job = read_project(template), _job(options)
    job.check()
    if options.data is not None:
        check_enough_sites(job, options.data, find_sites(options.data))
    check_copied_folder("--out", options.out, job.folder)
    with locked(options.out, "fedseg local-federation"):
        return _federate(options, project, template, job)


def _federate(options: argparse.Namespace, project: dict[str, Any], template: Path, job: Job) -> int:
    """The run in its folder."""
    needed = {"--data": options.data, "--job": options.job, "--template": template}
    prepare_output(options.out, options.overwrite, needed)
    data = options.data or make_example_sites(job.plan.task, options.out / "data", job.plan.seed, track)
    sites = find_sites(data)
    err().print(escape(f"{job.name}: a server and {len(sites)} sites ({', '.join(sites)}), {options.rounds} rounds"))
    with running(project, default_policy(template), data, sites, options.out) as local:
        summary, failure = _run_job(local, job, options)
    err().print("all processes have ended")
    from fedseg.deployment.coordination.fetched_run import require_finished

    finish_run(require_finished(summary, failure, options.out), options.out)
    return 0


def _run_job(local: LocalFederation, job: Job, options: argparse.Namespace) -> tuple[dict[str, Any] | None, str]:
    """Submit the job, wait and fetch; gives what ``fetch_into`` gives."""
    from fedseg.deployment.coordination.fetched_run import fetch_into

    for each in local.participants:
        err().print(escape(f"  process {each.process.pid}: {each.kit.name} ({each.kit.certificate.subject})"))
    with local.coordinator() as coordinator:
        job_id = coordinator.submit(job)
        err().print(f"submitted: {job_id}")
        coordinator.wait(job_id, new_watch(), options.timeout)
        return fetch_into(coordinator, job_id, options.out)


def _of_repository(folder: Path) -> Path:
    """A folder of the repository: below the working folder, else that of the sources or of the wheel."""
    beside = find_shipped_files()
    return beside / folder if beside is not None and (beside / folder).is_dir() and not folder.exists() else folder


def _job(options: argparse.Namespace) -> Job:
    from fedseg.jobs.job import apply_settings, read_job

    example = options.job is None and options.data is None and hippocampi() is None
    job = read_job(options.job or _of_repository(PHANTOM_JOB if example else JOB))
    # Not every job has rounds.
    rounds = options.rounds if "num_rounds" in job.workflow else None
    apply_settings(job, rounds, None, options.seed, [*(_FOR_PHANTOMS if example else ()), *options.set])
    return job

"""``fedseg local-federation``: a real federation of processes on this machine, from provisioning to the report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.markup import escape

from fedseg.commands.fetch import print_run
from fedseg.commands.probing import probe_on_phantoms
from fedseg.commands.provision import default_policy
from fedseg.commands.submit import show_progress
from fedseg.console import err
from fedseg.data.site_folders import find_sites
from fedseg.deployment.coordination.fetched_run import fetch_into, require_finished
from fedseg.deployment.kits.project_file import read_project
from fedseg.deployment.local.example_sites import hippocampi, make_example_sites
from fedseg.deployment.local.federation import running
from fedseg.deployment.local.folder import prepare_output
from fedseg.errors import UsageError
from fedseg.evaluation.report.page import write_report
from fedseg.jobs.job import Job, apply_settings, read_job

TEMPLATE = Path("workspace_templates") / "three_hospitals"
JOB, PHANTOM_JOB = Path("jobs") / "hippocampus_fedcostwavg", Path("jobs") / "brats_fedcostwavg"
# Phantoms are smaller than the patches of the job.
_FOR_PHANTOMS = ("task.patch_size=[48,48,48]", "training.overlap=0.25")


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "local-federation",
        help="run a job in a real federation of processes on this machine",
        description="Provision a server and sites, start them as processes of this machine that meet over mutual TLS, "
        "submit a job, wait, fetch models and report, and stop every process.",
        epilog="example: fedseg local-federation --job jobs/brats_fedcostwavg --data runs/phantoms --out runs/local",
    )
    parser.add_argument(
        "--job", type=Path, help=f"job folder (default: {JOB}; without images of hippocampi {PHANTOM_JOB})"
    )
    parser.add_argument("--rounds", type=int, default=3, help="training rounds (default 3)")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder with <site>/datalist.json (default: three sites of real hippocampi from FEDSEG_TEST_DATA, or of "
        "phantoms)",
    )
    parser.add_argument("--seed", type=int, help="of the run and of the example sites (default: the job's)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for simulate")
    parser.add_argument("--out", type=Path, default=Path("runs/local_federation"), metavar="DIR", help="folder of the "
                        "run, made new (default runs/local_federation)")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace a former local federation in --out")
    parser.add_argument("--template", type=Path, default=TEMPLATE, metavar="DIR", help=f"default {TEMPLATE}")
    parser.add_argument("--timeout", type=float, default=7200.0, metavar="SECONDS", help="for the job (default 7200)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Everything from the kits to the report; whatever happens, no process is left."""
    if options.rounds < 1:
        raise UsageError(f"--rounds {options.rounds}: the number of rounds must be a whole number of at least 1.")
    if not options.timeout > 0:
        raise UsageError(f"--timeout {options.timeout}: a time in seconds must be above 0.")
    project, job = read_project(options.template), _job(options)
    plan = job.check()
    if options.data is not None:
        find_sites(options.data)
    needed = {"--data": options.data, "--job": options.job, "--template": options.template}
    prepare_output(options.out, options.overwrite, needed)
    data = options.data or make_example_sites(plan.task, options.out / "data", plan.seed)
    sites = find_sites(data)
    err().print(escape(f"{job.name}: a server and {len(sites)} sites ({', '.join(sites)}), {options.rounds} rounds"))
    with running(project, default_policy(options.template), data, sites, options.out) as local:
        for each in local.participants:
            err().print(escape(f"  process {each.process.pid}: {each.kit.name} ({each.kit.certificate.subject})"))
        with local.coordinator() as coordinator:
            job_id = coordinator.submit(job)
            err().print(f"submitted: {job_id}")
            coordinator.wait(job_id, show_progress, options.timeout)
            summary, failure = fetch_into(coordinator, job_id, options.out)
    err().print("all processes have ended")
    finished = require_finished(summary, failure, options.out)
    if "inversion" in probe_on_phantoms(options.out, finished):
        write_report(options.out)
    print_run(finished, options.out)
    return 0


def _job(options: argparse.Namespace) -> Job:
    example = options.job is None and options.data is None and hippocampi() is None
    job = read_job(options.job or (PHANTOM_JOB if example else JOB))
    apply_settings(job, options.rounds, None, options.seed, [*(_FOR_PHANTOMS if example else ()), *options.set])
    return job

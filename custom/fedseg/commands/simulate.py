"""``fedseg simulate``: a job with all its sites on this machine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from fedseg.commands.arguments import Command, Later
from fedseg.console import err, out, print_table, tell
from fedseg.contract.protocol import STATISTICS
from fedseg.contract.round_numbers import nth
from fedseg.errors import UsageError
from fedseg.files.locks import locked
from fedseg.files.outputs import check_copied_folder, check_new_folder

if TYPE_CHECKING:
    from fedseg.contract.plan import Plan
    from fedseg.jobs.job import Job
    from fedseg.simulation.run_folder import Event

COMMAND = "fedseg simulate"


def add_parser(subparsers: Any) -> None:
    """Declare the command."""
    command = Command(subparsers, run)
    command.path("job", "job folder, e.g. jobs/hippocampus_fedavg")
    command.path("--data", "folder with <site>/datalist.json", required=True)
    command.path("--out", "folder of the run, made new", required=True)
    command.value("--rounds", "training rounds (default: the job's)", int)
    command.value("--threads", "torch threads of each site (default: the job's)", int)
    command.value("--seed", "seed of the whole run (default: the job's)", int)
    command.several("--set", "change a setting of the job; may be repeated", "KEY=VALUE")
    kinds = command.value("--compare", "also score alternatives: %(kinds)s", default="", metavar="KINDS")
    vars(kinds)["kinds"] = Later(lambda: ",".join(_known_kinds()))
    command.flag("--keep-updates", "keep every round's model and updates")
    command.flag("--no-probe", "in split training: do not measure how much of an image features tell")
    command.flag("--overwrite", "replace a former run in --out")
    command.flag("--resume", "continue the stopped run in --out, job as it was")
    after = "with --resume: go on after this round (from 1; default: last)"
    command.value("--from-round", after, int, metavar="N")
    command.path("--initial", "model file to start from, of the job's task and network", "MODEL")
    command.path("--models", "folder of model files that are scored at every site, with workflow.cross_site", "DIR")
    ledger = "keep the sites' privacy ledgers here, so that runs spend one budget (default: in the run's folder)"
    command.path("--ledger", ledger, "DIR")
    command.value("--gpu", "GPU ids for FLARE's simulator, e.g. 0 or 0,1")
    command.flag("--in-process", "run all sites in this process, one after the other: the same models, sooner")


def run(options: argparse.Namespace) -> int:
    """``fedseg simulate``: run a job with all its sites on this machine.

    Run a job in FLARE's simulator, every site a process of its own, and write a report.

    example: fedseg simulate jobs/brats_fedavg --data runs/phantoms --out runs/first --rounds 5
    --set task.patch_size=[64,64,64]
    """
    if options.resume:
        with locked(options.out, COMMAND):
            return _run(options, _stopped_job(options))
    job = _new_job(options)
    check_copied_folder("--out", options.out, options.job)
    check_new_folder("--out", options.out / "state", {"--ledger": options.ledger})
    with locked(options.out, COMMAND):
        return _run(options, job)


def _run(options: argparse.Namespace, job: Job) -> int:
    """The run in its folder."""
    from fedseg.commands.probing import probe_progress
    from fedseg.data.site_folders import find_sites
    from fedseg.evaluation.report.text_tables import counted
    from fedseg.simulation.in_process import simulate_in_process
    from fedseg.simulation.results import write_results
    from fedseg.simulation.run_folder import (
        check_enough_sites,
        check_reads,
        check_simulated,
        check_sites,
        ledger_folder,
        prepare_output,
    )
    from fedseg.simulation.simulator import simulate

    plan = job.check()
    check_simulated(job)
    kinds = _kinds(options, plan)
    sites = find_sites(options.data)
    check_enough_sites(job, options.data, sites)
    if options.resume:
        check_sites(options.out, job, sites)
        check_reads(options.out, options.data)
    else:
        needed = {"JOB": options.job, "--data": options.data, "--initial": options.initial}
        needed["--models"] = options.models
        prepare_output(options.out, options.overwrite, needed)
    ledger = ledger_folder(options.out, options.ledger, options.resume)
    where = job, options.data, options.out, sites, show_event, ledger
    if job.build_workflow().result == STATISTICS:
        return _count(options, where)
    err().print(
        f"{job.name}: task {plan.task.name}, {counted(len(sites), 'site')}, "
        f"{counted(job.workflow['num_rounds'], 'round')} of {counted(plan.training.local_epochs, 'local epoch')}, "
        f"patch {'x'.join(map(str, plan.task.patch_size))}, {counted(plan.training.threads, 'thread')} per site, "
        f"seed {plan.seed}"
    )
    result = simulate_in_process(*where) if options.in_process else simulate(*where, gpu=options.gpu)
    summary = write_results(
        job, result, options.data, options.out, sites, kinds, not options.no_probe, tell, probe_progress
    )
    _print_summary(summary, options.out)
    return 0


def _count(options: argparse.Namespace, where: tuple[Any, ...]) -> int:
    """A run of a job of statistics."""
    from fedseg.commands.statistics import leave_statistics
    from fedseg.simulation.in_process import simulate_in_process
    from fedseg.simulation.simulator import simulate

    err().print(f"{where[0].name}: {len(where[3])} sites tell what their cases are like")
    result = simulate_in_process(*where) if options.in_process else simulate(*where)
    leave_statistics(result.results[STATISTICS], options.out)
    return 0


def _known_kinds() -> Sequence[str]:
    """The alternatives that there are; looked up late, since they need networks."""
    from fedseg.evaluation.comparison import KINDS

    return KINDS


def _kinds(options: argparse.Namespace, plan: Plan) -> list[str]:
    """The alternatives to compare with; also refuses options that mean nothing here."""
    import torch

    known = _known_kinds()
    if options.gpu and options.in_process:
        raise UsageError(f"--gpu {options.gpu}: with --in-process all sites share this process and its device.")
    if options.gpu and not torch.cuda.is_available():
        raise UsageError(f"--gpu {options.gpu}: torch sees no GPU on this machine; leave it out to run on the CPU.")
    kinds = [kind for kind in options.compare.split(",") if kind]
    if any(kind not in known for kind in kinds):
        raise UsageError(f"--compare {options.compare}: name {' or '.join(known)}, separated by a comma.")
    if "threshold" in kinds and plan.task.modality == "CT":
        raise UsageError("--compare threshold: a threshold is no way to segment in CT; leave it out.")
    return kinds


def _print_summary(summary: dict[str, Any], folder: Path) -> None:
    """Scores, who took no part, and where the files are."""
    from fedseg.evaluation.report.tables import result_table
    from fedseg.evaluation.report.text_tables import comparison_words
    from fedseg.evaluation.report.verdict import phantom_words
    from fedseg.evaluation.summary import last_models, participation

    out().print(result_table(summary))
    if kept := summary["final"]["withheld"]:
        err().print(
            f"{', '.join(kept)} kept their scores, as in a real federation; here they are read from the simulated "
            "sites' disks."
        )
    for entry in summary.get("comparison", []):
        value = next(value for key, value in entry.items() if key.startswith("mean_"))
        score = "n/a" if value is None else f"{value:.3f}"
        out().print(f"compared: {entry['name']} {score} ({', '.join(entry['regions'])})")
        out().print(f"          {comparison_words(summary, entry)}", soft_wrap=True)
    for sentence in filter(None, [phantom_words(summary), *participation(summary)]):
        tell(sentence, warning=True)
    report = folder / "report"
    _print_matrix(summary, report)
    out().print(f"report:  {report / 'report.html'}\nsummary: {report / 'summary.json'}")
    for file in sorted(set(last_models(summary).values())):
        out().print(f"model:   {folder / file}")


def _print_matrix(summary: dict[str, Any], report: Path) -> None:
    """Every model at every site, where a run has scored them, and where their other scores are."""
    from fedseg.evaluation.report.cross_site import TABLE_FILE, run_matrix, short_matrix_table

    if (matrix := run_matrix(summary)) is None:
        return
    table, every = short_matrix_table(matrix), len(matrix.worst_first())
    shown = len(table.header) - 1
    where = "every site" if shown == every else f"the {shown} worst of {every} sites"
    out().print(f"{matrix.objective.primary.title} of every model at {where}, the worst site first")
    print_table(table.header, table.rows, table.left)
    out().print(f"matrix:  {report / TABLE_FILE}")


def _new_job(options: argparse.Namespace) -> Job:
    if options.rounds is not None and options.rounds < 1:
        raise UsageError(f"--rounds {options.rounds}: the number of rounds must be a whole number of at least 1.")
    if options.from_round is not None:
        raise UsageError(f"--from-round {options.from_round}: only together with --resume.")
    from fedseg.jobs.job import apply_settings, read_job
    from fedseg.jobs.scored_models import models_in

    job = read_job(options.job)
    if options.initial is not None:
        job.initial = options.initial.resolve()
    if options.models is not None:
        job.models |= models_in(options.models.resolve())
    apply_settings(job, options.rounds, options.threads, options.seed, options.set)
    if options.keep_updates:
        job.workflow["keep_updates"] = True
    return job


def _stopped_job(options: argparse.Namespace) -> Job:
    changes = {
        "--rounds": options.rounds,
        "--initial": options.initial,
        "--models": options.models,
        "--threads": options.threads,
        "--seed": options.seed,
        "--keep-updates": options.keep_updates or None,
        "--overwrite": options.overwrite or None,
    }
    for name, value in changes.items():
        if value is not None:
            raise UsageError(f"{name} cannot be given with --resume: a run goes on with the job as it was.")
    from fedseg.jobs.changes import change_stopped
    from fedseg.jobs.job import read_job
    from fedseg.simulation.run_folder import prepare_resume

    job = prepare_resume(options.out, read_job(options.job).name, options.from_round)
    change_stopped(job, options.set)
    return job


def _to_go(event: Event) -> str:
    """How long the rounds that are left take, if they take as long as this one; empty after the last one."""
    left = event["total"] - nth(event["round"])
    if not left:
        return ""
    minutes = event["seconds"] * left / 60
    return f", about {minutes:.0f} min to go" if minutes >= 1.5 else ", about a minute to go or less"


def show_event(event: Event) -> None:
    """One line on stderr for each thing that happens."""
    kind, site = event["event"], escape(str(event.get("site", "")))
    if kind == "prepare":
        err().print(f"asking {', '.join(event['sites'])} to take part")
    elif kind == "accepted":
        counts = ", ".join(f"{n} {split}" for split, n in event["cases"].items() if n)
        err().print(f"  {site} accepts the job ({counts or 'scores models only'})")
    elif kind == "without":
        err().print(f"training without {site}, which scores the models")
    elif kind == "round":
        err().print(f"round {nth(event['round'])}/{event['total']}")
        for name in sorted(set(event["selection"]) - set(event["sites"])):
            err().print(f"  {escape(name)} is not asked: {escape(event['selection'][name])}")
    elif kind == "resumed":
        err().print(f"going on after round {nth(event['round'])}")
    elif kind == "stopped":
        err().print(f"[yellow]no further round: {escape(event['what'])}[/yellow]")
    elif kind == "update":
        name = next(key for key in event if key.startswith("val_"))
        score, loss = ("withheld" if event[key] is None else f"{event[key]:.3f}" for key in (name, "train_loss"))
        title = name.removeprefix("val_").capitalize()
        err().print(f"  {site}: {title} of the received model {score}, training loss {loss}, {event['seconds']:.1f} s")
    elif kind == "round_done":
        err().print(f"  done in {event['seconds']:.1f} s{_to_go(event)}")
    elif kind == "count":
        err().print(f"counting cases at {', '.join(event['sites'])}")
    elif kind == "evaluate":
        what = (
            f"{event['model']} at {', '.join(event['at'])}"
            if "at" in event
            else f"the {event['model']} model at every site"
        )
        err().print(escape(f"scoring {what}"))
    elif kind in ("site", "failed"):
        err().print(f"  [yellow]{site or 'server'}: {escape(event['what'])}[/yellow]")

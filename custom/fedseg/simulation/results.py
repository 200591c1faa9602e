"""What a simulated run leaves for people: summary, pictures, comparison, probe and report."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedseg.attacks.probe import Tell, probe_after_run
from fedseg.contract.scores import BESIDE, FEWEST, FINE_TUNED, INTERVALS, PERSONAL
from fedseg.data.datalist import read_datalist
from fedseg.data.reading import open_image
from fedseg.errors import DataError
from fedseg.evaluation.case_intervals import score_intervals
from fedseg.evaluation.case_tables import output_scores
from fedseg.evaluation.comparison import compare
from fedseg.evaluation.report.page import write_report
from fedseg.evaluation.summary import OWN, describe_run, last_models, write_summary
from fedseg.executors.scoring import FINE_TUNED_MODEL, OWN_MODEL
from fedseg.files.documents import load_json
from fedseg.jobs.job import Job
from fedseg.models.model_file import read_model
from fedseg.simulation.pictures import write_gallery, write_overlays
from fedseg.simulation.run_folder import SimulationResult
from fedseg.tasks.objective import MEAN, Objective
from fedseg.training.methods.personal_model import PERSONAL_MODEL
from fedseg.version import versions
from fedseg.workflows.run.scores import summarise_final

Summary = dict[str, Any]
_FILES = {OWN: OWN_MODEL, PERSONAL: PERSONAL_MODEL, FINE_TUNED: FINE_TUNED_MODEL}


def write_results(
    job: Job,
    run: SimulationResult,
    data: Path,
    out: Path,
    sites: Sequence[str],
    kinds: Sequence[str],
    probed: bool,
    tell: Tell,
    progress: Callable[[Iterable[str]], Iterable[str]],
) -> Summary:
    """Write everything that a simulated run leaves in ``report/``.

    Args:
        job: as it ran.
        run: what the run left.
        data: folder with ``<site>/datalist.json``.
        out: folder of the run.
        sites: names of the sites.
        kinds: alternatives that are scored too, see ``evaluation.comparison``; none.
        probed, tell, progress: see ``attacks.probe.probe_after_run``.

    Returns:
        The summary.
    """
    report = out / "report"
    report.mkdir(exist_ok=True)
    summary = build_summary(job, run, out / "state") | {"voxels": voxel_sizes(data, sites)}
    write_summary(summary, report)
    if job.plan.objective.masks:
        write_gallery(data, list(sites), report)
        _write_overlays(job, summary, out)
    if kinds:
        write_report(out)  # the comparison takes long
        tell(f"comparing with: {', '.join(kinds)}", False)
        summary |= _comparison(job, summary, data, kinds, out)
        write_summary(summary, report)
    summary = probe_after_run(out, data, summary, probed, tell, progress)
    write_report(out)
    return summary


def build_summary(job: Job, run: SimulationResult, state: Path) -> Summary:
    """The summary of a simulated run, without what pictures and comparisons add.

    Args:
        job: as it ran.
        run: what the run left.
        state: folder of the simulated sites' states.
    """
    results = {
        **run.results,
        "final": with_own_scores(run.results["final"], job.plan.objective, state, run.results["run_id"]),
    }
    seconds = max(run.wall_seconds, results["seconds"])
    date = datetime.now(UTC).isoformat(timespec="seconds")
    summary = describe_run(job, results, date, True, versions(), seconds, run.peak_rss_mb)
    if found := _site_models(state, run.results["run_id"], summary["sites"], state.parent / "models"):
        summary["final"]["site_models"] = found
    return summary


def _site_models(state: Path, run_id: str, sites: Sequence[str], models: Path) -> dict[str, dict[str, str]]:
    """Copy the models that simulated sites have for themselves beside the run's; their places by site and kind."""
    found: dict[str, dict[str, str]] = {}
    for site in sites:
        for kind, file in _FILES.items():
            if (kept := state / site / run_id / file).is_file():
                models.mkdir(exist_ok=True)
                shutil.copyfile(kept, models / f"{site}-{kind}.safetensors")
                found.setdefault(site, {})[kind] = f"models/{site}-{kind}.safetensors"
    return found


def voxel_sizes(data: Path, sites: Sequence[str]) -> dict[str, list[list[float]]]:
    """The sizes of voxels in mm along each axis that a site's training images have, the most frequent first.

    Files that cannot be read tell nothing here.
    """
    found = {}
    for site in sites:
        sizes: Counter[tuple[float, ...]] = Counter()
        for case in read_datalist(data / site).training:
            image = open_image(case.images[0], lambda *_: None)
            if image:
                sizes[tuple(round(size, 2) for size in image.grid.spacing)] += 1
        found[site] = [list(size) for size, _ in sizes.most_common()]
    return found


def with_own_scores(final: Summary, kind: Objective, state: Path, run_id: str) -> Summary:
    """The scores of a run's last model, completed from the disks of simulated sites.

    In a job with a formal guarantee nothing about single patients may travel beside it, so real sites keep their scores
    and a coordinator has none. On one machine they can be read without sending anything.

    Args:
        final: ``final`` of the server's results; sites that sent no scores stand under ``withheld``.
        kind: of the run's task.
        state: folder with the states of the simulated sites.
        run_id: of the run.

    Raises:
        DataError: a site's own scores are not there or cannot be read.
    """
    parts = {site: {**values, "split": final["split"]} for site, values in final["sites"].items()}
    for site in final["withheld"]:
        parts[site] = _kept_scores(kind, site, state / site / run_id / "evaluation-last.json")
        for name in BESIDE:
            own = state / site / run_id / f"evaluation-{name}.json"
            if own.is_file():
                parts[site][name] = {k: v for k, v in _kept_scores(kind, site, own).items() if k != "split"}
    complete = summarise_final({site: parts[site] for site in sorted(parts)}, final["after_round"], kind)
    return {**final, **complete, "withheld": final["withheld"]}


def _kept_scores(kind: Objective, site: str, path: Path) -> Summary:
    """What a site would have said of a model, from the scores of its cases on its disk."""
    try:
        content = load_json(path)
        split = "test" if content.get("test") else "validation"
        scores = [kind.read_case(case) for case in content[split]]
        patients = [str(case["patient"]) for case in content[split]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"The scores that {site} kept cannot be read from {path}: {error}.") from None
    return {"split": split, **kind.summarise(scores), INTERVALS: score_intervals(kind, scores, patients, FEWEST)}


def _write_overlays(job: Job, summary: Summary, out: Path) -> None:
    """Pictures of each site's best, median and worst case under the model that it uses."""
    files = last_models(summary)
    read = {file: read_model(out / file) for file in sorted(set(files.values()))}
    models = {site: read[file] for site, file in files.items()}
    write_overlays(
        models, job.plan.objective, out / "state", summary["run_id"], out / "report", job.plan.training.overlap
    )


def _comparison(job: Job, summary: Summary, data: Path, kinds: Sequence[str], out: Path) -> Summary:
    """``comparison`` and, with ``local``, ``cross_site`` of the summary, the federated model beside the sites' own."""
    rounds = int(job.workflow["num_rounds"])
    federated = output_scores(out, summary)
    found = compare(kinds, job.plan, data, summary["sites"], rounds, job.initial, federated)
    if "cross_site" in found:
        scores, name = summary["final"]["sites"], job.plan.objective.primary.name
        found["cross_site"]["federated"] = {site: part[name][MEAN] for site, part in scores.items()}
    return found

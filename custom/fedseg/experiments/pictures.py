"""Pictures of an experiment's cases for the pages of their sites: the best, median and worst case of each site."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedseg.contract.plan import Plan
from fedseg.data.datalist import Case, case_names
from fedseg.data.progress import Progress, silent
from fedseg.evaluation.experiment_folder import GLOBAL, OWN, read_experiment
from fedseg.evaluation.experiment_folder import Experiment as Results
from fedseg.evaluation.report.case_pictures import Entry, pick_cases, picture_entry
from fedseg.evaluation.report.experiment import numbers
from fedseg.evaluation.report.experiment.subject import ENSEMBLE, arm_kind
from fedseg.evaluation.scoring import Predictor
from fedseg.experiments.tables import Finished
from fedseg.experiments.unit_run import UNITS
from fedseg.files.documents import write_json
from fedseg.models.model_file import read_model
from fedseg.tasks.objective import MEAN, Objective, Score

REPORT = "report"


def write_pictures(plan: Plan, done: Finished, out: Path, progress: Progress = silent) -> None:
    """Write ``report/overlays.json`` and the masks that it names, for the best arm that has a model and its first seed.

    Args:
        plan: of the experiment.
        done: finished units with what they left.
        out: folder of the experiment, with its tables.
        progress: shows how far it is.
    """
    results, kind = read_experiment(out), plan.objective
    if not kind.masks:
        return
    arm, entries = _arm(results, kind.primary), []
    picks = _picks(results, arm, kind)
    for site, rank, scored in progress(picks, "Drawing cases", len(picks)):
        if (found := _case_and_model(done, arm, site, scored["id"], out)) is not None:
            predictor = Predictor(read_model(found[1]), overlap=plan.training.overlap)
            mask = out / REPORT / "overlays" / f"{site}-{rank}.nii.gz"
            entries.append({**picture_entry(predictor, kind, found[0], scored, site, rank, mask), "arm": arm})
    write_json(out / REPORT / "overlays.json", entries)


def _arm(results: Results, score: Score) -> str:
    """The best arm that is one model at a site."""
    macro = numbers.arm_frame(results, score)["macro"]
    single = macro[[arm_kind(results, str(arm)) != ENSEMBLE for arm in macro.index]]
    return str(score.order(single.dropna().to_dict())[0])


def _picks(results: Results, arm: str, kind: Objective) -> list[tuple[str, str, Entry]]:
    """Site, rank and score of each case to show, under the arm's first seed."""
    rows = results.main_rows[results.main_rows["arm"] == arm]
    scores = numbers.judged(results, rows[rows["seed"] == rows["seed"].min()], kind.primary.name)
    found = []
    for site, group in scores.groupby("site"):
        told = [
            {"id": str(line.case), kind.primary.name: {MEAN: float(line.value)}}
            for line in group.itertuples(index=False)
        ]
        found += [(str(site), rank, dict(scored)) for rank, scored in pick_cases(kind, told)]
    return found


def _case_and_model(done: Finished, arm: str, site: str, wanted: str, out: Path) -> tuple[Case, Path] | None:
    """The case, and the file of the model that was tested on it; None where no single model was."""
    units = [(unit, left) for unit, left in done if unit.arm.name == arm.removesuffix(OWN)]
    first = min(unit.seed for unit, _ in units)
    for unit, left in units:
        datalist = unit.fold.tests.get(site)
        file = left.models.get(site) if arm.endswith(OWN) else _first(left.models, [GLOBAL, site])
        if unit.seed == first and datalist is not None and file is not None:
            for name, case in zip(case_names(datalist.test), datalist.test, strict=True):
                if name == wanted:
                    return case, out / UNITS / unit.name / file
    return None


def _first(models: dict[str, str], names: Sequence[str]) -> str | None:
    return next((models[name] for name in names if name in models), None)

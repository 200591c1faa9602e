"""Reporting checklists, as far as software can know: CLAIM (2024 update) and TRIPOD+AI.

Tejani et al., Checklist for Artificial Intelligence in Medical Imaging (CLAIM): 2024 Update, Radiology: Artificial
Intelligence 2024 (44 items). Collins et al., TRIPOD+AI statement, BMJ 2024;385:e078378 (27 items, some in parts). The
names of items are shortened; the texts in the two papers hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from fedseg.contract.round_numbers import nth
from fedseg.evaluation.experiment_folder import LEFT_OUT, OWN, Experiment
from fedseg.evaluation.report.experiment.subject import (
    ENSEMBLE,
    arms_of_kind,
    budget_words,
    external_sites,
    regions_of,
    scores_of,
    task_of,
)
from fedseg.evaluation.report.text_tables import TextTable, counted, plain, shown
from fedseg.evaluation.summary import part

AUTHORS = "the authors'"
_CLAIM = (
    *("title names the kind of AI", "abstract", "background and intended use", "aims and hypotheses"),
    *("prospective or retrospective", "study goal", "data sources", "inclusion and exclusion", "preprocessing"),
    *("selection of data subsets", "de-identification", "missing data", "image acquisition"),
    *("how the reference standard was made", "why this reference standard", "who annotated"),
    *("annotation of the test set", "variability between annotators", "assignment to partitions"),
    *("level at which partitions are disjoint", "intended sample size", "model", "software", "initial parameters"),
    *("training", "selection of the final model", "ensembling", "metrics", "significance and uncertainty"),
    *("robustness", "explainability", "internal testing", "external testing", "trial registration"),
    *("patients included and excluded", "demographics of each partition", "performance with uncertainty"),
    *("diagnostic performance with precision", "failure analysis", "limitations", "implications for practice"),
    *("protocol or further details", "availability of software, model and data", "funding"),
)
_TRIPOD = {
    **{"1": "title", "2": "abstract", "3a": "healthcare context", "3b": "target population and purpose"},
    **{"3c": "known health inequalities", "4": "objectives", "5a": "data sources", "5b": "dates of the data"},
    **{"6a": "setting: number and place of centres", "6b": "eligibility", "6c": "treatments", "7": "data preparation"},
    **{
        "8a": "outcome",
        "8b": "who assessed the outcome",
        "8c": "blinding of the outcome",
        "9a": "choice of predictors",
    },
    **{"9b": "definition of predictors", "9c": "who assessed predictors", "10": "sample size", "11": "missing data"},
    **{"12a": "use of the data, partitions", "12b": "handling of predictors", "12c": "model and internal validation"},
    **{"12d": "differences between clusters", "12e": "performance measures", "12f": "model updating"},
    **{"12g": "how predictions were computed", "13": "class imbalance", "14": "fairness", "15": "output of the model"},
    **{"16": "training against evaluation data", "17": "ethical approval", "18a": "funding", "18b": "conflicts"},
    **{"18c": "protocol", "18d": "registration", "18e": "data sharing", "18f": "code sharing"},
    **{
        "19": "patient involvement",
        "20a": "flow of participants",
        "20b": "characteristics",
        "20c": "comparison of sets",
    },
    **{"21": "numbers in each analysis", "22": "full model", "23a": "performance with intervals"},
    **{"23b": "performance by cluster", "24": "results of updating", "25": "interpretation", "26": "limitations"},
    **{"27a": "poor input data in use", "27b": "interaction of users", "27c": "next steps"},
}


def checklists(experiment: Experiment, arms: pd.DataFrame) -> dict[str, TextTable]:
    """Both checklists: each item with what the software knows of it; all others are the authors'.

    Args:
        experiment: what was read.
        arms: see ``arm_frame``.
    """
    known = _known(experiment, arms)
    claim = {str(number): title for number, title in enumerate(_CLAIM, start=1)}
    return {
        "CLAIM 2024": _table(claim, {**_shared(known, _IN_CLAIM)}),
        "TRIPOD+AI": _table(_TRIPOD, {**_shared(known, _IN_TRIPOD)}),
    }


def _table(items: dict[str, str], said: dict[str, str]) -> TextTable:
    body = [[number, title, said.get(number) or AUTHORS] for number, title in items.items()]
    return TextTable(("Item", "What", "What the software knows"), body, 0, 3)


def _shared(known: dict[str, str], items: dict[str, str]) -> dict[str, str]:
    return {item: known[fact] for item, fact in items.items() if known.get(fact)}


# Which fact answers which item. Facts tell what was done and found; reasons and judgements stay the authors'.
_IN_CLAIM = {
    **{"9": "preprocessing", "12": "missing", "19": "partitions", "20": "disjoint", "21": "counts", "22": "model"},
    **{"23": "software", "24": "initial", "25": "training", "26": "selection", "27": "ensemble", "28": "metrics"},
    **{"29": "uncertainty", "30": "robustness", "32": "internal", "33": "external", "35": "counts"},
    **{"37": "performance", "39": "failures", "42": "details", "43": "availability"},
}
_IN_TRIPOD = {
    **{"6a": "centres", "7": "preprocessing", "10": "counts", "11": "missing", "12a": "partitions", "12c": "model"},
    **{"12d": "clusters", "12e": "metrics", "12g": "predictions", "14": "fairness", "15": "output"},
    **{"16": "external", "18f": "availability", "20a": "counts", "21": "counts", "22": "model"},
    **{"23a": "performance", "23b": "by_cluster"},
}


def _known(experiment: Experiment, arms: pd.DataFrame) -> dict[str, str]:
    """What the files of the experiment tell, by the names that the items use; empty where they do not tell it."""
    return {**_design(experiment), **_model(experiment), **_results(experiment, arms)}


def _design(experiment: Experiment) -> dict[str, str]:
    results, folds = experiment.results, list(dict.fromkeys(experiment.results["fold"]))
    task, outside = task_of(experiment), external_sites(experiment)
    left_out = [fold.removeprefix(LEFT_OUT) for fold in folds if fold.startswith(LEFT_OUT)]
    people = results[["evaluated_at", "patient"]].drop_duplicates()
    cases = results.drop_duplicates(["evaluated_at", "case"])
    tested = f"tested: {counted(len(cases), 'case')} of {counted(len(people), 'patient')}"
    spacing = f", resampled to {plain(list(task.spacing))} mm" if task and task.spacing else ""
    others = [*(["leaving out " + ", ".join(left_out)] if left_out else [])]
    others += [f"external sites {', '.join(outside)}"] if outside else []
    whole = len(folds) - len(left_out)
    split = [f"{whole}-fold cross-validation over patients"] if whole > 1 else ["fixed test cases"] * whole
    return {
        "preprocessing": f"normalisation {task.normalisation}{spacing}" if task else "",
        "missing": f"convention for empty regions; {_empty(results)}",
        "partitions": "; ".join([*split, *others]),
        "disjoint": "patient",
        "counts": tested,
        "centres": f"{counted(len(experiment.sites), 'site')}: {', '.join(experiment.sites)}",
        "internal": "held-out patients of the training sites; see arms side by side" if whole else "",
        "external": "; ".join(others),
        "software": ", ".join(f"{name} {value}" for name, value in part(experiment.facts, "versions").items()),
    }


def _empty(results: pd.DataFrame) -> str:
    """How many values have an empty region."""
    first = results[(results["arm"] == results["arm"].iloc[0]) & (results["metric"] == results["metric"].iloc[0])]
    count = first[first["empty"].isin(["both", "reference"])].drop_duplicates(["evaluated_at", "case", "region"])
    return f"{counted(len(count), 'region')} of a case without a voxel in the reference"


def _model(experiment: Experiment) -> dict[str, str]:
    plans = [part(experiment.facts, "arms", arm, "plan") for arm in experiment.arms]
    network, training = (part(next(iter(plans), {}), name) for name in ("network", "training"))
    ensembles, budget = arms_of_kind(experiment, ENSEMBLE), budget_words(experiment)
    seeds, digest = counted(experiment.results["seed"].nunique(), "seed"), str(experiment.facts.get("digest") or "")
    settings = ", ".join(f"{name.replace('_', ' ')} {plain(value) or 'none'}" for name, value in training.items())
    return {
        "model": ", ".join(f"{name.replace('_', ' ')} {plain(value)}" for name, value in network.items()),
        "initial": f"{_initial(experiment)}; {seeds}",
        "training": "; ".join(filter(None, [budget, settings])),
        "selection": "the model after the last round",
        "ensemble": f"{', '.join(ensembles)}: mean of probabilities" if ensembles else "",
        "predictions": "masks on the grid of the original image, by sliding windows",
        "output": f"a label map with the regions {', '.join(regions_of(experiment))}",
        "details": f"definition with SHA-256 {digest[:16]}..., see versions and hashes" if digest else "",
        "availability": "software: fedseg, Apache-2.0; model and data: the authors'",
    }


def _initial(experiment: Experiment) -> str:
    """From what arms started: weights drawn from the seed, or a model file, and how that was made."""
    starts: dict[str, list[str]] = {}
    for arm in experiment.arms:
        told = part(experiment.facts, "arms", arm.removesuffix(OWN), "initial")
        starts.setdefault(_file_words(told) if told else "drawn from the seed of the training", []).append(arm)
    if len(starts) == 1:
        return next(iter(starts))
    return "; ".join(f"{', '.join(arms)}: {start}" for start, arms in starts.items())


def _file_words(told: Mapping[str, Any]) -> str:
    """An initial model, as ``experiment.json`` tells it; its round counts from 0, and -1 is before any training."""
    made = nth(int(told["round"]))
    how = f"trained before by {told['method']} to round {made}" if made else "not trained"
    return f"a model file, {how} (seed {told['seed']}, SHA-256 of its arrays {str(told['digest'])[:16]}...)"


def _results(experiment: Experiment, arms: pd.DataFrame) -> dict[str, str]:
    scores = scores_of(experiment)
    primary = scores[0]
    told = [
        f"{arm} {primary.title} {shown(row['pooled'], primary.form)} "
        f"({shown(row['low'], primary.form)} to {shown(row['high'], primary.form)})"
        for arm, row in arms.iterrows()
    ]
    worst = [f"{arm}: {row['worst_site']} {shown(row['worst'], primary.form)}" for arm, row in arms.iterrows()]
    return {
        "metrics": ", ".join(score.title for score in scores),
        "uncertainty": "95% bootstrap intervals over patients; paired sign-flip tests with Holm's correction",
        "robustness": f"{counted(experiment.results['seed'].nunique(), 'seed')}; each site by itself",
        "performance": "; ".join(told),
        "failures": "the worst cases of each site, see there",
        "clusters": "means over sites and over cases; spread over sites; intervals over "
        + (
            "patients, and over sites and their patients"
            if arms["wide_low"].notna().any()
            else "patients, not over sites"
        ),
        "fairness": f"by site only, worst site: {'; '.join(worst)}",
        "by_cluster": "see each site",
    }

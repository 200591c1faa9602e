"""What came out of an experiment, and how it was made, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from fedseg.evaluation.experiment_folder import Experiment
from fedseg.evaluation.intervals import FEWEST_SITES
from fedseg.evaluation.paired_tests import least_p
from fedseg.evaluation.report.experiment.subject import (
    CENTRAL,
    ENSEMBLE,
    FEDERATED,
    LOCAL,
    arm_words,
    arms_of_kind,
    budget_words,
    defined_arms,
    site_facts,
    task_of,
)
from fedseg.evaluation.report.experiment.tables import SIGNIFICANT
from fedseg.evaluation.report.text_tables import counted, plain, shown, shown_watt_hours
from fedseg.evaluation.report.verdict import phantom_words
from fedseg.evaluation.summary import number, part
from fedseg.tasks.objective import Score

_PARTS = {"cpu": "a busy core", "gpu": "a GPU"}


def verdict(
    experiment: Experiment,
    arms: pd.DataFrame,
    pairs: pd.DataFrame,
    left_out: pd.DataFrame,
    score: Score,
    reference: str,
) -> list[str]:
    """What came out, in paragraphs.

    Args:
        experiment: what was read.
        arms, pairs, left_out: ``arm_frame``, ``pair_frame`` and ``left_out_frame``.
        score: the primary one.
        reference: the arm with which the others are compared.
    """
    told = [_best(arms, score), _fair(arms, score)]
    compared = [*_against_central(experiment, arms, score), *_against_local(experiment, arms, score)]
    compared += [*_significance(pairs, arms, reference, score), *_unseen(left_out, score)]
    return [" ".join(sentences) for sentences in (told, compared) if sentences]


def warnings(experiment: Experiment) -> list[str]:
    """What a reader has to know before all else: parts that are missing, and images that a program drew."""
    units, found = part(experiment.facts, "units"), []
    left = sum(not part(units, name).get("done") for name in units)
    if left:
        found.append(f"Incomplete: {left} of {len(units)} parts of the experiment are not done. Numbers will change.")
    drawn = [site for site, facts in site_facts(experiment).items() if facts.get("phantoms")]
    said = phantom_words({"phantoms": drawn, "sites": list(site_facts(experiment))})
    return [*found, f"Simulated images. {said}"] if said else found


def _best(arms: pd.DataFrame, score: Score) -> str:
    ordered = arms.loc[score.order(arms["macro"].to_dict())]
    best = ordered.iloc[0]
    where = f"{counted(int(best['sites']), 'site')}, {counted(int(best['patients']), 'patient')}"
    if len(ordered) == 1:
        return (
            f"The arm {ordered.index[0]} reaches a mean {score.title} of {shown(best['macro'], score.form)} ({where})."
        )
    second = f"next is {ordered.index[1]} with {shown(ordered.iloc[1]['macro'], score.form)}"
    return (
        f"Of {counted(len(defined_arms(arms.index)), 'arm')}, {ordered.index[0]} has the best mean {score.title} over "
        f"sites, {shown(best['macro'], score.form)}; {second} ({where})."
    )


def _fair(arms: pd.DataFrame, score: Score) -> str:
    best = score.order(arms["worst"].to_dict())[0]
    row = arms.loc[best]
    return (
        f"The worst-off site fares best under {best}: {row['worst_site']} has {shown(row['worst'], score.form)} there. "
        f"The sites differ least under {arms['spread'].idxmin()} (standard deviation "
        f"{shown(arms['spread'].min(), score.form)})."
    )


def _against_central(experiment: Experiment, arms: pd.DataFrame, score: Score) -> list[str]:
    """How much of pooled training each federated arm reaches; a share means something for scores from 0 up only."""
    pooled, federated = arms_of_kind(experiment, CENTRAL), arms_of_kind(experiment, FEDERATED)
    if not pooled or not score.higher_is_better or score.lowest < 0 or not number(arms["macro"].get(pooled[0])):
        return []
    of = arms.loc[pooled[0], "macro"]
    shares = [f"{arm} {arms.loc[arm, 'macro'] / of:.1%}" for arm in federated if arm in arms.index]
    return [f"Of training on all cases in one place the federated arms reach: {', '.join(shares)}."] if shares else []


def _against_local(experiment: Experiment, arms: pd.DataFrame, score: Score) -> list[str]:
    """Whether a site gains by taking part, beside its own model at home and elsewhere."""
    alone = arms_of_kind(experiment, LOCAL)
    if not alone or alone[0] not in arms.index:
        return []
    row = arms.loc[alone[0]]
    away = number(row["elsewhere"])
    text = f"A site's own model reaches {shown(row['macro'], score.form)} at home"
    return [text + (f" and {shown(away, score.form)} at the other sites." if away is not None else ".")]


def _significance(pairs: pd.DataFrame, arms: pd.DataFrame, reference: str, score: Score) -> list[str]:
    if pairs.empty:
        return []
    sure = pairs[pairs["adjusted"].astype(float) < SIGNIFICANT]
    if sure.empty:
        least = least_p(int(pairs["patients"].max()), len(pairs))
        if least >= SIGNIFICANT:
            return [
                f"Whether an arm differs from {reference} by more than chance cannot be shown: with "
                f"{counted(int(pairs['patients'].max()), 'patient')} no p-value, corrected for "
                f"{counted(len(pairs), 'test')}, can be below {least:.2g}, and {SIGNIFICANT} is asked for."
            ]
        return [f"No arm differs from {reference} by more than chance explains (paired tests, corrected)."]
    told = []
    for word, better in (("better", True), ("worse", False)):
        names = [row.arm for row in sure.itertuples() if _is_better(row, arms["pooled"], reference, score) == better]
        told += [f"{_listed(names)} {'are' if len(names) > 1 else 'is'} {word}"] if names else []
    return [f"Against {reference}, on the same patients and corrected for {len(pairs)} tests: {'; '.join(told)}."]


def _is_better(row: Any, means: pd.Series, reference: str, score: Score) -> bool:
    """Whether an arm is the better one of a pair; of a signed error a difference does not say it, the means do."""
    pair = (means[row.arm], means[reference]) if score.zero_is_best else (row.difference, 0.0)
    return score.better(*pair)


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _unseen(left_out: pd.DataFrame, score: Score) -> list[str]:
    """What is lost at a site that took no part in the training."""
    if left_out.empty:
        return []
    said = []
    for arm, group in left_out.groupby("arm", sort=False):
        loss = number(group["difference"].mean())
        change = "" if loss is None else f", {shown(loss, f'+{score.form}')} beside taking part"
        said.append(f"{arm} {shown(group['without'].mean(), score.form)}{change}")
    where = f"At a site that was left out of the training (mean over {left_out['site'].nunique()} sites)"
    return [f"{where}: {'; '.join(said)}."]


def energy_words(experiment: Experiment, costs: pd.DataFrame) -> str:
    """How the energy was computed, and how much it was; why there is none where no factor is stated."""
    watts = part(experiment.facts, "watts")
    factors = [f"{plain(value)} W for {_PARTS.get(name, name)}" for name, value in watts.items() if value]
    if "total_kwh" not in costs or not factors:
        return "Energy is not told: the definition states no power (watts), and the software guesses none."
    return (
        f"Energy is computed, not metered: measured busy seconds times {' and '.join(factors)}, as the definition "
        f"states; "
        f"cooling, memory and network are not in it. All trainings together took "
        f"{shown_watt_hours(costs['total_kwh'].sum())} Wh."
    )


def draws_sites(arms: pd.DataFrame) -> bool:
    """Whether intervals draw sites, too, for which there must be ``FEWEST_SITES``; ``arms`` is ``arm_frame``."""
    return bool(arms["wide_low"].notna().any())


def redrawn_words(arms: pd.DataFrame) -> str:
    """What intervals of differences draw anew."""
    few = f"patients, since sites are drawn only where there are at least {FEWEST_SITES}"
    return "sites and their patients" if draws_sites(arms) else few


def methods(experiment: Experiment, scores: list[Score], reference: str, arms: pd.DataFrame) -> list[str]:
    """Paragraphs for the methods section of a paper: what the software knows, and nothing else."""
    return [
        _data_words(experiment),
        _training_words(experiment),
        _evaluation_words(experiment, scores, reference, arms),
    ]


def _data_words(experiment: Experiment) -> str:
    task, results = task_of(experiment), experiment.results
    what = task.description or task.name if task else "the task"
    patients = results[["evaluated_at", "patient"]].drop_duplicates()
    counts, cases = patients["evaluated_at"].value_counts(), len(results.drop_duplicates(["evaluated_at", "case"]))
    return (
        f"Data. {what}. Models were tested on {counted(cases, 'case')} of {counted(len(patients), 'patient')} at "
        f"{counted(len(experiment.sites), 'site')} (patients of a site: {counts.min()} to {counts.max()}). "
        "Cases of one patient were never split between training and test. "
        f"{_fold_words(experiment)}"
    )


def _fold_words(experiment: Experiment) -> str:
    folds = experiment.results["fold"].unique()
    apart = sum(str(fold).startswith("loso-") for fold in folds)
    k = len(folds) - apart
    sentences = [f"Cases were held out by {k}-fold cross-validation over patients."] if k > 1 else []
    sentences += ["Test cases were fixed before training."] if k == 1 else []
    sentences += [f"{apart} trainings left out one site each and were tested there."] if apart else []
    same = part(experiment.facts, "definition", "folds").get("with_it")
    sentences += ["Sites were tested on the same patients without them and with them in the training."] if same else []
    return " ".join(sentences)


def _training_words(experiment: Experiment) -> str:
    seeds = experiment.results["seed"].nunique()
    described = "; ".join(f"{arm}: {arm_words(experiment, arm)}" for arm in experiment.arms)
    versions = part(experiment.facts, "versions")
    software = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"Training. {described}. {_budget_sentence(experiment)}"
        f"Every training was done with {counted(seeds, 'seed')}. "
        f"{f'Software: {software}. ' if software else ''}{_digest_words(experiment)}"
    )


def _budget_sentence(experiment: Experiment) -> str:
    """For how long every arm trained; an ensemble trains nothing."""
    equal, ensembles = budget_words(experiment), arms_of_kind(experiment, ENSEMBLE)
    if not equal:
        return ""
    if not ensembles:
        return f"Every arm trained for {equal}. "
    made = "was made from the sites' own models" if len(ensembles) == 1 else "were made from the sites' own models"
    return f"Every other arm trained for {equal}; {_listed(ensembles)} {made} without further training. "


def _digest_words(experiment: Experiment) -> str:
    digest: Any = experiment.facts.get("digest")
    return f"The experiment is defined by a file with SHA-256 {digest}." if digest else ""


def _evaluation_words(experiment: Experiment, scores: list[Score], reference: str, arms: pd.DataFrame) -> str:
    names = ", ".join(f"{score.title}{f' ({score.unit})' if score.unit else ''}" for score in scores)
    tests = (
        f"Arms were compared with {reference} on the same patients by sign-flip permutation tests of the mean "
        f"difference, two-sided, with Holm's correction over {counted(len(experiment.arms) - 1, 'comparison')}; "
        f"intervals of differences are over {redrawn_words(arms)}."
    )
    return (
        f"Evaluation. Scores, per case and region on the grid of the original image: {names}. The primary score is "
        f"{scores[0].title}, averaged over regions. A case that was scored with several seeds counts once, with its "
        "mean. We report means over sites (each site the same) and over cases, with 95% percentile intervals of 10,000 "
        f"bootstrap samples over patients{', and over sites and patients' if draws_sites(arms) else ''}. "
        f"{tests if len(experiment.arms) > 1 else ''}"
    )

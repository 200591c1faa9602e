"""The numbers on the page of an experiment, from its long table: arms, sites, pairs, folds, curves and costs.

A case that was scored in several seeds counts once, with the mean of its scores: seeds are repetitions of a training,
not further patients. How much they differ is told apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from fedseg.evaluation.case_means import describe_cases, interval, wide_interval
from fedseg.evaluation.experiment_folder import GLOBAL, Experiment
from fedseg.evaluation.paired_tests import compare_with
from fedseg.evaluation.report.experiment.subject import external_sites
from fedseg.tasks.objective import MEAN, Score

CASE = ["arm", "model", "site", "patient", "case"]


def case_scores(rows: pd.DataFrame, metric: str, region: str = MEAN) -> pd.DataFrame:
    """One row a case and model: ``arm``, ``model``, ``site``, ``patient``, ``case`` and ``value``, the mean over seeds.

    Args:
        rows: of the long table.
        metric: name of a score.
        region: of the task, or ``mean``.
    """
    chosen = rows[(rows["metric"] == metric) & (rows["region"] == region)]
    named = chosen.rename(columns={"site": "model", "evaluated_at": "site"})
    return named.groupby(CASE, sort=False)["value"].mean().dropna().reset_index()


def at_home(scores: pd.DataFrame) -> pd.DataFrame:
    """Those of ``case_scores`` that a site would get: of the one model of all, or of the site's own model."""
    return scores[(scores["model"] == GLOBAL) | (scores["model"] == scores["site"])]


def elsewhere(scores: pd.DataFrame) -> pd.DataFrame:
    """Those of ``case_scores`` that a site's own model has on the cases of other sites."""
    return scores[(scores["model"] != GLOBAL) & (scores["model"] != scores["site"])]


def per_case(scores: pd.DataFrame) -> pd.DataFrame:
    """``case_scores`` with one row a case and arm: the mean over the models of an arm."""
    return scores.groupby(["arm", "site", "patient", "case"], sort=False)["value"].mean().reset_index()


def judged(experiment: Experiment, rows: pd.DataFrame, metric: str, region: str = MEAN) -> pd.DataFrame:
    """By which scores an arm is judged: those at home; where every fold leaves a site out, those at that site, of an
    arm with a model of each other site the mean over these.

    Args:
        experiment: what was read.
        rows: out of its ``main_rows``.
        metric, region: see ``case_scores``.
    """
    scores = case_scores(rows, metric, region)
    return per_case(scores) if experiment.whole_rows.empty else at_home(scores)


def comparable(experiment: Experiment, metric: str, region: str = MEAN) -> pd.DataFrame:
    """``judged`` on the cases of sites that train of which every arm has a score, so that all are judged on the same.

    Where an experiment is so incomplete that there is no such case, each arm is judged on what it has.
    """
    every = judged(experiment, experiment.main_rows, metric, region)
    scores = every[~every["site"].isin(external_sites(experiment))]
    arms = scores.groupby(["site", "patient", "case"])["arm"].transform("nunique")
    common = scores[arms == every["arm"].nunique()]
    return every if common.empty else common


def arm_frame(experiment: Experiment, score: Score) -> pd.DataFrame:
    """One row an arm: how good it is at home, for whom, and how certainly.

    Columns: ``sites``, ``cases``, ``patients`` (counts), ``macro`` (mean over sites), ``pooled`` (mean over cases) with
    ``low`` and ``high`` (95%, other patients) and ``wide_low`` and ``wide_high`` (other sites, too; None for few
    sites), ``worst_site`` and ``worst``, ``spread`` (population standard deviation over sites), ``elsewhere`` (mean of
    sites' own models at the other sites; NaN for a global model), ``seeds``, and ``seed_sd`` (standard deviation of
    ``macro`` over seeds, n - 1; NaN for one).
    """
    scores = comparable(experiment, score.name)
    away = elsewhere(case_scores(experiment.main_rows, score.name))
    records = {}
    for arm, group in scores.groupby("arm", sort=False):
        wide = dict(zip(("wide_low", "wide_high"), wide_interval(group, "cases"), strict=True))
        records[arm] = {
            **describe_cases(group, score),
            **wide,
            "elsewhere": _macro(away[away["arm"] == arm]),
            **_over_seeds(experiment, str(arm), score, sorted(group["site"].unique())),
        }
    return pd.DataFrame.from_dict(records, orient="index")


def _macro(scores: pd.DataFrame) -> float:
    """Mean over pairs of model and site."""
    return float(scores.groupby(["model", "site"])["value"].mean().mean())


def _over_seeds(experiment: Experiment, arm: str, score: Score, sites: Sequence[str]) -> dict[str, float]:
    """How many seeds, and how far the mean over sites differs between them."""
    rows = experiment.main_rows
    chosen = rows[(rows["arm"] == arm) & rows["evaluated_at"].isin(sites)]
    means = [
        judged(experiment, group, score.name).groupby("site")["value"].mean().mean()
        for _, group in chosen.groupby("seed")
    ]
    return {"seeds": len(means), "seed_sd": float(pd.Series(means, dtype=float).std())}


def site_frame(experiment: Experiment, score: Score, region: str = MEAN) -> pd.DataFrame:
    """One row an arm and site at home: ``arm``, ``site``, ``cases``, ``patients``, ``mean``, ``low`` and ``high``."""
    records = []
    scores = judged(experiment, experiment.main_rows, score.name, region)
    for (arm, site), group in scores.groupby(["arm", "site"], sort=False):
        own = interval(group)
        counts = {"cases": len(group), "patients": group["patient"].nunique()}
        records.append({"arm": arm, "site": site, **counts, "mean": own.mean, "low": own.low, "high": own.high})
    return pd.DataFrame.from_records(records, columns=["arm", "site", "cases", "patients", "mean", "low", "high"])


def pair_frame(experiment: Experiment, score: Score, reference: str) -> pd.DataFrame:
    """Each other arm beside one arm, on the same patients.

    Columns: ``arm``, ``difference`` (arm minus reference) with ``low`` and ``high``, ``patients``, ``p`` (sign flips),
    ``adjusted`` (the same, Holm over all rows) and ``wilcoxon`` (p-value of the signed-rank test).
    """
    scores = comparable(experiment, score.name)
    named = scores.rename(columns={"site": "evaluated_at"})
    tables = {str(arm): group for arm, group in named.groupby("arm", sort=False)}
    compared = compare_with(tables, reference)
    return pd.DataFrame.from_records([{"arm": arm, **told} for arm, told in compared.items()]).rename(
        columns={"p_wilcoxon": "wilcoxon", "p_holm": "adjusted"}
    )


def external_frame(experiment: Experiment, score: Score, sites: Sequence[str]) -> pd.DataFrame:
    """Every arm at sites that trained no model of it: ``arm``, ``site``, ``cases``, ``mean``, ``low`` and ``high``.

    Of an arm with a model of each site a case has the mean over these models.
    """
    scores = case_scores(experiment.main_rows, score.name)
    scores = scores[scores["site"].isin(sites)]
    records = []
    for (arm, site), group in per_case(scores).groupby(["arm", "site"], sort=False):
        own = interval(group)
        records.append(
            {"arm": arm, "site": site, "cases": len(group), "mean": own.mean, "low": own.low, "high": own.high}
        )
    return pd.DataFrame.from_records(records)


def travelling_arms(experiment: Experiment) -> list[str]:
    """Arms that have a model of each site, which was scored at other sites, too."""
    away = elsewhere(case_scores(experiment.main_rows, str(experiment.results["metric"].iloc[0])))
    return list(dict.fromkeys(away["arm"]))


def matrix(experiment: Experiment, arm: str, score: Score) -> tuple[pd.DataFrame, pd.Series]:
    """Mean score of the model of each site (rows) on the cases of each site (columns), the worst first on both sides.

    The worst row is the model that does worst at the other sites, the worst column the site at which models do worst.

    Returns:
        The means, and the number of cases of each column.
    """
    scores = case_scores(experiment.main_rows, score.name)
    scores = scores[(scores["arm"] == arm) & (scores["model"] != GLOBAL)]
    means = scores.pivot_table(index="model", columns="site", values="value")
    away = elsewhere(scores).groupby("model")["value"].mean().reindex(means.index)
    rows = [*score.order(away.dropna().to_dict(), worst_first=True), *away.index[away.isna()]]
    columns = score.order(means.mean().to_dict(), worst_first=True)
    return means.loc[rows, columns], scores.groupby("site")["case"].nunique().reindex(columns)


def left_out_frame(experiment: Experiment, score: Score) -> pd.DataFrame:
    """What an arm is worth at a site that it was trained without.

    One row an arm and site: ``arm``, ``site``, ``cases``, ``without`` with ``low`` and ``high``, ``with`` (the same arm
    on the same cases with all sites; NaN where it was not trained so) and ``difference`` (without minus with).
    """
    apart = per_case(case_scores(experiment.left_out_rows, score.name))
    together = at_home(case_scores(experiment.whole_rows, score.name))
    records = []
    for (arm, site), group in apart.groupby(["arm", "site"], sort=False):
        same = together[(together["arm"] == arm) & (together["site"] == site)]
        own, mean, whole = interval(group), group["value"].mean(), same["value"].mean()
        told = {"cases": len(group), "without": mean, "low": own.low, "high": own.high}
        records.append({"arm": arm, "site": site, **told, "with": whole, "difference": mean - whole})
    return pd.DataFrame.from_records(records)


def worst_cases(experiment: Experiment, arm: str, score: Score, count: int = 3) -> pd.DataFrame:
    """The ``count`` worst cases of each site under an arm: ``site``, ``rank`` (from 1), ``case``, ``patient``,
    ``value``."""
    scores = judged(experiment, experiment.main_rows, score.name)
    scores = scores[scores["arm"] == arm]
    scores = scores.assign(good=scores["value"].map(score.goodness)).sort_values(
        ["site", "good", "case"], kind="stable"
    )
    taken = scores.groupby("site").head(count)
    return taken.assign(rank=taken.groupby("site").cumcount() + 1)[["site", "rank", "case", "patient", "value"]]


def curve_frame(experiment: Experiment, metric: str) -> pd.DataFrame:
    """A curve an arm and seed: ``arm``, ``seed``, ``samples`` (seen so far), ``value`` (mean over sites and folds)."""
    curves = experiment.curves
    chosen = curves[curves["metric"] == metric]
    means = chosen.groupby(["arm", "seed", "round"], sort=False)[["samples", "value"]].mean()
    return means.dropna().reset_index()


def cost_frame(experiment: Experiment) -> pd.DataFrame:
    """What one training of an arm cost: a row an arm, a column a quantity, the mean over its trainings (the largest of
    ``peak_memory_mib``); ``trainings`` counts them, ``total_kwh`` is the energy of all."""
    costs = experiment.costs
    if costs.empty:
        return pd.DataFrame()
    groups = costs.groupby(["arm", "quantity"], sort=False)["value"]
    frame = groups.mean().unstack("quantity")
    if "peak_memory_mib" in frame:
        frame["peak_memory_mib"] = groups.max().unstack("quantity")["peak_memory_mib"]
    frame.insert(0, "trainings", costs.groupby("arm").apply(lambda each: len(each[["seed", "fold"]].drop_duplicates())))
    if "kwh" in frame:
        frame["total_kwh"] = groups.sum().unstack("quantity")["kwh"]
    return frame.reindex(list(dict.fromkeys(costs["arm"])))

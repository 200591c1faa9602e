"""The numbers on the page of an experiment as printed tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from fedseg.evaluation.experiment_folder import Experiment
from fedseg.evaluation.report.experiment import numbers
from fedseg.evaluation.report.experiment.subject import arm_words, external_sites, regions_of, site_facts
from fedseg.evaluation.report.text_tables import (
    NOT_AVAILABLE,
    TextTable,
    plain,
    shown,
    shown_bytes,
    shown_seconds,
    shown_watt_hours,
)
from fedseg.evaluation.summary import number, part
from fedseg.tasks.objective import MEAN, Score

SIGNIFICANT = 0.05
_COSTS = {
    "rounds": ("Rounds", ",.0f"),
    "steps": ("Steps", ",.0f"),
    "samples": ("Samples seen", ",.0f"),
    "cpu_seconds": ("CPU time", ""),
    "gpu_seconds": ("GPU time", ""),
    "wall_seconds": ("Wall time", ""),
    "bytes_sent": ("Sent", ""),
    "bytes_received": ("Received", ""),
    "peak_memory_mib": ("Peak memory (MiB)", ",.0f"),
    "kwh": ("Energy (Wh)", ""),
}


def ranged(mean: Any, low: Any, high: Any, form: str) -> str:
    """``0.850 (0.830 to 0.870)``."""
    if number(low) is None:
        return shown(mean, form)
    return f"{shown(mean, form)} ({shown(low, form)} to {shown(high, form)})"


def people_table(experiment: Experiment) -> TextTable:
    """Who took part: cases and patients that were tested, and the cases of each split where the runner says them."""
    results, told = experiment.results, site_facts(experiment)
    splits = [split for split in ("training", "validation") if any(split in facts for facts in told.values())]
    outside, body, totals = set(external_sites(experiment)), [], [0, 0]
    for site in experiment.sites:
        tested = results[results["evaluated_at"] == site]
        counts = [tested["case"].nunique(), tested["patient"].nunique()]
        totals = [total + count for total, count in zip(totals, counts, strict=True)]
        role = "tests only" if site in outside else "trains and tests"
        body.append([site, role, *(shown(told.get(site, {}).get(s), ".0f") for s in splits), *map(str, counts)])
    sums = [str(sum(int(facts.get(split) or 0) for facts in told.values())) for split in splits]
    body.append(["All sites", "", *sums, *map(str, totals)])
    header = ["Site", "Role", *(f"{split.capitalize()} cases" for split in splits), "Tested cases", "Tested patients"]
    return TextTable(header, body, 1, 2)


def arm_table(frame: pd.DataFrame, score: Score) -> TextTable:
    """Arms side by side: how good, for whom, how certainly; ``frame`` is ``arm_frame``."""
    form, wide, several = score.form, frame["wide_low"].notna().any(), frame["seeds"].max() > 1
    header = ["Arm", f"Mean {score.title} over sites", f"{score.title} over cases (95% interval)"]
    header += ["Interval with other sites"] * bool(wide) + ["Worst site", "Spread over sites"]
    header += ["SD over seeds"] * bool(several) + ["Cases"]
    body = []
    for arm, row in frame.iterrows():
        cells = [str(arm), shown(row["macro"], form)]
        cells.append(ranged(row["pooled"], row["low"], row["high"], form))
        cells += [f"{shown(row['wide_low'], form)} to {shown(row['wide_high'], form)}"] * bool(wide)
        cells += [f"{shown(row['worst'], form)} ({row['worst_site']})", shown(row["spread"], form)]
        cells += [shown(row["seed_sd"], form)] * bool(several)
        body.append([*cells, str(int(row["cases"]))])
    return TextTable(header, body)


def kind_table(experiment: Experiment) -> TextTable:
    """What each arm is."""
    return TextTable(("Arm", "What it is"), [[arm, arm_words(experiment, arm)] for arm in experiment.arms], 0, 2)


def score_table(experiment: Experiment, scores: Sequence[Score]) -> TextTable:
    """Every score of every arm, mean over sites of the mean over regions."""
    return _over_sites(experiment, {_title(score): (score, MEAN) for score in scores})


def region_table(experiment: Experiment, score: Score) -> TextTable:
    """One score of every arm for each region, mean over sites; empty where there is one region only."""
    regions = regions_of(experiment)
    return (
        _over_sites(experiment, {region: (score, region) for region in regions}) if len(regions) > 1 else TextTable(())
    )


def _over_sites(experiment: Experiment, columns: Mapping[str, tuple[Score, str]]) -> TextTable:
    """A column for each score and region."""
    found = {}
    for name, (score, region) in columns.items():
        means = numbers.comparable(experiment, score.name, region).groupby(["arm", "site"])["value"].mean()
        found[name] = {arm: shown(value, score.form) for arm, value in means.groupby("arm").mean().items()}
    body = [[arm, *(column.get(arm, NOT_AVAILABLE) for column in found.values())] for arm in experiment.arms]
    return TextTable(["Arm", *found], body)


def _title(score: Score) -> str:
    return f"{score.title} ({score.unit})" if score.unit else score.title


def site_table(experiment: Experiment, score: Score) -> TextTable:
    """Each site (rows) under each arm (columns), with intervals."""
    frame = numbers.site_frame(experiment, score)
    body = []
    for site, group in frame.groupby("site"):
        cells = {row.arm: ranged(row.mean, row.low, row.high, score.form) for row in group.itertuples(index=False)}
        counts = str(int(group["cases"].max()))
        body.append([str(site), counts, *(cells.get(arm, NOT_AVAILABLE) for arm in experiment.arms)])
    return TextTable(["Site", "Cases", *experiment.arms], body)


def pair_table(frame: pd.DataFrame, reference: str, score: Score) -> TextTable:
    """Each arm beside the reference; ``frame`` is ``pair_frame``."""
    body = []
    for row in frame.itertuples():
        if number(row.adjusted) is None or row.adjusted >= SIGNIFICANT:
            verdict = "no difference shown"
        else:
            verdict = "better" if score.better(row.difference, 0) else "worse"
        text = ranged(row.difference, row.low, row.high, f"+{score.form}")
        p_values = [_p_value(row.p), _p_value(row.adjusted), _p_value(row.wilcoxon)]
        body.append([row.arm, verdict, text, *p_values, str(int(row.patients))])
    header = (
        "Arm",
        f"Against {reference}",
        f"Difference in {score.title} (95% interval)",
        "p",
        "p (Holm)",
        "p (Wilcoxon)",
        "Patients",
    )
    return TextTable(header, body, 0, 2)


def _p_value(value: Any) -> str:
    known = number(value)
    return "< 0.001" if known is not None and known < 0.001 else shown(known, ".3f")


def matrix_table(means: pd.DataFrame, counts: pd.Series, score: Score) -> TextTable:
    """The numbers of the heat map."""
    body = [
        [str(model), *(shown(v, score.form) for v in row)]
        for model, row in zip(means.index, means.to_numpy(), strict=True)
    ]
    body.append(["Cases", *(str(int(count)) for count in counts)])
    return TextTable(["Model of", *(f"at {site}" for site in means.columns)], body, 1)


def left_out_table(frame: pd.DataFrame, score: Score) -> TextTable:
    """Sites that were left out; ``frame`` is ``left_out_frame``."""
    form, body = score.form, []
    for row in frame.to_dict("records"):
        without = ranged(row["without"], row["low"], row["high"], form)
        cells = [without, shown(row["with"], form), shown(row["difference"], f"+{form}"), str(int(row["cases"]))]
        body.append([row["arm"], row["site"], *cells])
    header = ("Arm", "Site left out", f"{score.title} without it (95% interval)", "With it", "Difference", "Cases")
    return TextTable(header, body, 0, 2)


def external_table(frame: pd.DataFrame, score: Score) -> TextTable:
    """Sites that only tested; ``frame`` is ``external_frame``."""
    body = [
        [row["arm"], row["site"], ranged(row["mean"], row["low"], row["high"], score.form), str(int(row["cases"]))]
        for row in frame.to_dict("records")
    ]
    return TextTable(("Arm", "Site that only tests", f"{score.title} (95% interval)", "Cases"), body, 0, 2)


def cost_table(experiment: Experiment) -> TextTable:
    """What one training of each arm cost."""
    frame = numbers.cost_frame(experiment)
    if frame.empty:
        return TextTable(())
    known = {name: _COSTS[name] for name in _COSTS if name in frame}
    body = []
    for arm, row in frame.iterrows():
        cells = [_cost(name, row[name], form) for name, (_, form) in known.items()]
        body.append([str(arm), str(int(row["trainings"])), *cells])
    return TextTable(["Arm", "Trainings", *(title for title, _ in known.values())], body)


def _cost(name: str, value: Any, form: str) -> str:
    if name.startswith("bytes_"):
        return shown_bytes(value)
    if name == "kwh":
        return shown_watt_hours(value)
    return shown_seconds(value) if name.endswith("_seconds") else shown(value, form)


def worst_table(cases: pd.DataFrame, score: Score, names: bool) -> TextTable:
    """The worst cases of each site: with the names of case and patient for the site itself, without for others."""
    header = ["Site", "Rank from the worst", *(["Case", "Patient"] if names else []), score.title]
    body = [
        [
            row["site"],
            str(row["rank"]),
            *([row["case"], row["patient"]] if names else []),
            shown(row["value"], score.form),
        ]
        for row in cases.to_dict("records")
    ]
    return TextTable(header, body, 0, 4 if names else 1)


def facts_table(experiment: Experiment) -> TextTable:
    """Versions, machine, digests of the definition, the data and the files from which the page was made."""
    facts = experiment.facts
    rows = {
        **{f"version of {name}": value for name, value in part(facts, "versions").items()},
        **{f"machine: {name.replace('_', ' ')}": value for name, value in part(facts, "machine").items()},
        **{f"time: {name}": facts.get(name) for name in ("started", "finished")},
        "SHA-256 of the definition": facts.get("digest"),
        **{f"SHA-256 of the data of {site}": told.get("digest") for site, told in site_facts(experiment).items()},
        **{f"SHA-256 of {name}": value for name, value in experiment.digests.items()},
    }
    return TextTable(("What", "Value"), [[name, plain(value) or "none"] for name, value in rows.items()], 0, 2)

"""The numbers of a run's summary as tables: pandas frames for pages and files, a rich table for the console."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from rich.table import Table

from fedseg.contract.round_numbers import nth
from fedseg.evaluation.summary import Summary, mean_score, number, objective_of_run, part, rows, site_names
from fedseg.tasks.objective import MEAN, SCORED, Objective, mean

MEAN_OF_SITES, MEAN_OF_CASES = "Mean over sites", "Mean over cases"


def score_frame(summary: Summary, model: str = "final") -> pd.DataFrame:
    """Results of the ``final``, ``best`` or ``average`` model: one row per site, then means over sites and over cases.

    Columns: ``Cases``, then for each score ``<score> <output>``..., and ``<score> mean`` for the primary one: ``Dice
    <region>``..., ``Dice mean``, ``HD95 <region>``... (mm) in segmentation. Undefined values are NaN.
    """
    kind, scored = objective_of_run(summary), part(summary, model, "sites")
    records = {site: _score_record(kind, scored[site]) for site in site_names(summary) if site in scored}
    frame = pd.DataFrame.from_dict(records, orient="index", dtype=float)
    if frame.empty:
        return frame
    frame.loc[MEAN_OF_SITES] = frame.mean()
    frame.loc[MEAN_OF_SITES, "Cases"] = frame["Cases"].iloc[:-1].sum()
    given = number(part(summary, model).get(f"mean_{kind.primary.name}"))
    if given is not None:
        frame.loc[MEAN_OF_SITES, mean_column(kind)] = given
    pooled = number(part(summary, model).get(f"pooled_{kind.primary.name}"))
    if pooled is None and not len(records) > 1:
        return frame
    return _add_mean_of_cases(frame, scored, kind, pooled)


def beside_frame(summary: Summary, which: str) -> pd.DataFrame:
    """The primary score of what each site has for itself beside that of the final model, and its mean over the sites.

    Columns: ``final`` and ``own`` (means over the outputs), ``difference``, then ``<output>``... of the own model.
    Empty where no site has one.

    Args:
        summary: of the run.
        which: one of ``contract.scores.BESIDE``.
    """
    kind, records = objective_of_run(summary), {}
    for site, scored in part(summary, "final", "sites").items():
        if which in scored:
            own = part(scored, which, kind.primary.name)
            records[site] = {"final": mean_score(scored.get(kind.primary.name)), "own": mean_score(own)}
            records[site] |= {output: number(own.get(output)) for output in kind.outputs}
    frame = pd.DataFrame.from_dict(records, orient="index", dtype=float)
    if not frame.empty:
        frame.insert(2, "difference", frame["own"] - frame["final"])
        frame.loc[MEAN_OF_SITES] = frame.mean()
    return frame


def mean_column(kind: Objective) -> str:
    """Column of ``score_frame`` with the one number of a site."""
    return f"{kind.primary.title} {MEAN}"


def _score_record(kind: Objective, scored: Mapping[str, Any]) -> dict[str, float | None]:
    """One site's line of ``score_frame``."""
    record = {"Cases": number(scored.get("cases"))}
    for score in kind.scores:
        values = part(scored, score.name)
        record |= {f"{score.title} {output}": number(values.get(output)) for output in kind.outputs}
        if score == kind.primary:
            record[mean_column(kind)] = mean_score(values)
    return record


def _add_mean_of_cases(
    frame: pd.DataFrame, scored: Mapping[str, Any], kind: Objective, pooled: float | None
) -> pd.DataFrame:
    """The row in which every case counts once: a site's mean weighs as much as it has cases with a score."""
    sites = frame.index[:-1]
    result = {"Cases": frame.loc[MEAN_OF_SITES, "Cases"]}
    for output in kind.outputs:
        for score in kind.scores:
            counts = pd.Series({s: _cases_with(scored[s], score.name, output) for s in sites}, dtype=float)
            counts = counts.fillna(frame.loc[sites, "Cases"])
            column = f"{score.title} {output}"
            values = frame.loc[sites, column]
            weights = counts.where(values.notna())
            result[column] = (values * weights).sum() / weights.sum() if weights.sum() > 0 else float("nan")
    over_outputs = pd.Series([result[f"{kind.primary.title} {output}"] for output in kind.outputs]).mean()
    frame.loc[MEAN_OF_CASES] = {**result, mean_column(kind): over_outputs if pooled is None else pooled}
    return frame


def _cases_with(scored: Any, score: str, output: str) -> float | None:
    """How many cases of a site have a score of an output; None where its summary does not say."""
    return number((part(scored, SCORED, score) or part(scored, "defined")).get(output))


def history_frame(summary: Summary) -> pd.DataFrame:
    """Training, long form: one row per round (from 1) and site; the primary score (``Dice``) is the mean over the
    outputs, with the name of an output (``Dice <region>``) that of one.

    Validation is that of the model that the site received: ``made`` is the round after which it was made, 0 for the
    start. The last model has rows without a round where the last evaluation scored it on validation cases. ``weight``
    is that in the aggregation, ``scale`` the factor of the update besides (1 where the rule had none),
    ``cases`` the training cases.
    """
    records, primary = [], objective_of_run(summary).primary
    for entry in rows(summary, "rounds"):
        weights, scales = part(entry, "weights"), part(entry, "scales")
        for site in dict.fromkeys([*part(entry, "sites"), *weights]):
            report = part(entry, "sites", site)
            made = int(number(entry.get("round")) or 0)
            record = {"round": nth(made), "made": made, "site": site, "weight": number(weights.get(site))}
            record |= {"scale": number(scales.get(site, 1.0)), "cases": number(report.get("num_samples"))}
            for key in ("train_loss", "val_loss", "bytes_up", "bytes_down", "seconds"):
                record[key] = number(report.get(key))
            records.append(record | _validation(primary.title, report.get(f"val_{primary.name}")))
    for site, told in part(summary, "final", "validation").items() if records else ():
        last = {"made": len(rows(summary, "rounds")), "site": site, "val_loss": number(part(told).get("loss"))}
        records.append(last | _validation(primary.title, part(told).get(primary.name)))
    return pd.DataFrame.from_records(records)


def _validation(title: str, scores: Any) -> dict[str, float | None]:
    """The columns of ``history_frame`` with the primary score."""
    each = {f"{title} {r}": number(v) for r, v in scores.items() if r != MEAN} if isinstance(scores, Mapping) else {}
    return {title: mean_score(scores), **each}


def comparison_frame(summary: Summary) -> pd.DataFrame:
    """Other ways to get a segmentation beside the federated model on the same sites.

    Columns: ``name``, ``description``, ``sites`` (how many it was scored at), ``score`` (the primary one),
    ``federated`` (the final model at exactly these sites), ``difference`` (federated minus score; NaN where either is
    undefined).
    """
    final, name = part(summary, "final", "sites"), objective_of_run(summary).primary.name
    records = []
    for entry in rows(summary, "comparison"):
        scored = part(entry, "sites")
        own = number(entry.get(f"mean_{name}"))
        own = own if own is not None else mean([_compared(entry, part(scored, s).get(name)) for s in scored])
        federated = mean([_compared(entry, part(final, s).get(name)) for s in scored])
        federated = federated if scored else number(part(summary, "final").get(f"mean_{name}"))
        records.append(
            {
                "name": str(entry.get("name", "unnamed")),
                "description": str(entry.get("description") or ""),
                "sites": len(scored),
                "score": own,
                "federated": federated,
                "difference": federated - own if federated is not None and own is not None else None,
            }
        )
    columns = ["name", "description", "sites", "score", "federated", "difference"]
    return pd.DataFrame.from_records(records, columns=columns).astype(dict.fromkeys(columns[3:], float))


def _compared(entry: Mapping[str, Any], scores: Any) -> float | None:
    """The mean of a site's scores over the outputs that the other way has at all, so that both sides mean the same."""
    outputs = entry.get("regions")
    if not outputs or not isinstance(scores, Mapping):
        return mean_score(scores)
    return mean([number(scores.get(output)) for output in outputs])


def cross_site_frame(summary: Summary) -> pd.DataFrame:
    """Mean score of the model trained at each row's site at each column's site; ``federated`` is the last row."""
    matrix = part(summary, "cross_site")
    order = [*(s for s in site_names(summary) if s in matrix), *matrix]
    index = list(dict.fromkeys([*(s for s in order if s != "federated"), *(s for s in order if s == "federated")]))
    scored = {site for line in matrix.values() for site in part(line)}
    columns = [*(s for s in site_names(summary) if s in scored), *sorted(scored - set(site_names(summary)))]
    values = [[number(part(matrix, i).get(c)) for c in columns] for i in index]
    return pd.DataFrame(values, index=index, columns=columns, dtype=float)


def cost_frame(summary: Summary) -> pd.DataFrame:
    """What a site spends: ``bytes up``, ``bytes down`` and ``seconds`` summed over rounds, and rounds taken part in."""
    history = history_frame(summary)
    if history.empty:
        return history
    columns = {"bytes_up": "bytes up", "bytes_down": "bytes down", "seconds": "seconds"}
    groups = history.rename(columns=columns).groupby("site", sort=False)
    frame = groups[list(columns.values())].sum(min_count=1)
    frame.insert(0, "rounds", groups["round"].count())
    return frame.loc[[s for s in site_names(summary) if s in frame.index]]


def result_table(summary: Summary, model: str = "final") -> Table:
    """The primary score per site and output, for the console."""
    frame, kind = score_frame(summary, model), objective_of_run(summary)
    title, form = kind.primary.title, kind.primary.form
    split = part(summary, model).get("split") or "scored"
    table = Table(title=f"{title} of the {model} model on the {split} cases", title_justify="left")
    table.add_column("Site")
    outputs = [*kind.outputs, *([MEAN] if len(kind.outputs) > 1 else [])]
    for name in ("Cases", *outputs):
        table.add_column(name, justify="right")
    for site, row in frame.iterrows():
        if str(site) == MEAN_OF_SITES:
            table.add_section()
        cells = [row.get(f"{title} {output}") for output in outputs]
        table.add_row(str(site), _cell(row["Cases"], ".0f"), *(_cell(value, form) for value in cells))
    return table


def _cell(value: Any, form: str) -> str:
    return format(value, form) if number(value) is not None else "n/a"

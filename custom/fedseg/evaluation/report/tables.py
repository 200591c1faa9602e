"""The numbers of a run's summary as tables: pandas frames for pages and files, a rich table for the console."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from rich.table import Table

from fedseg.evaluation.summary import Summary, mean, mean_dice, number, part, rows, site_names, task_of

MEAN_OF_SITES, MEAN_OF_CASES = "Mean over sites", "Mean over cases"
EMPTY_KINDS = {
    "both": "in both (agreement)",
    "reference": "only in the reference (false alarm)",
    "prediction": "only in the prediction (missed)",
}


def score_frame(summary: Summary, model: str = "final") -> pd.DataFrame:
    """Results of the ``final`` or ``best`` model: one row per site, then the mean over sites and over cases.

    Columns: ``Cases``, ``Dice <region>``..., ``Dice mean``, ``HD95 <region>``... (mm). Undefined values are NaN.
    """
    regions = task_of(summary).region_names
    scored = part(summary, model, "sites")
    records: dict[str, dict[str, float | None]] = {}
    for site in [s for s in site_names(summary) if s in scored]:
        record = {"Cases": number(scored[site].get("cases"))}
        dice, hd95 = part(scored[site], "dice"), part(scored[site], "hd95")
        record |= {f"Dice {r}": number(dice.get(r)) for r in regions} | {"Dice mean": mean_dice(dice)}
        records[site] = record | {f"HD95 {r}": number(hd95.get(r)) for r in regions}
    frame = pd.DataFrame.from_dict(records, orient="index", dtype=float)
    if frame.empty:
        return frame
    frame.loc[MEAN_OF_SITES] = frame.mean()
    frame.loc[MEAN_OF_SITES, "Cases"] = frame["Cases"].iloc[:-1].sum()
    given = number(part(summary, model).get("mean_dice"))
    if given is not None:
        frame.loc[MEAN_OF_SITES, "Dice mean"] = given
    pooled = number(part(summary, model).get("pooled_dice"))
    if pooled is None and not len(records) > 1:
        return frame
    return _add_mean_of_cases(frame, scored, regions, pooled)


def _add_mean_of_cases(
    frame: pd.DataFrame, scored: Mapping[str, Any], regions: Sequence[str], pooled: float | None
) -> pd.DataFrame:
    """The row in which every case counts once: a site's mean weighs as much as it has cases with a score."""
    sites = frame.index[:-1]
    result = {"Cases": frame.loc[MEAN_OF_SITES, "Cases"]}
    for region in regions:
        counts = pd.Series({s: number(part(scored[s], "defined").get(region)) for s in sites}, dtype=float)
        counts = counts.fillna(frame.loc[sites, "Cases"])
        for column in (f"Dice {region}", f"HD95 {region}"):
            values = frame.loc[sites, column]
            weights = counts.where(values.notna())
            result[column] = (values * weights).sum() / weights.sum() if weights.sum() > 0 else float("nan")
    over_regions = pd.Series([result[f"Dice {r}"] for r in regions]).mean()
    frame.loc[MEAN_OF_CASES] = {**result, "Dice mean": over_regions if pooled is None else pooled}
    return frame


def empty_frame(summary: Summary, model: str = "final") -> pd.DataFrame:
    """Cases with an empty region: one row per site and region that has any, one column per kind."""
    records = []
    for site, result in part(summary, model, "sites").items():
        for region, counts in part(result, "empty").items():
            found = {text: int(number(part(counts).get(kind)) or 0) for kind, text in EMPTY_KINDS.items()}
            if any(found.values()):
                records.append({"Site": site, "Region": region, **found})
    return pd.DataFrame.from_records(records)


def history_frame(summary: Summary) -> pd.DataFrame:
    """Training, long form: one row per round and site; ``Dice`` is the mean of the regions, ``Dice <region>`` each.

    ``weight`` is that in the aggregation, ``scale`` the factor of the update besides (1 where the rule had none),
    ``cases`` the training cases.
    """
    records = []
    for entry in rows(summary, "rounds"):
        weights, scales = part(entry, "weights"), part(entry, "scales")
        for site in dict.fromkeys([*part(entry, "sites"), *weights]):
            report = part(entry, "sites", site)
            record = {"round": entry.get("round"), "site": site, "weight": number(weights.get(site))}
            record |= {"scale": number(scales.get(site, 1.0)), "cases": number(report.get("num_samples"))}
            for key in ("train_loss", "val_loss", "bytes_up", "bytes_down", "seconds"):
                record[key] = number(report.get(key))
            dice = report.get("val_dice")
            record["Dice"] = mean_dice(dice)
            if isinstance(dice, Mapping):
                record |= {f"Dice {r}": number(value) for r, value in dice.items() if r != "mean"}
            records.append(record)
    return pd.DataFrame.from_records(records)


def comparison_frame(summary: Summary) -> pd.DataFrame:
    """Other ways to get a segmentation beside the federated model on the same sites.

    Columns: ``name``, ``description``, ``sites`` (how many it was scored at), ``dice``, ``federated`` (the final model
    at exactly these sites), ``difference`` (federated minus dice; NaN where either is undefined).
    """
    final = part(summary, "final", "sites")
    records = []
    for entry in rows(summary, "comparison"):
        scored = part(entry, "sites")
        own = number(entry.get("mean_dice"))
        own = own if own is not None else mean([compared_dice(entry, scored, s) for s in scored])
        federated = mean([compared_dice(entry, final, s) for s in scored])
        federated = federated if scored else number(part(summary, "final").get("mean_dice"))
        records.append(
            {
                "name": str(entry.get("name", "unnamed")),
                "description": str(entry.get("description") or ""),
                "sites": len(scored),
                "dice": own,
                "federated": federated,
                "difference": federated - own if federated is not None and own is not None else None,
            }
        )
    columns = ["name", "description", "sites", "dice", "federated", "difference"]
    return pd.DataFrame.from_records(records, columns=columns).astype(dict.fromkeys(columns[3:], float))


def compared_dice(entry: Mapping[str, Any], sites: Mapping[str, Any], site: str) -> float | None:
    """A site's Dice over the regions that the other way segments at all, so that both sides mean the same."""
    dice, regions = part(sites, site).get("dice"), entry.get("regions")
    if not regions or not isinstance(dice, Mapping):
        return mean_dice(dice)
    return mean([number(dice.get(region)) for region in regions])


def cross_site_frame(summary: Summary) -> pd.DataFrame:
    """Mean Dice of the model trained at each row's site at each column's site; ``federated`` is the last row."""
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


def privacy_frame(summary: Summary) -> pd.DataFrame:
    """One row per site with whatever its mechanism states (epsilon, delta, noise...)."""
    return pd.DataFrame.from_dict(part(summary, "privacy", "sites"), orient="index")


def dice_table(summary: Summary, model: str = "final") -> Table:
    """Dice per hospital and region, for the console."""
    frame = score_frame(summary, model)
    split = part(summary, model).get("split") or "scored"
    table = Table(title=f"Dice of the {model} model on the {split} cases", title_justify="left")
    table.add_column("Hospital")
    regions = [*task_of(summary).region_names, "mean"]
    for name in ("Cases", *regions):
        table.add_column(name, justify="right")
    for site, row in frame.iterrows():
        if str(site) == MEAN_OF_SITES:
            table.add_section()
        cells = [row.get(f"Dice {region}") for region in regions]
        table.add_row(str(site), _cell(row["Cases"], ".0f"), *(_cell(value, ".3f") for value in cells))
    return table


def _cell(value: Any, form: str) -> str:
    return format(value, form) if number(value) is not None else "n/a"

"""The numbers of an experiment's page against slow loops over the rows of its table, and against numbers by hand."""

from __future__ import annotations

import csv
import math
import statistics
from collections import defaultdict
from pathlib import Path

import pandas as pd
import pytest

from evaluation.synthetic_experiment import GAIN, OWN, SITES, write_experiment
from fedseg.evaluation.experiment_folder import RESULT_COLUMNS, Experiment, read_experiment
from fedseg.evaluation.report.experiment import numbers
from fedseg.tasks.objective import Score

DICE = Score("dice", "Dice", highest=1.0)
HD95 = Score("hd95", "HD95", "mm", higher_is_better=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_experiment(tmp_path_factory.mktemp("experiment"))


@pytest.fixture(scope="module")
def experiment(folder: Path) -> Experiment:
    return read_experiment(folder)


def rows(folder: Path, **wanted: str) -> list[dict[str, str]]:
    with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if all(row[name] == value for name, value in wanted.items())]


def site_means(folder: Path, arm: str, metric: str = "dice", fold: str = "-") -> dict[str, float]:
    """Mean over the cases of each site at home, seeds averaged first, in plain Python."""
    cases: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows(folder, arm=arm, metric=metric, region="mean", fold=fold):
        if row["site"] in ("-", row["evaluated_at"]) and row["value"]:
            cases[row["evaluated_at"], row["case"]].append(float(row["value"]))
    sites: dict[str, list[float]] = defaultdict(list)
    for (site, _), values in cases.items():
        sites[site].append(statistics.fmean(values))
    return {site: statistics.fmean(values) for site, values in sites.items()}


@pytest.mark.parametrize("arm", list(GAIN))
@pytest.mark.parametrize("score", [DICE, HD95], ids=lambda score: score.name)
def test_arms_equal_a_slow_loop(folder: Path, experiment: Experiment, arm: str, score: Score) -> None:
    row = numbers.arm_frame(experiment, score).loc[arm]
    means = site_means(folder, arm, score.name)
    assert row["macro"] == pytest.approx(statistics.fmean(means.values()))
    assert row["pooled"] == pytest.approx(sum(means[s] * n for s, n in SITES.items()) / sum(SITES.values()))
    worst = min if score.higher_is_better else max
    assert row["worst_site"] == worst(means, key=lambda site: means[site])
    assert row["worst"] == pytest.approx(worst(means.values()))
    assert row["spread"] == pytest.approx(statistics.pstdev(means.values()))
    assert (row["sites"], row["cases"], row["patients"], row["seeds"]) == (4, 32, 32, 3)
    assert row["low"] < row["pooled"] < row["high"]
    assert row["wide_high"] - row["wide_low"] > row["high"] - row["low"]
    assert math.isnan(row["elsewhere"]) == (arm not in OWN)


def test_seeds_are_repetitions_not_patients(folder: Path, experiment: Experiment) -> None:
    row = numbers.arm_frame(experiment, DICE).loc["fedavg"]
    macros = []
    for seed in "012":
        sites = defaultdict(list)
        for each in rows(folder, arm="fedavg", metric="dice", region="mean", fold="-", seed=seed):
            sites[each["evaluated_at"]].append(float(each["value"]))
        macros.append(statistics.fmean(map(statistics.fmean, sites.values())))
    assert row["seed_sd"] == pytest.approx(statistics.stdev(macros))


def test_the_matrix_has_the_worst_first(folder: Path, experiment: Experiment) -> None:
    means, counts = numbers.matrix(experiment, "local", DICE)
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows(folder, arm="local", metric="dice", region="mean"):
        values[row["site"], row["evaluated_at"]].append(float(row["value"]))
    for (model, place), found in values.items():
        assert means.loc[model, place] == pytest.approx(statistics.fmean(found))
    away = {m: statistics.fmean([v for (a, b), vs in values.items() if a == m != b for v in vs]) for m in SITES}
    assert list(means.index) == sorted(away, key=lambda model: away[model])
    assert next(iter(means.columns)) == "west"
    assert dict(counts) == SITES


def test_sites_left_out_beside_the_same_arm_with_them(folder: Path, experiment: Experiment) -> None:
    frame = numbers.left_out_frame(experiment, DICE).set_index("site")
    together = site_means(folder, "fedavg")
    for site in SITES:
        alone = site_means(folder, "fedavg", fold=f"loso-{site}")[site]
        assert frame.loc[site, "without"] == pytest.approx(alone)
        assert frame.loc[site, "with"] == pytest.approx(together[site])
        assert frame.loc[site, "difference"] == pytest.approx(alone - together[site])
    assert set(frame["arm"]) == {"fedavg"}


def test_pairs_are_of_the_same_patients(folder: Path, experiment: Experiment) -> None:
    frame = numbers.pair_frame(experiment, DICE, "local").set_index("arm")
    assert set(frame.index) == set(GAIN) - {"local"}
    a, b = site_means(folder, "fedavg"), site_means(folder, "local")
    expected = sum((a[site] - b[site]) * count for site, count in SITES.items()) / sum(SITES.values())
    assert frame.loc["fedavg", "difference"] == pytest.approx(expected)
    assert frame.loc["fedavg", "patients"] == sum(SITES.values())
    ordered = frame.sort_values("p")
    assert ordered["adjusted"].iloc[0] == pytest.approx(min(1.0, len(frame) * ordered["p"].iloc[0]))
    assert (frame["adjusted"] >= frame["p"]).all()


def test_worst_cases_are_those_with_the_lowest_scores(folder: Path, experiment: Experiment) -> None:
    worst = numbers.worst_cases(experiment, "fedavg", DICE, 2)
    cases: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows(folder, arm="fedavg", metric="dice", region="mean", fold="-"):
        cases[row["evaluated_at"], row["case"]].append(float(row["value"]))
    for site in SITES:
        order = sorted((statistics.fmean(v), case) for (s, case), v in cases.items() if s == site)
        found = worst[worst["site"] == site]
        assert list(zip(found["value"], found["case"], strict=True)) == [(pytest.approx(v), c) for v, c in order[:2]]
        assert list(found["rank"]) == [1, 2]


def test_costs_are_those_of_one_training(experiment: Experiment) -> None:
    frame = numbers.cost_frame(experiment)
    costs = experiment.costs
    kwh = costs[(costs["arm"] == "fedavg") & (costs["quantity"] == "kwh")]["value"]
    memory = costs[(costs["arm"] == "fedavg") & (costs["quantity"] == "peak_memory_mib")]["value"]
    row = frame.loc["fedavg"]
    assert row["kwh"] == pytest.approx(kwh.mean())
    assert row["total_kwh"] == pytest.approx(kwh.sum())
    assert row["peak_memory_mib"] == memory.max()
    assert (row["trainings"], row["samples"]) == (3, 7200)


def test_a_signed_score_is_best_at_zero() -> None:
    """Names, sites and cases by how far they are from 0, whichever side: by hand."""
    error = Score("dice", "Error", lowest=-1.0, zero_is_best=True, higher_is_better=False)
    found = by_hand(
        [
            ("one", "-", "-", "x", "a", -0.3), ("one", "-", "-", "x", "b", 0.2), ("one", "-", "-", "y", "c", 0.9),
            ("two", "-", "x", "x", "a", 0.1), ("two", "-", "x", "y", "c", -0.6), ("two", "-", "y", "x", "a", 0.4),
            ("two", "-", "y", "y", "c", -0.05),
        ]
    )  # fmt: skip
    assert error.order({"a": -0.3, "b": 0.2, "c": 0.9}) == ["b", "a", "c"]
    assert error.order({"a": -0.3, "b": 0.2, "c": 0.9}, worst_first=True) == ["c", "a", "b"]
    assert list(numbers.worst_cases(found, "one", error, 2)["case"]) == ["a", "b", "c"]
    means, _ = numbers.matrix(found, "two", error)
    assert (list(means.index), list(means.columns)) == (["x", "y"], ["y", "x"]), "0.25 at x and -0.325 at y"
    arms = numbers.arm_frame(found, error)
    assert (arms.loc["one", "worst_site"], arms.loc["one", "worst"]) == ("y", pytest.approx(0.9))
    assert error.order(arms["macro"].to_dict()) == ["two", "one"]


def by_hand(lines: list[tuple[str, str, str, str, str, float]], **facts: object) -> Experiment:
    """An experiment of ``(arm, fold, site, evaluated_at, case, dice)``, a patient a case."""
    table = [["e", a, 0, f, s, at, c, c, "mean", "dice", v, "neither"] for a, f, s, at, c, v in lines]
    nothing = pd.DataFrame()
    return Experiment(Path(), facts, pd.DataFrame(table, columns=list(RESULT_COLUMNS)), nothing, nothing)


def test_arms_are_compared_where_all_have_a_score() -> None:
    experiment = by_hand(
        [
            ("fedavg", "-", "-", "a", "1", 0.8),
            ("fedavg", "-", "-", "outside", "2", 0.2),
            ("local", "-", "a", "a", "1", 0.7),
            ("local", "-", "a", "outside", "2", 0.1),
        ]
    )
    frame = numbers.arm_frame(experiment, DICE)
    assert frame["macro"].to_dict() == pytest.approx({"fedavg": 0.8, "local": 0.7})
    assert frame.loc["local", "elsewhere"] == pytest.approx(0.1)
    outside = numbers.external_frame(experiment, DICE, ["outside"]).set_index("arm")
    assert outside["mean"].to_dict() == pytest.approx({"fedavg": 0.2, "local": 0.1})


def test_sites_that_only_test_are_not_in_the_means_of_shared_models_either() -> None:
    scores = [("fedavg", "a", 0.8), ("fedavg", "outside", 0.2), ("central", "a", 0.9), ("central", "outside", 0.5)]
    lines = [(arm, "-", "-", site, site, value) for arm, site, value in scores]
    experiment = by_hand(lines, external={"outside": {"test": 1}})
    frame = numbers.arm_frame(experiment, DICE)
    assert frame["macro"].to_dict() == pytest.approx({"fedavg": 0.8, "central": 0.9})
    assert frame["sites"].to_dict() == {"fedavg": 1, "central": 1}
    outside = numbers.external_frame(experiment, DICE, ["outside"]).set_index("arm")
    assert outside["mean"].to_dict() == pytest.approx({"fedavg": 0.2, "central": 0.5})


def test_arms_of_an_incomplete_experiment_are_judged_on_the_same_cases() -> None:
    """Without the second case, which one arm has not been tested on; where no case is common, on what each has."""
    lines = [
        ("fedavg", "-", "-", "a", "1", 0.8),
        ("fedavg", "-", "-", "a", "2", 0.2),
        ("central", "-", "-", "a", "1", 0.6),
    ]
    frame = numbers.arm_frame(by_hand(lines), DICE)
    assert frame["pooled"].to_dict() == pytest.approx({"fedavg": 0.8, "central": 0.6})
    assert frame["cases"].to_dict() == {"fedavg": 1, "central": 1}
    frame = numbers.arm_frame(by_hand(lines[1:]), DICE)
    assert frame["pooled"].to_dict() == pytest.approx({"fedavg": 0.2, "central": 0.6})


def test_where_every_fold_leaves_a_site_out_that_site_counts() -> None:
    experiment = by_hand(
        [
            ("fedavg", "loso-a", "-", "a", "1", 0.5),
            ("fedavg", "loso-a", "-", "b", "2", 0.9),
            ("fedavg", "loso-b", "-", "b", "2", 0.6),
        ]
    )
    assert numbers.arm_frame(experiment, DICE).loc["fedavg", "macro"] == pytest.approx(0.55)
    frame = numbers.left_out_frame(experiment, DICE).set_index("site")
    assert frame["without"].to_dict() == pytest.approx({"a": 0.5, "b": 0.6})
    assert frame["with"].isna().all()


def test_a_site_that_was_left_out_has_the_mean_of_the_others_own_models() -> None:
    experiment = by_hand(
        [
            ("local", "loso-a", "b", "a", "1", 0.4),
            ("local", "loso-a", "c", "a", "1", 0.6),
            ("fedavg", "loso-a", "-", "a", "1", 0.7),
        ]
    )
    frame = numbers.arm_frame(experiment, DICE)
    assert frame["macro"].to_dict() == pytest.approx({"local": 0.5, "fedavg": 0.7})
    assert frame["cases"].to_dict() == {"local": 1, "fedavg": 1}
    assert numbers.left_out_frame(experiment, DICE)["cases"].tolist() == [1, 1]


def test_own_models_beside_a_shared_one_are_an_arm_apart(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path / "e", arms=("fedavg", "ditto"), seeds=1, left_out=False)
    text = (folder / "results.csv").read_text("utf-8")
    (folder / "results.csv").write_text(text.replace(",fedavg,", ",ditto,"), "utf-8")
    found = read_experiment(folder)
    assert found.arms == ["ditto", "ditto (own)"]
    frame = numbers.arm_frame(found, DICE)
    assert frame["cases"].to_dict() == dict.fromkeys(frame.index, 32)
    assert math.isnan(frame.loc["ditto", "elsewhere"]), "it has one model"
    assert frame.loc["ditto (own)", "elsewhere"] < frame.loc["ditto (own)", "macro"]


def test_one_patient_has_no_interval() -> None:
    row = numbers.arm_frame(by_hand([("fedavg", "-", "-", "a", "1", 0.5)]), DICE).loc["fedavg"]
    assert row["macro"] == 0.5
    assert row["low"] is None
    assert math.isnan(row["seed_sd"])

"""Ranks of runs: numbers by hand, scipy's ranks, refusals, and the command."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from evaluation.synthetic_run import CASES, SITES, make_summary, write_case_scores, write_run
from fedseg.cli import main
from fedseg.errors import ConfigurationError, DataError
from fedseg.evaluation.case_tables import (
    final_cases,
    last_validation_dice,
    patient_scores,
    read_case_scores,
    validation_counts,
)
from fedseg.evaluation.fets.convergence import convergence_score
from fedseg.evaluation.fets.ranking import check_comparable, rank_cases
from fedseg.evaluation.paired_tests import compare_arms
from fedseg.evaluation.summary import read_summary
from fedseg.tasks.registry import resolve_task
from fedseg.tasks.segmentation.metrics import CaseScore
from fedseg.tasks.segmentation.objective import Segmentation
from fedseg.workflows.run.scores import mean_over_cases


def frame(**columns: list[float]) -> pd.DataFrame:
    """Scores of cases of site a; ``dice_x`` is the column ``Dice x``."""
    names = {"dice": "Dice", "hd95": "HD95"}
    content = {f"{names[key.partition('_')[0]]} {key.partition('_')[2]}": values for key, values in columns.items()}
    count = len(next(iter(columns.values())))
    index = pd.MultiIndex.from_tuples(
        [("a", "validation", f"{i}.nii.gz") for i in range(count)], names=["site", "split", "label"]
    )
    return pd.DataFrame(content, index=index, dtype=float)


HAND = {
    "A": frame(dice_x=[0.9, 0.5], hd95_x=[5.0, 1.0]),
    "B": frame(dice_x=[0.8, 0.5], hd95_x=[2.0, float("inf")]),
    "C": frame(dice_x=[0.8, 0.5], hd95_x=[9.0, 1.0]),
}
HAND_CONVERGENCE = {"A": 0.3, "B": 0.6, "C": 0.1}


def test_by_hand() -> None:
    ranks = rank_cases(HAND, HAND_CONVERGENCE)
    # Case 0: Dice ranks 1, 2.5, 2.5; HD95 2, 1, 3; convergence 2, 1, 3 three times; each sum over 5.
    assert ranks.iloc[0].tolist() == pytest.approx([(1 + 2 + 6) / 5, (2.5 + 1 + 3) / 5, (2.5 + 3 + 9) / 5])
    # Case 1: Dice all equal: 2, 2, 2; HD95 1.5, 3 (infinite), 1.5.
    assert ranks.iloc[1].tolist() == pytest.approx([(2 + 1.5 + 6) / 5, (2 + 3 + 3) / 5, (2 + 1.5 + 9) / 5])
    assert ranks.mean().tolist() == pytest.approx([1.85, 1.45, 2.7])


def test_without_convergence_only_cases_count() -> None:
    assert rank_cases(HAND, HAND_CONVERGENCE, weight=0).iloc[0].tolist() == pytest.approx([1.5, 1.75, 2.75])


def test_what_the_convention_leaves_out_is_not_ranked() -> None:
    nan = float("nan")
    runs = {
        "A": frame(dice_x=[0.9, nan], hd95_x=[3.0, nan], dice_y=[nan, nan], hd95_y=[nan, nan]),
        "B": frame(dice_x=[0.7, nan], hd95_x=[2.0, nan], dice_y=[nan, nan], hd95_y=[nan, nan]),
    }
    ranks = rank_cases(runs, {"A": 0.5, "B": 0.4})
    # One region of the first case is left: ((1 + 2) + 3 * 1) / 5 and ((2 + 1) + 3 * 2) / 5; the second case has none.
    assert ranks.to_numpy() == pytest.approx(np.array([[1.2, 1.8]]))
    with pytest.raises(DataError, match="no case has a score"):
        rank_cases({name: table.iloc[1:] for name, table in runs.items()}, {"A": 0.5, "B": 0.4})


def test_a_score_in_one_run_only_is_refused() -> None:
    runs = {"A": frame(dice_x=[0.9]), "B": frame(dice_x=[float("nan")])}
    with pytest.raises(DataError, match="Dice x in one run and none in another"):
        rank_cases(runs, {"A": 0.5, "B": 0.4})


SCORES = st.integers(2, 4).flatmap(
    lambda runs: st.integers(1, 4).flatmap(
        lambda cases: st.lists(
            # Few values, so that ties are common.
            st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=cases, max_size=cases),
            min_size=runs + 1,
            max_size=runs + 1,
        )
    )
)


@given(SCORES, st.floats(0, 5))
def test_as_scipy_ranks(drawn: list[list[list[int]]], weight: float) -> None:
    """Case after case, metric after metric, with ``scipy.stats.rankdata``."""
    *values, extra = (np.array(v, float) for v in drawn)
    names = [f"run-{i}" for i in range(len(values))]
    convergence = {name: float(extra.ravel()[i]) / 4 for i, name in enumerate(names)}
    runs = {
        name: frame(dice_x=v[:, 0], dice_y=v[:, 1], hd95_x=v[:, 2], hd95_y=v[:, 3])
        for name, v in zip(names, values, strict=True)
    }
    ranks = rank_cases(runs, convergence, weight)
    by_convergence = rankdata([-c for c in convergence.values()])
    for case in range(len(values[0])):
        total = weight * by_convergence
        for metric in range(4):
            found = np.array([v[case, metric] for v in values])
            total = total + rankdata(-found if metric < 2 else found)
        assert ranks.iloc[case].to_numpy() == pytest.approx(total / (4 + weight))
    assert ranks.sum(axis=1).to_numpy() == pytest.approx(len(names) * (len(names) + 1) / 2)


def test_wrong_arguments() -> None:
    with pytest.raises(ConfigurationError, match=r"runs is \['A'\], but must be at least two"):
        rank_cases({"A": HAND["A"]}, HAND_CONVERGENCE)
    with pytest.raises(ConfigurationError, match=r"weight is -1\.0, but must be a finite number"):
        rank_cases(HAND, HAND_CONVERGENCE, -1.0)


# ------------------------------------------------- what the sites left on disk


def run_folder(out: Path, shift: float = 0.0, **changes: Any) -> Path:
    summary = {**make_summary(), **changes}
    return write_case_scores(write_run(out, summary), summary, shift)


def test_cases_from_disk(tmp_path: Path) -> None:
    scores = read_case_scores(run_folder(tmp_path), make_summary())
    assert len(scores) == sum(CASES.values()) + 4 * len(SITES)
    assert len(final_cases(scores)) == sum(CASES.values())
    assert list(scores.columns) == [
        f"{metric} {region}" for metric in ("Dice", "HD95") for region in ("ET", "TC", "WT")
    ]
    path = tmp_path / "state" / "hospital-b" / "3f9c2a7e" / "evaluation-last.json"
    case = json.loads(path.read_text())["test"][2]
    row = scores.loc["hospital-b", "test", case["label"]]
    assert (row["Dice TC"], row["HD95 WT"]) == (case["dice"]["TC"], case["hd95"]["WT"])
    assert validation_counts(tmp_path, make_summary()) == dict.fromkeys(SITES, 4)


def test_a_site_without_test_cases_is_ranked_on_its_validation_cases(tmp_path: Path) -> None:
    run_folder(tmp_path)
    path = tmp_path / "state" / "hospital-c" / "3f9c2a7e" / "evaluation-last.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({"validation": content["validation"], "test": []}))
    rows = final_cases(read_case_scores(tmp_path, make_summary()))
    splits = rows.reset_index().groupby("site")["split"].agg(set).to_dict()
    assert splits == {"hospital-a": {"test"}, "hospital-b": {"test"}, "hospital-c": {"validation"}}


def test_the_last_models_validation_dice_is_that_of_a_round() -> None:
    nan = float("nan")
    index = [("a", "validation", "1"), ("a", "validation", "2"), ("b", "validation", "3"), ("b", "test", "4")]
    dice = pd.DataFrame({"Dice x": [0.8, 0.6, 1.0, 0.0], "Dice y": [nan, 0.4, 0.5, 0.0]})
    dice.index = pd.MultiIndex.from_tuples(index, names=["site", "split", "label"])
    # a: (.7 + .4) / 2 = .55 of two cases, b: .75 of one: (1.1 + .75) / 3
    assert last_validation_dice(dice) == pytest.approx(1.85 / 3)
    assert last_validation_dice(dice.loc[["b"]].iloc[1:]) is None
    of_a = Segmentation.summarise([CaseScore({"x": 0.8, "y": None}), CaseScore({"x": 0.6, "y": 0.4})])["dice"]["mean"]
    of_b = Segmentation.summarise([CaseScore({"x": 1.0, "y": 0.5})])["dice"]["mean"]
    assert last_validation_dice(dice) == pytest.approx(mean_over_cases([(of_a, 2), (of_b, 1)]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing: ranks need simulated runs"),
        ("{", "not readable as JSON"),
        ("[]", "does not hold lists of cases"),
        ('{"test": [{"id": "x", "dice": {"ET": 1, "TC": 1, "WT": 1}}]}', "x of hospital-a has no HD95 of ET"),
    ],
)
def test_unreadable_case_scores(tmp_path: Path, content: str | None, message: str) -> None:
    run_folder(tmp_path)
    path = tmp_path / "state" / "hospital-a" / "3f9c2a7e" / "evaluation-last.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_case_scores(tmp_path, make_summary())


def test_a_run_without_scored_sites(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no scores of single cases"):
        read_case_scores(tmp_path, {"task": "brats", "final": {}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "hippocampus"}, "the task is brats in one and hippocampus in the other"),
        ({"final": {**make_summary()["final"], "split": "validation"}}, "split is test in one and validation"),
        ({"empty_convention": "exclude"}, "convention for empty regions is brats in one and exclude"),
    ],
)
def test_runs_that_cannot_be_compared(changes: dict[str, Any], message: str) -> None:
    scores = {"one": HAND["A"], "two": HAND["B"]}
    with pytest.raises(DataError, match=message):
        check_comparable({"one": make_summary(), "two": {**make_summary(), **changes}}, scores)


def test_other_regions_cannot_be_compared() -> None:
    declared = {
        **resolve_task("brats").to_dict(),
        "regions": {"core": ["necrosis"], "rest": ["oedema"], "ET": ["enhancing"]},
    }
    other = {**make_summary(), "task_declaration": declared}
    with pytest.raises(DataError, match=r"regions is ET = .* in one and core = necrosis; rest"):
        check_comparable({"one": make_summary(), "two": other}, {"one": HAND["A"], "two": HAND["B"]})


def test_other_cases_cannot_be_compared() -> None:
    scores = {"one": HAND["A"], "two": HAND["B"].iloc[:1]}
    with pytest.raises(DataError, match=r"1 cases were scored in one of them only, e\.g\. 1\.nii\.gz \(validation of"):
        check_comparable({"one": make_summary(), "two": make_summary()}, scores)


# -------------------------------------------------------------- the command


def rank(*arguments: str | Path) -> int:
    return main(["rank", *map(str, arguments)])


def test_command_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    worse = run_folder(tmp_path / "worse", -0.1)
    better = run_folder(tmp_path / "better", method="FedProx")
    assert rank(worse, better, "--clock", "measured", "--out", tmp_path / "rank.json") == 0
    printed = capsys.readouterr().out
    assert printed.index("better") < printed.index("worse")
    assert "FedProx" in printed
    content = json.loads((tmp_path / "rank.json").read_text())
    assert [entry["run"] for entry in content["runs"]] == ["better", "worse"]
    assert content["runs"][0]["rule"] == "FedCostWAvg with alpha 0.5, cost validation loss"
    rounds = make_summary()["rounds"]
    total = sum(r["seconds"] for r in rounds)
    expected = convergence_score([r["val_dice"] for r in rounds], [r["seconds"] for r in rounds], total)
    assert content["horizon_seconds"] == pytest.approx(total)
    assert content["runs"][0]["convergence_score"] == pytest.approx(expected)
    assert (content["clock"], content["cases"], content["split"]) == ("measured", 26, "test")
    # Both have the same rounds, so they share the ranks of convergence: (6 ranks of cases + 3 * 1.5) / 9.
    for entry in content["runs"]:
        assert entry["mean_rank"] == pytest.approx((6 * entry["mean_case_rank"] + 4.5) / 9)
    assert not list(tmp_path.glob("*.tmp"))
    (compared,) = content["comparisons"]
    assert (compared["run"], compared["reference"]) == ("worse", "better")
    tables = [patient_scores(folder, read_summary(folder)) for folder in (worse, better)]
    expected = compare_arms(*tables)
    assert [compared[name] for name in ("difference", "p", "patients")] == pytest.approx(
        [expected.difference, expected.p, expected.cases]
    )
    # Of two runs there is one test, so that nothing is corrected.
    assert compared["p_holm"] == compared["p"] < 0.001
    assert compared["difference"] < 0
    assert "worse less better: Dice \N{MINUS SIGN}0." in printed


def test_the_primary_score_of_a_case_is_the_mean_over_its_regions(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    found = patient_scores(folder, read_summary(folder)).set_index(["evaluated_at", "case"])["value"]
    assert len(found) == 26
    path = next((folder / "state").glob("*/*/evaluation-last.json"))
    for case in json.loads(path.read_text("utf-8"))["test"]:
        values = [value for value in case["dice"].values() if value is not None]
        told = found.get((path.parts[-3], case["id"]))
        assert told == pytest.approx(sum(values) / len(values)) if values else math.isnan(told)


def test_command_simulated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [run_folder(tmp_path / name, shift) for name, shift in (("one", 0.0), ("two", 0.01))]
    profiles = {
        "name": "one speed",
        "compute": [{"training": [2, 0], "validation": [3, 0]}],
        "network": [{"download": [10, 0], "upload": [20, 0]}],
    }
    (tmp_path / "speeds.json").write_text(json.dumps(profiles))
    arguments = (*runs, "--clock", "simulated", "--profiles", tmp_path / "speeds.json", "--horizon", "1000")
    assert rank(*arguments, "--out", tmp_path / "rank.json") == 0
    assert "one speed" in capsys.readouterr().out
    content = json.loads((tmp_path / "rank.json").read_text())
    # The largest site, hospital-a, is the slowest: 10 + 4 * 3 + 60 * 2 * 2 + 4 * 3 + 20 = 294 s in every round.
    dice = [r["val_dice"] for r in make_summary()["rounds"]]
    assert content["runs"][0]["convergence_score"] == pytest.approx(convergence_score(dice, [294] * 10, 1000))
    assert rank(*runs, "--out", tmp_path / "week.json") == 0
    assert json.loads((tmp_path / "week.json").read_text())["horizon_seconds"] == 604800


def test_command_with_the_last_model(tmp_path: Path) -> None:
    runs = [run_folder(tmp_path / name, shift) for name, shift in (("one", 0.0), ("two", 0.01))]
    arguments = (*runs, "--clock", "measured", "--horizon", "1e6", "--out", tmp_path / "rank.json")
    found = {}
    for flag in ((), ("--with-last",)):
        assert rank(*arguments, *flag) == 0
        entries = json.loads((tmp_path / "rank.json").read_text())["runs"]
        found[flag] = {entry["run"]: entry["convergence_score"] for entry in entries}
    rounds = make_summary()["rounds"]
    dice, seconds = [r["val_dice"] for r in rounds], [r["seconds"] for r in rounds]
    last = last_validation_dice(read_case_scores(tmp_path / "two", make_summary()))
    assert last is not None
    assert last > max(dice)
    gain = (last - max(dice)) * (1e6 - sum(seconds)) / 1e6
    assert found[("--with-last",)]["two"] == pytest.approx(found[()]["two"] + gain)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a"], "at least two runs"),
        (["a", "a"], "named twice"),
        (["a", "b", "--clock", "measured", "--profiles", "x"], "for --clock simulated"),
        (["a", "b", "--horizon", "0"], "must be a number of seconds above 0"),
        (["a", "b", "--out", "no/such/x.json"], "does not exist"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rank", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_runs_without_case_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_run(tmp_path / name) for name in ("one", "two")]
    assert rank(*runs) == 1
    assert "ranks need simulated runs" in " ".join(capsys.readouterr().err.split())
    for folder in runs:
        summary = make_summary()
        for entry in summary["rounds"]:
            entry["seconds"] = 0.0
        write_case_scores(write_run(folder, summary), summary)
    assert rank(*runs, "--clock", "measured") == 1
    assert "use the simulated clock" in " ".join(capsys.readouterr().err.split())

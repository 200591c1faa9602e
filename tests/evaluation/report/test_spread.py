"""How single cases spread: numbers by hand, and what the page says of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from evaluation.report.test_page import words
from evaluation.synthetic_run import SITES, make_summary, write_case_scores, write_run
from fedseg.evaluation.case_tables import final_case_facts
from fedseg.evaluation.intervals import bootstrap_mean
from fedseg.evaluation.report import spread
from fedseg.evaluation.report.page import write_report
from fedseg.evaluation.report.verdict import verdict
from fedseg.tasks.objective import objective_of
from fedseg.tasks.registry import PANCREAS, resolve_task

LESION = resolve_task({
    "name": "lesion", "modality": "MR", "channels": ["flair"], "labels": {"lesion": 1}, "normalisation": "zscore",
    "patch_size": [8, 8, 8],
})  # fmt: skip


def cases_of(dice: list[float | None], **more: list[Any]) -> pd.DataFrame:
    count = len(dice)
    rest = {"HD95": [1.0] * count, **more}
    return pd.DataFrame(
        {
            "site": ["a"] * count,
            "case": list(range(count)),
            "patient": [f"p{i}" for i in range(count)],
            "output": ["lesion"] * count,
            "Dice": dice,
            **rest,
        }
    )


def test_the_confidence_interval_is_the_bootstrap_over_patients_and_over_sites_first() -> None:
    of_a, of_b = [0.5, 0.6, 0.7, None, 0.9], [0.2, 0.3]
    table = spread.spread_table(pd.concat([cases_of(of_a), cases_of(of_b).assign(site="b")]), objective_of(LESION))
    alone, both = bootstrap_mean(of_a), bootstrap_mean([*of_a, *of_b], ["a"] * 5 + ["b"] * 2)
    for row, expected in ((table.rows[0], alone), (table.rows[2], both)):
        assert row[3] == f"{expected.mean:.3f} ({expected.low:.3f} to {expected.high:.3f})"


def test_cases_of_one_patient_are_one_patient() -> None:
    values = [0.1, 0.3, 0.8, 0.9]
    twice = pd.concat([cases_of(values), cases_of(values)])
    (row,) = spread.spread_table(twice, objective_of(LESION)).rows
    (once,) = spread.spread_table(cases_of(values), objective_of(LESION)).rows
    assert (row[2], row[3]) == ("8", once[3])


def test_the_spread_by_hand() -> None:
    table = spread.spread_table(
        cases_of([0.0, 0.4, 0.6, 0.8, None], HD95=[80.0, 4.0, 6.0, 8.0, None]), objective_of(LESION)
    )
    assert (table.totals, table.left) == (0, 2)
    (row,) = table.rows
    assert row[:3] == ["a", "lesion", "4"]
    assert row[3].startswith("0.450 (")
    assert row[4:] == ["0.500 (0.300 to 0.650)", "0.000", "7.0"]


def test_several_sites_get_lines_for_all_cases() -> None:
    both = pd.concat([cases_of([0.2, 0.4]), cases_of([0.9]).assign(site="b")])
    table = spread.spread_table(both, objective_of(LESION))
    assert [(row[0], row[2]) for row in table.rows] == [("a", "2"), ("b", "1"), (spread.ALL_SITES, "3")]
    assert table.totals == 1
    assert table.rows[1][3] == "0.900 (n/a to n/a)"


def test_volumes_and_lesions_by_hand() -> None:
    """A case without a reference counts for precision only, one without a prediction for sensitivity only."""
    facts = {"reference": [10.0, 20.0, 0.0], "predicted": [12.0, 0.0, 5.0], "common": [8.0, 0.0, 0.0]}
    facts |= {"lesions": [2, 1, 0], "found": [1, 0, 0], "invented": [0, 0, 3]}
    table = spread.volume_table(cases_of([0.7, 0.0, 0.0], **facts), objective_of(LESION))
    # Sensitivity .8 and 0, precision 2/3 and 0; errors +2 and -20 ml, +20% and -100%.
    minus = "\N{MINUS SIGN}"
    assert table.rows == [["a", "lesion", "0.400", "0.333", f"{minus}9.0", f"{minus}40", "1 of 3", "3"]]
    assert spread.volume_table(cases_of([0.7]), objective_of(LESION)).rows == ()


@pytest.mark.parametrize(
    ("dice", "text"),
    [
        ([0.6, 0.051], "No region of the 2 cases has a Dice below 0.05."),
        ([0.049], "In 1 of 1 case a region has a Dice below 0.05 (lesion in 1)."),
        ([0.0, None, 0.9, 0.01], "In 2 of 4 cases a region has a Dice below 0.05 (lesion in 2)."),
    ],
)
def test_missed_cases_are_counted(dice: list[float | None], text: str) -> None:
    assert spread.spread_words(cases_of(dice), objective_of(LESION)) == [text]


def test_the_figure_has_a_dot_for_each_case_also_for_those_beyond_it() -> None:
    cases = cases_of([0.1, 0.5, 0.7, 0.9, 0.95], HD95=[373.0, 4.0, 5.0, 6.0, 7.0])
    kind = objective_of(LESION)
    for score, beyond in ((kind.scores[0], 0), (kind.scores[1], 1)):
        figure = spread.draw_spread(cases, kind, score)
        assert figure is not None
        (axes,) = figure.axes
        drawn = {mark: sum(len(line.get_ydata()) for line in axes.lines if line.get_marker() == mark) for mark in "o^"}
        assert drawn == {"o": 5 - beyond, "^": beyond}
    assert spread.draw_spread(pd.DataFrame(), kind, kind.primary) is None


def test_the_page_of_a_simulated_run_shows_single_cases(tmp_path: Path) -> None:
    summary = make_summary(2) | {"simulated": True}
    write_case_scores(write_run(tmp_path, summary), summary)
    facts = final_case_facts(tmp_path, summary)
    assert facts.groupby("site")["case"].nunique().to_dict() == {"hospital-a": 12, "hospital-b": 9, "hospital-c": 5}
    text = words(write_report(tmp_path).read_text("utf-8"))
    assert "each dot is a case" in text
    assert "How the scores of single cases spread" in text
    assert "No region of the 26 cases has a Dice below 0.05." in text


def test_the_page_of_a_fetched_run_says_that_it_knows_means_only(tmp_path: Path) -> None:
    text = words(write_report(write_run(tmp_path, make_summary(2))).read_text("utf-8"))
    assert "Scores of single cases stay at the sites" in text
    assert "each dot is a case" not in text


def test_a_run_whose_state_is_gone_is_drawn_from_its_means(tmp_path: Path) -> None:
    summary = make_summary(2) | {"simulated": True}
    write_case_scores(write_run(tmp_path, summary), summary)
    (tmp_path / "state" / SITES[1] / summary["run_id"] / "evaluation-last.json").unlink()
    assert final_case_facts(tmp_path, summary).empty
    assert "mean over the site's cases" in words(write_report(tmp_path).read_text("utf-8"))


# ------------------------------------------------------------------ who was there, and what the images are


def test_the_verdict_begins_with_who_was_missing_and_why(tmp_path: Path) -> None:
    summary = make_summary()
    told = "policy: The site's policy, rule min_cases: the job would train on the cases that this site has."
    summary["events"] = [
        {"round": -1, "site": "hospital-d", "what": told},
        {"round": -1, "site": "server", "what": "something of its own"},
        {"round": -1, "site": "hospital-a", "what": "did not answer", "stage": "evaluation"},
        *summary["events"],
    ]
    first, second, *_ = verdict(summary, pd.DataFrame())
    assert first == (
        f"Of 4 connected sites 1 took no part: hospital-d ({told[:-1]}). "
        "No update of hospital-c counts in 1 of 10 rounds."
    )
    assert second.startswith("After 10 rounds of training")
    text = words(write_report(write_run(tmp_path, summary)).read_text("utf-8"))
    assert "Round -1" not in text
    assert "before round 1 hospital-d policy" in text
    assert "round 4 hospital-c" in text
    assert "last evaluation hospital-a did not answer" in text


def test_a_run_on_phantoms_says_so_first(tmp_path: Path) -> None:
    pages = {}
    for drawn in ([], list(SITES), [SITES[1]]):
        summary = make_summary(2) | {"phantoms": drawn}
        pages[len(drawn)] = words(write_report(write_run(tmp_path / str(len(drawn)), summary)).read_text("utf-8"))
    assert "phantom" not in pages[0]
    assert "All images were drawn by a program (phantoms)" in pages[3]
    assert f"The images of {SITES[1]} were drawn by a program (phantoms)" in pages[1]
    assert pages[3].index("say nothing about patients") < pages[3].index("Federated segmentation: Brain")


def test_what_the_sites_brought_stands_in_a_table(tmp_path: Path) -> None:
    summary = make_summary(1) | {"cases": {SITES[0]: {"training": 60, "validation": 4, "test": 12}}}
    summary["voxels"] = {SITES[0]: [[0.94, 0.94, 3.0], [1.0, 1.0, 1.0]]}
    text = words(write_report(write_run(tmp_path, summary)).read_text("utf-8"))
    assert f"{SITES[0]} 60 4 12 0.94 x 0.94 x 3 and 1 more" in text


# ------------------------------------------------------------------ the best model, and numbers that would stand twice


def test_a_best_model_that_is_the_last_one_has_no_table_of_its_own(tmp_path: Path) -> None:
    tables = []
    for best in (1, 2):
        summary = make_summary(3)
        summary["best"]["round"] = best
        text = words(write_report(write_run(tmp_path / str(best), summary)).read_text("utf-8"))
        tables.append("Best model on validation cases (after round" in text)
        assert ("this model was the best of all rounds" in text) is (best == 2)
        assert ("The best model was that after round 2" in text) is (best == 1)
    assert tables == [True, False]


@pytest.mark.parametrize(("split", "warned"), [("test", False), ("validation", True), ("test/validation", True)])
def test_a_best_model_scored_on_what_it_was_chosen_by_is_warned_of(split: str, warned: bool) -> None:
    summary = make_summary(3)
    summary["best"] |= {"round": 0, "split": split}
    text = " ".join(verdict(summary, pd.DataFrame()))
    assert ("It was chosen on the very cases on which it is scored" in text) is warned


def test_one_region_has_no_mean_of_regions_beside_it(tmp_path: Path) -> None:
    sites = {"a": {"cases": 1, "dice": {"lesion": 0.5, "mean": 0.5}, "hd95": {"lesion": 3.0}}}
    summary = {"task": "lesion", "task_declaration": LESION.to_dict(), "sites": ["a"], "rounds": [], "seed": 1}
    summary |= {"final": {"sites": sites, "split": "validation"}}
    text = words(write_report(write_run(tmp_path, summary)).read_text("utf-8"))
    assert "Dice lesion HD95 lesion (mm)" in text
    assert "on 1 validation case of one site, a." in text
    assert len(PANCREAS.regions) == 2, "tasks with several regions keep their mean; see test_means_by_hand"


def test_a_lesion_file_with_an_infinite_distance_is_no_crash(tmp_path: Path) -> None:
    summary = make_summary(1) | {"simulated": True}
    write_case_scores(write_run(tmp_path, summary), summary)
    path = tmp_path / "state" / SITES[0] / summary["run_id"] / "evaluation-last.json"
    content = json.loads(path.read_text("utf-8"))
    content["test"][0]["hd95"]["ET"] = math.inf
    path.write_text(json.dumps(content), "utf-8")
    assert np.isinf(final_case_facts(tmp_path, summary)["HD95"]).sum() == 1
    assert "nan" not in words(write_report(tmp_path).read_text("utf-8")).replace("finance", "")


def test_an_interval_does_not_leave_the_range_of_its_score() -> None:
    (row,) = spread.spread_table(cases_of([0.05, 0.95]), objective_of(LESION)).rows
    assert row[3] == "0.500 (0.050 to 0.950)"


@pytest.mark.parametrize(
    ("filters", "own"),
    [
        ([{"filter": "PrivateLayers", "kind": "norm"}], True),
        ([{"filter": "SharedLayers", "last": 1, "frozen": True}], False),
        ([{"filter": "SharedLayers", "last": 1}], True),
        ([{"filter": "NormClip", "norm": 1.0}], False),
        ([], False),
    ],
)
def test_layers_that_stay_at_the_sites_are_told(filters: list[dict[str, Any]], own: bool) -> None:
    summary = make_summary(2) | {"privacy": {"filters": filters}}
    text = " ".join(verdict(summary, pd.DataFrame()))
    assert ("with the layers that this site keeps for itself" in text) is own

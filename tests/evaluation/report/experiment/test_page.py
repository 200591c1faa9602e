"""The page of an experiment: complete, self-contained, escaped, two forms, and unmoved by what is missing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from evaluation.synthetic_experiment import GAIN, SITES, write_experiment
from evaluation.synthetic_run import draw_case
from fedseg.cli import main
from fedseg.evaluation.experiment_folder import read_experiment
from fedseg.evaluation.report.experiment.checklist import AUTHORS, checklists
from fedseg.evaluation.report.experiment.numbers import arm_frame
from fedseg.evaluation.report.experiment.page import write_experiment_report
from fedseg.evaluation.report.experiment.subject import scores_of

CASE_NAMES = re.compile(r"\b(?:north|east|south|west)-p?\d\d\b")


def words(page: Path) -> str:
    body = re.sub(r"<style>.*?</style>", "", page.read_text("utf-8"), flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


def test_everything_is_there(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path / "e")
    page = write_experiment_report(folder).page
    figures = {path.stem for path in (folder / "report" / "figures").glob("*.png")}
    plain = {"arms", "pairs", "sites", "regions", "left_out", "curves", "costs", "intensities"}
    assert figures == plain | {"matrix_local", "matrix_ditto"}
    text = words(page)
    for heading in (
        "Who took part", "Arms side by side", "Is it more than chance?", "Each site and region", "Across sites",
        "Sites that the training did not see", "How the sites' data differ", "Training", "Cost and energy",
        "Worst cases", "For a paper", "Checklists", "Versions and hashes",
    ):  # fmt: skip
        assert heading in text.replace("&#39;", "'"), heading
    assert all(site in text for site in SITES)
    assert all(arm in text for arm in GAIN)
    for phrase in ("15 W for a busy core", "3b3b3b", "2.13.0", "Wilcoxon", "volume error", "NSD", "32 patients"):
        assert phrase.lower() in text.lower(), phrase
    html = page.read_text("utf-8")
    assert not re.search(r"<script|<link|<iframe|https?://", html)
    assert html.count("data:image/png;base64,") == len(figures)


def test_the_coordinators_page_names_no_case_and_a_sites_page_only_its_own(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path / "e", arms=("local", "fedavg"), seeds=1)
    page = write_experiment_report(folder).page
    assert CASE_NAMES.findall(words(page)) == []
    assert {path.stem for path in (folder / "report" / "sites").glob("*.html")} == set(SITES)
    found = set(CASE_NAMES.findall(words(folder / "report" / "sites" / "west.html")))
    assert found
    assert all(name.startswith("west-") for name in found)


def test_pictures_stand_on_the_page_of_their_site_only(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path / "e", arms=("local", "fedavg"), seeds=1)
    facts = json.loads((folder / "experiment.json").read_text())
    facts["task"] = "brats"
    (folder / "experiment.json").write_text(json.dumps(facts))
    case = draw_case(tmp_path / "cases", "one", 1, 0.5)
    entry = {"site": "west", "case": "west-00", "rank": "worst", "dice": 0.5, **case}
    (folder / "report").mkdir()
    (folder / "report" / "overlays.json").write_text(json.dumps([entry]))
    page = write_experiment_report(folder).page
    counts = {
        path.stem: path.read_text("utf-8").count("data:image/png")
        for path in (page, *(folder / "report" / "sites").glob("*.html"))
    }
    assert counts["west"] == counts["report"] + 1
    assert {counts[site] for site in ("north", "east", "south")} == {counts["report"]}
    assert "shows their images" in words(folder / "report" / "sites" / "west.html")


def test_values_are_escaped(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path / "e", arms=("local", "fedavg"), seeds=1)
    facts = json.loads((folder / "experiment.json").read_text())
    facts["description"] = "<script>alert(1)</script>"
    facts["versions"]["<img src=x>"] = '"><img src=y>'
    (folder / "experiment.json").write_text(json.dumps(facts))
    html = write_experiment_report(folder).page.read_text("utf-8")
    assert "<script" not in html
    assert "<img src=x" not in html
    assert "<img src=y" not in html


def test_one_arm_one_seed_and_nothing_else(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path / "e", arms=("fedavg",), seeds=1, left_out=False, statistics=False)
    (folder / "costs.csv").unlink()
    (folder / "curves.csv").unlink()
    (folder / "experiment.json").write_text("{}")
    text = words(write_experiment_report(folder).page)
    assert "The arm fedavg reaches a mean" in text
    assert "The experiment has no curves" in text
    assert "The experiment has no costs" in text
    for absent in ("Is it more than chance", "Across sites", "did not see", "data differ", " nan"):
        assert absent not in text, absent


def test_what_is_missing_or_drawn_is_said_first(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path / "e", arms=("local", "fedavg"), seeds=1)
    facts = json.loads((folder / "experiment.json").read_text())
    facts["units"]["fedavg_seed0"]["done"] = False
    facts["sites"]["west"]["phantoms"] = True
    (folder / "experiment.json").write_text(json.dumps(facts))
    text = words(write_experiment_report(folder).page)
    assert "Incomplete: 1 of 2 parts" in text
    assert "The images of west were drawn by a program" in text


def test_energy_is_never_guessed(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path / "e", arms=("local", "fedavg"), seeds=1)
    facts = json.loads((folder / "experiment.json").read_text())
    del facts["watts"]
    (folder / "experiment.json").write_text(json.dumps(facts))
    assert "the software guesses none" in words(write_experiment_report(folder).page)


def test_what_was_counted_is_said_in_words_that_hold(tmp_path: Path) -> None:
    """``ditto (own)`` is no arm of the definition, an ensemble trains nothing, and one round is no rounds."""
    folder = write_experiment(tmp_path / "e", seeds=1)
    table, facts = pd.read_csv(folder / "results.csv"), json.loads((folder / "experiment.json").read_text())
    own = (table["arm"] == "ditto") & (table["site"] == "west")
    table.loc[own, "arm"] = "ditto (own)"
    table.to_csv(folder / "results.csv", index=False)
    facts["definition"]["budget"] = {"rounds": 1}
    (folder / "experiment.json").write_text(json.dumps(facts))
    text = words(write_experiment_report(folder).page)
    assert "ditto (own)" in text
    assert " 6 arms" in text
    assert "Of 6 arms, " in text
    assert "7 arms" not in text
    made = "ensemble was made from the sites&#39; own models without further training."
    assert f"Every other arm trained for 1 round; {made}" in text
    assert "1 rounds" not in text
    assert "Only jobs also score their last model" in text


def test_energy_has_one_unit_and_figures_that_count(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path / "e", arms=("local", "fedavg"), seeds=1)
    costs = pd.read_csv(folder / "costs.csv")
    costs.loc[costs["quantity"] == "kwh", "value"] = [1.2345e-5, 1.25]
    costs.to_csv(folder / "costs.csv", index=False)
    text = words(write_experiment_report(folder).page)
    assert "Energy (Wh)" in text
    for figure in (" 0.0123 ", " 1,250 ", "All trainings together took 1,250 Wh."):
        assert figure in text, figure
    assert "kWh" not in text


def test_old_figures_do_not_stay(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path / "e", arms=("local", "fedavg"), seeds=1)
    write_experiment_report(folder)
    frame = pd.read_csv(folder / "results.csv", keep_default_na=False)
    frame[frame["arm"] == "fedavg"].to_csv(folder / "results.csv", index=False)
    write_experiment_report(folder)
    assert not (folder / "report" / "figures" / "matrix_local.png").exists()


def test_every_item_of_a_checklist_has_an_answer_or_an_owner(tmp_path: Path) -> None:
    experiment = read_experiment(write_experiment(tmp_path / "e"))
    tables = checklists(experiment, arm_frame(experiment, scores_of(experiment)[0]))
    assert [row[0] for row in tables["CLAIM 2024"].rows] == [str(number) for number in range(1, 45)]
    assert len(tables["TRIPOD+AI"].rows) == 52
    answers = {name: {row[0]: row[2] for row in table.rows} for name, table in tables.items()}
    assert all(text for items in answers.values() for text in items.values())
    assert answers["CLAIM 2024"]["20"] == "patient"
    assert "fedavg" in answers["CLAIM 2024"]["37"]
    assert "4 sites" in answers["TRIPOD+AI"]["6a"]
    # Reasons and people: nothing that a program could know.
    for name, items in {"CLAIM 2024": ("3", "15", "16", "44"), "TRIPOD+AI": ("3c", "17", "18a", "19")}.items():
        assert {answers[name][item] for item in items} == {AUTHORS}


def test_the_checklist_says_from_what_each_arm_started(tmp_path: Path) -> None:
    folder = write_experiment(tmp_path / "e", arms=("local", "fedavg", "ditto"), seeds=2)

    def said() -> str:
        experiment = read_experiment(folder)
        rows = checklists(experiment, arm_frame(experiment, scores_of(experiment)[0]))["CLAIM 2024"].rows
        return next(row[2] for row in rows if row[0] == "24")

    assert said() == "drawn from the seed of the training; 2 seeds"
    facts = json.loads((folder / "experiment.json").read_text())
    facts["arms"]["fedavg"]["initial"] = {"digest": "4f" * 32, "method": "fedprox", "seed": 7, "round": 11}
    (folder / "experiment.json").write_text(json.dumps(facts))
    started = "a model file, trained before by fedprox to round 12 (seed 7, SHA-256 of its arrays 4f4f4f4f4f4f4f4f...)"
    assert said() == f"local, ditto: drawn from the seed of the training; fedavg: {started}; 2 seeds"


def test_few_sites_and_few_patients_are_said_to_be_few(tmp_path: Path) -> None:
    """Three sites, of which intervals draw none, and seven patients, with whom no corrected p-value reaches 0.05."""
    arms = ("local", "fedavg", "central", "ditto", "ensemble")
    folder = write_experiment(tmp_path / "e", arms=arms, seeds=1, left_out=False, statistics=False)
    many = words(write_experiment_report(folder).page)
    assert "95% interval over sites and their patients." in many
    assert "bootstrap samples over patients, and over sites and patients" in many
    assert "intervals over patients, and over sites and their patients" in many
    rows = pd.read_csv(folder / "results.csv", keep_default_na=False)
    few = rows["case"].str.extract(r"(\d+)$")[0].astype(int) < rows["evaluated_at"].map(
        {"north": 3, "east": 2, "south": 2}
    )
    rows[few & (rows["site"] != "west")].to_csv(folder / "results.csv", index=False)
    text = words(write_experiment_report(folder).page)
    assert "with 7 patients no p-value, corrected for 4 tests, can be below 0.062, and 0.05 is asked for" in text
    assert "more than chance explains" not in text
    assert text.count("over patients, since sites are drawn only where there are at least 4") == 2
    assert "bootstrap samples over patients. Arms" in text
    assert "intervals over patients, not over sites" in text
    assert "sites and their patients" not in text


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_experiment(tmp_path / "e", arms=("local", "fedavg"), seeds=1)
    assert main(["report", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "fedavg" in printed
    assert str(folder / "report" / "report.html") in printed.replace("\n", "")
    (folder / "results.csv").unlink()
    assert main(["report", str(folder)]) == 1
    assert "has not ended: it has no results.csv" in " ".join(capsys.readouterr().err.split())


def test_an_experiment_is_no_run_to_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(write_experiment(tmp_path / name, arms=("fedavg",), seeds=1)) for name in ("a", "b")]
    assert main(["report", *folders, "--out", str(tmp_path / "both")]) == 1
    assert "not the folder of a run" in " ".join(capsys.readouterr().err.split())


def test_regions_that_nobody_drew_are_told_and_one_that_is_empty_is_drawn(tmp_path: Path) -> None:
    """Of the three cases of west one has no posterior part; the posterior part of two is not drawn, or of none."""
    folder = write_experiment(tmp_path / "e", arms=("fedavg",), seeds=2, left_out=False)
    assert "Drawn regions" not in words(write_experiment_report(folder).page)
    rows = pd.read_csv(folder / "results.csv", keep_default_na=False)
    undrawn = rows["case"].isin(["west-01", "west-02"]) & (rows["region"] == "posterior")
    rows.loc[undrawn, ["value", "empty"]] = ""
    rows.to_csv(folder / "results.csv", index=False)
    text = words(write_experiment_report(folder).page)
    assert "west tested (3) 3 1 " in text
    assert "north tested (14) 14 14 " in text
    assert "compare regions between sites, not means. " in text
    assert "Nobody drew" not in text

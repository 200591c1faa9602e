"""The page of a run: complete, self-contained, escaped, and unmoved by what is missing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from evaluation.synthetic_run import REGIONS, SITES, make_summary, write_run
from fedseg.cli import main
from fedseg.errors import DataError
from fedseg.evaluation.report.compare import markdown, repeats_frame, runs_frame
from fedseg.evaluation.report.page import write_report
from fedseg.evaluation.report.text_tables import TextTable
from fedseg.evaluation.summary import read_summary


def page_of(out: Path, summary: dict[str, Any]) -> str:
    return write_report(write_run(out, summary)).read_text("utf-8")


def words(page: str) -> str:
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


def test_complete_report(tmp_path: Path) -> None:
    page = write_report(write_run(tmp_path, pictures=True)).read_text("utf-8")
    names = {path.stem for path in (tmp_path / "report" / "figures").glob("*.png")}
    expected = {"learning_curves", "dice_by_site", "hd95_by_site", "weights", "cost", "comparison", "cross_site"}
    assert names == expected | {"overlays", "gallery"}
    assert page.count("data:image/png;base64,") == len(names)
    text = words(page)
    assert all(site in text for site in SITES)
    for phrase in ("0.834", "No privacy mechanism ran", "Refused the round", "2.3 GB", "4,000 MB", "2.13.0", "alpha"):
        assert phrase in text, phrase


def test_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    page = page_of(tmp_path, make_summary())
    assert not re.search(r"<script|<link|<iframe|https?://", page)
    assert all(source.startswith("data:") for source in re.findall(r'src="([^"]{0,30})', page))


def test_regions_that_are_not_drawn_everywhere_have_a_section(tmp_path: Path) -> None:
    summary = make_summary(2)
    scored = summary["final"]["sites"]
    for site in SITES:
        scored[site]["defined"] = dict.fromkeys(REGIONS, scored[site]["cases"])
    assert "Drawn regions" not in words(page_of(tmp_path / "whole", summary))
    scored[SITES[1]]["defined"]["ET"] = 0
    text = words(page_of(tmp_path / "partial", summary))
    assert "Drawn regions" in text
    assert f"Nobody drew ET at {SITES[1]}" in text


def test_values_are_escaped(tmp_path: Path) -> None:
    summary = make_summary(2)
    summary["events"] = [{"round": 0, "site": "<b>x</b>", "what": "<script>alert(1)</script>"}]
    summary["job"] = '"><img src=x>'
    page = page_of(tmp_path, summary)
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;" in page


def test_one_site_one_round(tmp_path: Path) -> None:
    summary = make_summary(1)
    only = SITES[0]
    summary["sites"] = [only]
    for holder in (summary["rounds"][0], summary["final"], summary["best"]):
        holder["sites"] = {only: holder["sites"][only]}
    summary["rounds"][0]["weights"] = {only: 1.0}
    for key in ("comparison", "cross_site", "events", "cost", "privacy"):
        del summary[key]
    text = words(page_of(tmp_path, summary))
    assert "After 1 round of training" in text
    assert f"one site, {only}" in text
    assert "weakest" not in text
    assert f"{only} 1 76.0 MB 76.1 MB" in text  # the rounds' own bytes, where the run states no total
    assert "No refusal, failure or missing site was reported" in text


@pytest.mark.parametrize(
    "summary",
    [
        {"task": "brats"},
        {"task": "brats", "sites": [], "rounds": [], "final": {}, "best": None, "privacy": None, "cost": None},
        {"task": "brats", "sites": ["a"], "rounds": [{"round": 0, "sites": {"a": {}}}], "final": {"sites": {"a": {}}}},
    ],
    ids=["task only", "empty parts", "a site that reported nothing"],
)
def test_almost_nothing(tmp_path: Path, summary: dict[str, Any]) -> None:
    text = words(page_of(tmp_path, summary))
    assert "nothing can be said about its quality" in text
    assert "nan" not in text.lower().replace("finance", "")
    assert list((tmp_path / "report" / "figures").glob("*.png")) == []


def test_undefined_values_are_explained(tmp_path: Path) -> None:
    summary = make_summary(2)
    dice = summary["final"]["sites"]["hospital-b"]["dice"]
    dice["ET"] = None
    for site in summary["final"]["sites"].values():
        site["hd95"] = {}
    text = words(page_of(tmp_path, summary))
    assert "n/a: no case at this site has this region" in text
    assert "HD95 was not measured" in text
    assert not (tmp_path / "report" / "figures" / "hd95_by_site.png").exists()


def test_privacy_of_noise_and_of_encryption(tmp_path: Path) -> None:
    summary = make_summary(2)
    summary["privacy"] = {
        "sites": {"hospital-a": {"mechanism": "dp-sgd", "unit": "patient", "epsilon": 3.217, "delta": 1e-5}},
        "total": {"epsilon": 3.217},
        "security_bits": 128,
    }
    text = words(page_of(tmp_path, summary))
    assert "No privacy mechanism ran" not in text
    assert all(phrase in text for phrase in ("dp-sgd", "3.217", "1e-05", "security bits 128"))


def test_a_model_that_was_carried_has_no_weights_and_is_no_median(tmp_path: Path) -> None:
    summary, texts = make_summary(2), []
    for name in ("CyclicWeightTransfer", "Median"):
        for entry in summary["rounds"]:
            entry |= {"rule": {"name": name}, "weights": {}, "carried": name == "CyclicWeightTransfer"}
        texts.append(words(page_of(tmp_path / name, summary)))
    carried, median = ("carried from site to site" in text for text in texts)
    assert (carried, median) == (True, False)
    assert ["number by number" in text for text in texts] == [False, True]
    assert all("Bytes count the serialised updates after all filters." in text for text in texts)


def test_the_order_of_the_visits_is_told(tmp_path: Path) -> None:
    summary = make_summary(2)
    first = summary["rounds"][0]
    visits = [["b", "a"], ["b", "a"], ["a"]]
    summary["rounds"] = [{**first, "round": n, "carried": True, "visited": v} for n, v in enumerate(visits)]
    text = words(page_of(tmp_path, summary))
    assert "1 to 2 b → a 3 a" in text


def test_stale_figures_go(tmp_path: Path) -> None:
    stale = tmp_path / "report" / "figures" / "cross_site.png"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"from an older report")
    write_report(write_run(tmp_path, {"task": "brats"}))
    assert not stale.exists()


def test_pictures_that_are_gone_are_counted(tmp_path: Path) -> None:
    write_run(tmp_path, {"task": "brats"})
    entry = {"site": "a", "rank": "best", "dice": 0.9, "images": ["/gone/t1.nii.gz"], "label": "/gone/label.nii.gz"}
    (tmp_path / "report" / "overlays.json").write_text(json.dumps([entry, entry]))
    assert "2 of 2 cases are not shown" in words(write_report(tmp_path).read_text("utf-8"))


def test_declared_task(tmp_path: Path) -> None:
    summary = make_summary(2)
    summary["task_declaration"] = {"name": "brats", "description": "Tumours of our own"}
    summary["task"] = "ours"
    assert "Tumours of our own" in words(page_of(tmp_path, summary))


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "not the folder of a run"), ("{", "not readable as JSON"), ("[]", "names no task")],
)
def test_bad_folder(tmp_path: Path, content: str | None, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    if content is not None:
        (tmp_path / "report").mkdir()
        (tmp_path / "report" / "summary.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_summary(tmp_path)
    assert main(["report", str(tmp_path)]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_command_for_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(write_run(tmp_path))]) == 0
    printed = capsys.readouterr().out
    assert "0.834" in printed
    assert str(tmp_path / "report" / "report.html") in printed


def test_command_for_several_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(write_run(tmp_path / f"run-{seed}", make_summary(seed=seed))) for seed in (1, 2)]
    out = tmp_path / "both"
    assert main(["report", *runs, "--out", str(out)]) == 0
    assert "run-1" in capsys.readouterr().out
    frame = pd.read_csv(out / "comparison.csv", index_col="Run")
    expected = json.loads((Path(runs[1]) / "report" / "summary.json").read_text())["final"]
    assert frame.loc["run-2", "Mean Dice"] == pytest.approx(expected["mean_dice"])
    assert frame.loc["run-2", "Pooled Dice"] == pytest.approx(expected["pooled_dice"])
    assert frame.loc["run-1", "Bytes"] == 10 * 3 * 152_100_000
    assert (out / "comparison.md").read_text().startswith("| Run | Job | Method | Rule | Seed |")
    page = (out / "comparison.html").read_text("utf-8")
    assert "Repeated runs" in page
    assert page.count("data:image/png") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["a", "b"], "needs --out"), (["a", "--out", "x"], "comparing several"), (["a", "a", "--out", "x"], "twice")],
)
def test_wrong_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_repeats_by_hand() -> None:
    runs = {str(seed): make_summary(1, seed) for seed in (1, 2, 3)}
    for summary, value in zip(runs.values(), (0.7, 0.8, 0.1), strict=True):
        summary["final"]["mean_dice"] = value
    runs["3"]["job"] = "another"
    frame = repeats_frame(runs_frame(runs))
    assert len(frame) == 1
    assert frame.iloc[0].tolist() == pytest.approx([2, 0.75, 0.1 / 2**0.5])


def test_markdown_escapes_bars() -> None:
    assert markdown(TextTable(("a", "b"), [["x|y", "1"]])) == "| a | b |\n| --- | ---: |\n| x\\|y | 1 |\n"

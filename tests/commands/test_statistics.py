"""``fedseg statistics`` and ``fedseg plan``: from data to a job, and every wrong call."""

import json
from pathlib import Path

import pytest

from fedseg.cli import main
from fedseg.jobs.job import read_job
from fedseg.statistics.document import FILE, FederationStatistics, read_statistics, write_statistics
from statistics_of_tiny import TINY, with_spacings
from tiny import TASK, make_sites

SIZES = {"alpha": (3, 1), "beta": (2, 1)}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = make_sites(tmp_path_factory.mktemp("data"), SIZES)
    (folder / "task.json").write_text(json.dumps(TASK), "utf-8")
    return folder


def call(*arguments):
    return main([str(argument) for argument in arguments])


def test_from_data_to_a_job(place, tmp_path, capsys):
    out, data = tmp_path / "out", ("statistics", place, "--task", place / "task.json")
    assert call(*data, "--minimum", 3, "--out", out) == 0
    found = read_statistics(out)
    assert {site: part.cases for site, part in found.sites.items()} == {"alpha": 4, "beta": 3}
    shown = capsys.readouterr().out
    assert "all sites" in shown
    assert str(out / "statistics.html") in shown
    for source in (out, out / FILE):
        assert call("statistics", source) == 0
    assert call("plan", out, "--out", tmp_path / "plan", "--voxels", 16**3) == 0
    job = read_job(tmp_path / "plan" / "tiny_planned")
    assert job.check().task.channels == ("a",)
    assert "patch_size" in (tmp_path / "plan" / "reasons.md").read_text("utf-8")


def test_one_datalist_is_one_site(place, tmp_path):
    data = ("statistics", place / "alpha" / "datalist.json", "--task", place / "task.json", "--minimum", 1)
    assert call(*data, "--out", tmp_path) == 0
    assert set(read_statistics(tmp_path).sites) == {"alpha"}
    assert call("statistics", place / "alpha", *data[2:]) == 0


def test_a_site_below_the_minimum_is_named(place, tmp_path, capsys):
    assert call("statistics", place, "--task", place / "task.json", "--minimum", 4, "--out", tmp_path) == 0
    assert read_statistics(tmp_path).left_out == {"beta": "fewer than 4 patients"}
    assert "beta told nothing" in capsys.readouterr().err
    assert call("statistics", place, "--task", place / "task.json") == 1
    assert "No site has 5 patients" in capsys.readouterr().err


@pytest.fixture
def written(tmp_path):
    sites = {"a": with_spacings([1.0] * 5), "b": with_spacings([1.0] * 5)}
    return write_statistics(FederationStatistics(TINY, sites), tmp_path / "run" / "report" / FILE)


WRONG = {
    "no task": (["statistics", "{data}"], 2, "--task is missing"),
    "task with statistics": (["statistics", "{run}", "--task", "brats"], 2, "holds statistics already"),
    "minimum with statistics": (["statistics", "{run}", "--minimum", "3"], 2, "holds statistics already"),
    "minimum of nobody": (["statistics", "{data}", "--task", "brats", "--minimum", "0"], 2, "--minimum is 0"),
    "nothing there": (["statistics", "{run}/none", "--task", "brats"], 2, "does not exist"),
    "no statistics": (["statistics", "{data}/task.json", "--task", "brats"], 1, "is not a datalist"),
    "over what is read": (["statistics", "{run}/report", "--out", "{run}/report"], 2, "that this command reads"),
    "plan of data": (["plan", "{data}", "--out", "{new}"], 1, "does not exist"),
    "small patch": (["plan", "{run}", "--out", "{new}", "--voxels", "10"], 2, "--voxels is 10"),
    "plan over statistics": (["plan", "{run}", "--out", "{run}"], 2, "made new"),
    "full folder": (["plan", "{run}", "--out", "{data}"], 2, "is not empty"),
    "odd name": (["plan", "{run}", "--out", "{new}", "--name", "../x"], 1, "--name"),
    "too little told": (["plan", "{run}", "--out", "{new}"], 1, "tell nothing of kept"),
}


@pytest.mark.parametrize(("line", "code", "said"), WRONG.values(), ids=WRONG.keys())
def test_wrong_calls_say_what_to_do_and_write_nothing(place, written, tmp_path, capsys, line, code, said):
    names = {"data": place, "run": written.parents[1], "new": tmp_path / "new"}
    before = written.read_bytes()
    assert call(*(part.format(**names) for part in line)) == code
    assert said in " ".join(capsys.readouterr().err.split())
    assert written.read_bytes() == before
    assert not Path(tmp_path / "new").exists()

"""Regions that are not drawn everywhere: on the page of a run, on that of statistics, and in an evaluation."""

import json
from dataclasses import replace

import pytest

from fedseg.cli import main
from fedseg.evaluation.report.drawn import drawn_counts, drawn_table, drawn_words
from fedseg.evaluation.report.statistics import statistics_tables
from fedseg.statistics.document import FederationStatistics
from fedseg.statistics.drawn import cases_drawn, share_acquired
from statistics_of_tiny import TINY, measured, tiny_cases
from tiny import EXCLUSIVE, TASK, make_model_and_site

CAPTION = "Cases in which a region is drawn, where not all have all."


def summary(convention="brats", empty=None, **defined):
    sites = {
        site: {"cases": 4, "dice": {"inner": 0.5, "whole": 0.5, "mean": 0.5}, "defined": counts, "empty": empty or {}}
        for site, counts in defined.items()
    }
    return {"task": "tiny", "task_declaration": TASK, "empty_convention": convention, "final": {"sites": sites}}


ALL = {"inner": 4, "whole": 4}


def test_a_run_in_which_everything_is_drawn_has_no_section():
    assert not drawn_table(summary(a=ALL, b=ALL)).rows
    assert drawn_words(summary(a=ALL, b=ALL)) == ""


def test_counts_stand_by_site_and_region_with_their_sums():
    found = drawn_table(summary(a=ALL, b={"inner": 0, "whole": 3}))
    assert found.header == ("Site", "Cases", "inner", "whole")
    assert found.rows == [["a", "4", "4", "4"], ["b", "4", "0", "3"], ["All sites", "8", "4", "7"]]
    words = drawn_words(summary(a=ALL, b={"inner": 0, "whole": 3}))
    assert "compare regions between sites, not means. Nobody drew inner at b" in words


def test_a_drawn_region_that_is_empty_has_no_score_but_is_drawn():
    """Under the convention that leaves such cases out, two of four lack the region in the reference."""
    empty = {"inner": {"both": 1, "reference": 1, "prediction": 1}}
    assert not drawn_table(summary("exclude", empty, a={"inner": 2, "whole": 4})).rows
    assert drawn_counts(summary("exclude", empty, a={"inner": 1, "whole": 4}))["a"] == {"inner": 3, "whole": 4}
    assert drawn_counts(summary("brats", empty, a={"inner": 2, "whole": 4}))["a"] == {"inner": 2, "whole": 4}


def test_a_site_that_tells_no_counts_is_not_guessed():
    assert not drawn_table(summary(a=ALL, b={})).rows
    assert drawn_counts(summary(a={"inner": 1, "whole": 4}, b={})) == {"a": {"inner": 1, "whole": 4}}


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return tiny_cases(tmp_path_factory.mktemp("cases"), range(4))


def test_statistics_count_the_cases_in_which_each_region_is_drawn(cases):
    partial = [*cases[:1], *(replace(case, drawn=("whole",)) for case in cases[1:])]
    one, other = measured(cases), measured(partial)
    assert cases_drawn(one, TINY) == {"inner": 4, "whole": 4}
    assert cases_drawn(other, TINY) == {"inner": 1, "whole": 4}
    tables = statistics_tables(FederationStatistics(TINY, {"a": one, "b": other}))
    assert tables[CAPTION].rows == [["a", "4", "4", "4"], ["b", "4", "1", "4"], ["all sites", "8", "5", "8"]]
    assert CAPTION not in statistics_tables(FederationStatistics(TINY, {"a": one, "b": one}))


def test_a_count_below_the_minimum_is_not_told(cases):
    partial = [*cases[:1], *(replace(case, drawn=("whole",)) for case in cases[1:])]
    found = measured(partial, minimum=2)
    assert cases_drawn(found, TINY)["inner"] is None
    rows = statistics_tables(FederationStatistics(TINY, {"a": found}))[CAPTION].rows
    assert rows == [["a", "4", "below 2", "4"]]
    assert share_acquired(found, "a") is None


def evaluated(folder, *more):
    given = ["model.safetensors", "--task", "task.json", "--data", "a", "--split", "all", "--out", "out", *more]
    assert main(["evaluate", *given]) == 0
    return json.loads((folder / "out" / "evaluation.json").read_text())


def test_an_evaluation_scores_what_the_profile_says_is_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_model_and_site(tmp_path)
    before = evaluated(tmp_path)
    assert before["cases_drawn"] == {"inner": 5, "whole": 5}
    (tmp_path / "local").mkdir()
    profile = {"datasets": {"other": str(tmp_path / "x"), "ours": str(tmp_path / "a")}, "state": "state"}
    place = tmp_path / "local" / "fedseg.json"
    place.write_text(json.dumps({**profile, "drawn": {"ours": ["whole"], "other": ["inner"]}}))
    for given in (place, place.parent):
        after = evaluated(tmp_path, "--profile", str(given))
        assert after["cases_drawn"] == {"inner": 0, "whole": 5}
        assert after["mean"]["dice"]["whole"] == before["mean"]["dice"]["whole"]
        assert after["mean"]["dice"]["inner"] is None
        assert after["mean"]["dice"]["mean"] == before["mean"]["dice"]["whole"]
    # The datalist speaks first.
    datalist = json.loads((tmp_path / "a" / "datalist.json").read_text())
    (tmp_path / "a" / "datalist.json").write_text(json.dumps({**datalist, "drawn": ["inner"]}))
    assert evaluated(tmp_path, "--profile", str(place))["cases_drawn"] == {"inner": 5, "whole": 0}
    given = ["model.safetensors", "--task", "task.json", "--data", "a", "--out", "out"]
    assert main(["evaluate", *given, "--profile", str(tmp_path / "task.json")]) == 2
    assert "give the fedseg.json of a site" in " ".join(capsys.readouterr().err.split())


def test_exclusive_regions_are_the_same_to_the_page():
    assert drawn_table({**summary(a={"inner": 4, "outer": 2}), "task_declaration": EXCLUSIVE}).rows[0][3] == "2"

"""Which regions somebody has drawn: in datalists and profiles, in the check, and in what an import writes."""

import json
from pathlib import Path

import pytest

from fedseg.cli import main
from fedseg.data.checks.datalist_check import check_datalist
from fedseg.data.datalist import Case, Datalist, read_datalist, write_datalist
from fedseg.errors import ConfigurationError, DataError
from fedseg.site.profile import read_profile
from fedseg.statistics.measuring import measure
from fedseg.statistics.quantities import VOLUME, named
from fedseg.tasks.drawn import drawn_outputs, told_classes, undrawn_classes
from fedseg.tasks.objective import objective_of
from fedseg.tasks.registry import BRATS, PANCREAS
from fedseg.tasks.task import parse_task
from tiny import TASK, make_sites

EXCLUSIVE = parse_task({**TASK, "regions": {"inner": ["inner"], "outer": ["outer"]}})


def written(folder, **content):
    entries = [{"image": "x.nii", "label": "y.nii", "patient": str(i)} for i in range(2)]
    (folder / "datalist.json").write_text(json.dumps({"training": entries, **content}))
    return folder


def test_the_list_speaks_for_cases_that_say_nothing(tmp_path):
    one = {"image": "x.nii", "patient": "3", "drawn": ["ET", "WT"]}
    found = read_datalist(written(tmp_path, drawn=["WT"], validation=[one]))
    assert [case.drawn for case in found.training] == [("WT",), ("WT",)]
    assert found.validation[0].drawn == ("ET", "WT")
    assert found.with_drawn(["TC"]) == found
    assert read_datalist(written(tmp_path)).with_drawn(["TC"]).training[0].drawn == ("TC",)
    assert read_datalist(written(tmp_path)).training[0].drawn is None


@pytest.mark.parametrize("several", [(("a",), ("a",)), (("a",), None), (None, None), (("a",), ("b", "a"))])
def test_what_is_written_is_read_again(tmp_path, several):
    cases = [Case((tmp_path / f"{i}.nii",), None, str(i), drawn=drawn) for i, drawn in enumerate(several)]
    path = write_datalist(Datalist((cases[0],), (cases[1],)), tmp_path / "datalist.json")
    again = read_datalist(path)
    assert [again.training[0].drawn, again.validation[0].drawn] == list(several)
    assert ("drawn" in json.loads(path.read_text())) == (several[0] == several[1] is not None)
    assert again.notes == {}


@pytest.mark.parametrize("drawn", [[], "WT", ["WT", "WT"], [1], [""], {"WT": 1}])
def test_what_is_no_list_of_names_is_refused(tmp_path, drawn):
    with pytest.raises(DataError, match=r"drawn is .* but must be a list of different names"):
        read_datalist(written(tmp_path, drawn=drawn))
    with pytest.raises(DataError, match=r"validation\[0\]\.drawn"):
        read_datalist(written(tmp_path, validation=[{"image": "x.nii", "patient": "3", "drawn": drawn}]))


def test_names_are_those_of_the_task():
    kind = objective_of(BRATS)
    assert drawn_outputs(kind, ["WT"]) == (False, False, True)
    assert drawn_outputs(kind, ["WT", "TC", "ET"]) is None
    assert drawn_outputs(kind, None) is None
    with pytest.raises(DataError, match="drawn names 'oedema', but the regions of the task brats are ET, TC, WT"):
        drawn_outputs(kind, ["WT", "oedema"])


def test_which_classes_a_label_tells():
    only_whole, only_core = (False, False, True), (False, True, False)
    assert undrawn_classes(BRATS, only_whole) == ()
    assert undrawn_classes(BRATS, only_core) == ("oedema",)
    assert told_classes(BRATS, only_whole) == ("oedema",)
    assert told_classes(BRATS, only_core) == ("necrosis",)
    assert undrawn_classes(PANCREAS, (True, False)) == ("tumour",)
    assert told_classes(PANCREAS, (True, False)) == ("pancreas",)
    assert (undrawn_classes(BRATS, None), told_classes(BRATS, None)) == ((), BRATS.classes)


def site(folder, drawn, task=EXCLUSIVE):
    data = make_sites(folder, {"a": (2, 1)})
    found = read_datalist(data / "a").with_drawn(drawn)
    return found, check_datalist(task, found)


def test_the_check_counts_what_is_drawn_and_tells_labels_that_do_not_count(tmp_path):
    _, report = site(tmp_path, ["inner"])
    assert report.statistics["cases_drawn"] == {"inner": 3, "outer": 0}
    (finding,) = [f for f in report.findings if f.code == "label-undrawn"]
    assert (finding.severity, "outer (3)" in finding.message) == ("warning", True)


def test_nothing_is_missed_of_a_class_that_nobody_drew(tmp_path):
    labels = {"inner": 1, "outer": 2, "far": 3}
    task = parse_task({**TASK, "labels": labels, "regions": {name: [name] for name in labels}})
    codes = [
        {f.code for f in site(tmp_path / str(i), drawn, task)[1].findings}
        for i, drawn in enumerate((None, ["inner", "outer"]))
    ]
    assert ["absent-class" in found for found in codes] == [True, False]


def test_the_check_refuses_unknown_names_once(tmp_path):
    _, report = site(tmp_path, ["inner", "tumour"])
    (finding,) = [f for f in report.errors if f.code == "drawn-names"]
    assert finding.message == "drawn names 'tumour', but the regions of the task tiny are inner, outer."
    assert finding.remedy == "Name only these."


def test_check_data_and_import_data_say_what_is_drawn(tmp_path, capsys):
    data = make_sites(tmp_path / "data", {"a": (2, 1)})
    (tmp_path / "task.json").write_text(json.dumps(EXCLUSIVE.to_dict()))
    task = str(tmp_path / "task.json")
    arguments = ["import-data", str(data / "a"), "--task", task, "--out"]
    assert main([*arguments, str(tmp_path / "out"), "--drawn", "inner"]) == 0
    assert "drawn: inner" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "datalist.json").read_text())["drawn"] == ["inner"]
    assert main(["check-data", task, str(tmp_path / "out")]) == 0
    assert "cases in which it is drawn inner: 3, outer: 0" in capsys.readouterr().out
    assert main([*arguments, str(tmp_path / "bad"), "--drawn", "inner,liver"]) == 1
    assert "'liver'" in capsys.readouterr().err
    assert not (tmp_path / "bad").exists()


def test_a_profile_speaks_for_datalists_that_say_nothing(tmp_path):
    content = {"datasets": {"ct": "/d/a.json", "*": "/d/b.json"}, "state": "/s", "drawn": {"ct": ["pancreas"]}}
    (tmp_path / "fedseg.json").write_text(json.dumps(content))
    profile = read_profile("a", tmp_path, tmp_path)
    assert (profile.drawn_regions("ct"), profile.drawn_regions("mr")) == (("pancreas",), None)
    assert profile.datalist("ct") == Path("/d/a.json")


@pytest.mark.parametrize("drawn", [["pancreas"], {"mr": ["pancreas"]}, {"ct": []}, {"ct": "pancreas"}])
def test_a_profile_names_its_own_data_sets_and_lists(tmp_path, drawn):
    content = {"datasets": {"ct": "/d/a.json"}, "state": "/s", "drawn": drawn}
    (tmp_path / "fedseg.json").write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match="drawn"):
        read_profile("a", tmp_path, tmp_path)


def test_statistics_are_of_what_is_drawn(tmp_path):
    found, _ = site(tmp_path, ["inner"])
    counted = measure(EXCLUSIVE, found.training)
    assert named(VOLUME, "inner") in counted.moments
    assert named(VOLUME, "outer") not in counted.moments

"""Channels that a site says it never has: its cases list what there is."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fedseg.contract.plan import parse_plan
from fedseg.data.datalist import Case, Datalist, write_datalist
from fedseg.data.never_acquired import without_channels
from fedseg.errors import ConfigurationError, DataError, RefusalError
from fedseg.executors.admission import admit_data
from fedseg.site.profile import read_profile
from fedseg.tasks.task import parse_task
from tiny import PLAN, TASK

CHANNELS = ["t1", "t1ce", "t2"]
DECLARED = {**TASK, "channels": CHANNELS, "optional_channels": ["t1", "t1ce"]}


def case(*names, missing=()):
    return Case(tuple(Path(f"p_{name}.nii.gz") for name in names), Path("l.nii.gz"), "p", missing)


@pytest.mark.parametrize(
    ("given", "lacks"),
    [
        (case("t1", "t2"), ["t1ce"]),
        (case("t1", "t2", missing=(1,)), ["t1ce"]),
        (case("t2"), ["t1ce", "t1"]),
        (case("t2", missing=(0, 1)), ["t1ce"]),
        (case("t1", "t1ce", "t2"), ["adc"]),
        (case("t1", "t1ce", "t2"), []),
    ],
)
def test_cases_lack_what_their_site_never_has(given, lacks):
    found = without_channels(parse_task(DECLARED), Datalist((given,), (given,)), lacks)
    assert found.training == found.validation
    named = {None if c is None else c.name: i for i, c in enumerate(found.training[0].channels)}
    for name in CHANNELS:
        there = f"p_{name}.nii.gz" in named
        assert there == (f"p_{name}.nii.gz" in {image.name for image in given.images})
        assert not there or named[f"p_{name}.nii.gz"] == CHANNELS.index(name)


@pytest.mark.parametrize("given", [case("t1", "t1ce", "t2"), case("t1ce", "t2", missing=(0,))])
def test_a_case_that_has_the_image_contradicts_its_site(given):
    with pytest.raises(DataError, match=r"1 case\(s\) of a site that never has t1ce list images of it .*patient p"):
        without_channels(parse_task(DECLARED), Datalist((given,)), ["t1ce"])


def profile(folder, lacks):
    content = {"datasets": {"tiny": str(folder / "datalist.json")}, "state": "s", "lacks": lacks}
    (folder / "fedseg.json").write_text(json.dumps(content))
    return read_profile("a", folder, folder)


def test_a_site_says_so_in_its_profile_and_takes_part_unless_the_job_needs_the_channel(tmp_path, make_case):
    cases = [make_case(f"c{number}", channels=3) for number in range(3)]
    short = [replace(each, images=(each.images[0], each.images[2])) for each in cases]
    write_datalist(Datalist(tuple(short[:2]), tuple(short[2:])), tmp_path / "datalist.json")
    plan = parse_plan({**PLAN, "task": DECLARED})
    with pytest.raises(RefusalError) as caught:
        admit_data(plan, profile(tmp_path, {}))
    assert caught.value.reason == "task"
    admitted = admit_data(plan, profile(tmp_path, {"tiny": ["t1ce"]}))
    assert [each.missing for each in (*admitted.training, *admitted.validation)] == [(1,)] * 3
    needing = parse_plan({**PLAN, "task": {**DECLARED, "optional_channels": ["t1"]}})
    with pytest.raises(RefusalError, match="never has t1ce, without which the task tiny takes no case") as caught:
        admit_data(needing, profile(tmp_path, {"tiny": ["t1ce"]}))
    assert caught.value.reason == "task"


@pytest.mark.parametrize("lacks", [["t1"], {"other": ["t1"]}, {"tiny": "t1"}, {"tiny": [1]}, {"tiny": [""]}, None])
def test_what_else_a_profile_says_is_refused(tmp_path, lacks):
    with pytest.raises(ConfigurationError, match=r"fedseg\.json: lacks"):
        profile(tmp_path, lacks)

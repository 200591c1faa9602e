"""The data that a site offers."""

import json
import shutil
from pathlib import Path

from checked_site import check, edit, found, without_an_image
from fedseg.deployment.kits.installed_kit import read_kit
from fedseg.deployment.operation.checks.page import check_site
from fedseg.deployment.operation.checks.result import CheckOptions, Colour
from tiny import make_sites


def test_full_data_reads_the_voxels(kit, server, tmp_path):
    copied = tmp_path / "copy"
    shutil.copytree(Path(json.loads((kit / "local" / "fedseg.json").read_text())["datasets"]["tiny"]), copied)
    edit(kit / "local" / "fedseg.json", lambda c: {**c, "datasets": {"tiny": str(copied)}})
    label = copied / "images" / "alpha-0.nii.gz"
    # A header that promises voxels, and none behind it.
    label.write_bytes(label.read_bytes()[:-40])
    assert found(check(kit)) == {}
    assert "unreadable (1)" in found(check(kit, full_data=True))["data: tiny"]


def test_data_of_a_task_that_is_not_built_in_are_looked_at_all_the_same(kit, server):
    page = check_site(read_kit(kit), CheckOptions(timeout=5))
    assert "all 26 files are there. The task tiny is not built in" in found(page, Colour.YELLOW)["data: tiny"]
    without_an_image(kit)
    assert "1 of 26 files are missing" in found(check_site(read_kit(kit), CheckOptions(timeout=5)))["data: tiny"]


def test_few_cases_are_a_remark(kit, server, tmp_path):
    few = make_sites(tmp_path / "few", {"alpha": (2, 1)})
    edit(kit / "local" / "fedseg.json", lambda c: {**c, "datasets": {"tiny": str(few / "alpha")}})
    page = check(kit)
    assert found(page) == {}
    said = found(page, Colour.YELLOW)["data: tiny"]
    assert "few-cases" in said
    # The name of a task that is not built in would be no argument of the command.
    assert f"fedseg check-data JOB_FOLDER_OR_FILE {few / 'alpha' / 'datalist.json'} --quick" in said

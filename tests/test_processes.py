import subprocess
import sys
import time

import psutil
import pytest

from fedseg.data.site_folders import find_sites
from fedseg.errors import UsageError
from fedseg.processes import end_processes, process_group
from fedseg.simulation.run_folder import prepare_output

ORPHAN = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"


def test_processes_that_outlive_their_parent_are_ended():
    parent = subprocess.Popen([sys.executable, "-c", ORPHAN], start_new_session=True)
    parent.wait(timeout=20)
    orphans = process_group(parent.pid)
    assert len(orphans) == 1
    end_processes(orphans)
    time.sleep(0.1)
    assert not psutil.pid_exists(orphans[0].pid)


def test_a_folder_that_is_no_run_is_never_emptied(tmp_path):
    (tmp_path / "job").mkdir()
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "thesis").write_text("years of work")
    with pytest.raises(UsageError, match="no former run"):
        prepare_output(tmp_path, overwrite=True)
    assert (tmp_path / "models" / "thesis").exists()


def test_sites_need_datalists_and_proper_names(tmp_path):
    with pytest.raises(UsageError, match=r"holds no <site>/datalist\.json"):
        find_sites(tmp_path)
    (tmp_path / "two words").mkdir()
    (tmp_path / "two words" / "datalist.json").write_text('{"training": []}')
    with pytest.raises(UsageError, match="two words"):
        find_sites(tmp_path)


def test_a_folder_without_a_datalist_is_not_left_out_in_silence(tmp_path):
    for name in ("north", "south", ".cache"):
        (tmp_path / name).mkdir()
    (tmp_path / "north" / "datalist.json").write_text('{"training": []}')
    with pytest.raises(UsageError, match=r"south has no datalist\.json, but others here have one"):
        find_sites(tmp_path)
    (tmp_path / "south").rmdir()
    assert find_sites(tmp_path) == ["north"]

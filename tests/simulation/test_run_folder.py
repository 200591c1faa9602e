"""A simulated run that goes on spends from the ledger that it began with."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from fedseg.errors import FedsegError, UsageError
from fedseg.jobs.job import read_job
from fedseg.simulation.run_folder import end_run, ledger_folder

JOB = Path(__file__).parents[2] / "jobs" / "hippocampus_fedavg"


def test_a_new_run_has_its_own_ledger_or_the_one_given(tmp_path):
    assert ledger_folder(tmp_path, None, False) is None
    assert ledger_folder(tmp_path, tmp_path / "kept", False) == tmp_path / "kept"


def test_a_run_that_goes_on_keeps_the_ledger_it_had(tmp_path):
    ledger_folder(tmp_path, tmp_path / "kept", False)
    assert ledger_folder(tmp_path, None, True) == tmp_path / "kept"
    assert ledger_folder(tmp_path, tmp_path / "kept", True) == tmp_path / "kept"
    with pytest.raises(UsageError, match=r"--ledger .*other: the run began with .*kept"):
        ledger_folder(tmp_path, tmp_path / "other", True)


def test_a_run_without_a_ledger_of_its_own_choice_takes_none_later(tmp_path):
    ledger_folder(tmp_path, tmp_path / "kept", False)
    ledger_folder(tmp_path, None, False)
    assert ledger_folder(tmp_path, None, True) is None
    with pytest.raises(UsageError, match="in its own folder"):
        ledger_folder(tmp_path, tmp_path / "kept", True)


@pytest.mark.parametrize(("free", "said"), [(2**20 - 1, "Make room on it, then add --resume."), (2**30, "log")])
def test_a_run_that_could_write_nothing_says_that_the_disk_is_full(tmp_path, monkeypatch, free, said):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=free))
    with pytest.raises(FedsegError, match="without a finished model") as error:
        end_run(read_job(JOB), tmp_path, ["a"])
    assert said in str(error.value)
    assert ("is full" in str(error.value)) == (free < 2**20)

"""A simulated run that goes on spends from the ledger that it began with."""

import pytest

from fedseg.errors import UsageError
from fedseg.simulation.run_folder import ledger_folder


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

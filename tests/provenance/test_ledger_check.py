"""Records of runs against the ledger: a ledger that went back with all that lies beside it is found by them."""

import pytest

from fedseg.errors import FedsegError
from fedseg.provenance.ledger_check import uncharged
from fedseg.provenance.run_log import RECORD_FILE, SITE_SIDE, RunLog


def write_run(state, run, *sent):
    """A record with a line for each (round, epsilon) that left."""
    log = RunLog(state / run / RECORD_FILE, SITE_SIDE, "alpha", run)
    for number, epsilon in sent:
        log.append("sent", task="train", round=number, start="s", content="WEIGHT_DIFF", bytes=1, epsilon=epsilon)


def charged(*places):
    return [{"run_id": run, "round": number} for run, number in places]


def test_each_round_that_left_with_a_guarantee_must_be_charged_as_often(tmp_path):
    write_run(tmp_path, "a", (0, 0.5), (1, 0.9), (1, 1.2), (2, None))
    write_run(tmp_path, "b", (0, 1.5))
    full = charged(("a", 0), ("a", 1), ("a", 1), ("b", 0), ("gone", 7))
    assert uncharged(tmp_path, full) == []
    assert uncharged(tmp_path, full[:2]) == ["run a, round 2", "run b, round 1"]
    assert uncharged(tmp_path, []) == ["run a, round 1", "run a, round 2", "run a, round 2", "run b, round 1"]


def test_no_records_ask_for_nothing_and_a_changed_one_is_no_witness(tmp_path):
    assert uncharged(tmp_path, []) == []
    write_run(tmp_path, "a", (0, 0.5), (1, 0.7))
    path = tmp_path / "a" / RECORD_FILE
    path.write_bytes(path.read_bytes().replace(b"0.7", b"0.1"))
    with pytest.raises(FedsegError, match="was changed"):
        uncharged(tmp_path, [])

"""Updates on the server's disk: which of them a new start takes, and that what it takes is what came."""

import numpy as np
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType

from fedseg.contract.protocol import STEPS
from fedseg.contract.report import META_KEY, SiteReport
from fedseg.workflows.run.arrivals import Arrivals


def update(value):
    meta = {**SiteReport(2, 1, 0.9, None).to_meta(), STEPS: [{"filter": "NormClip"}], "other": object()}
    return FLModel(params_type=ParamsType.DIFF, params={"w": np.full(3, value, np.float32)}, meta=meta)


def filled(folder):
    journal = Arrivals(folder)
    for number, site in enumerate("abca"):
        assert journal.put(site, number // 2, "start", update(float(number)), (10, 20)).number == number
    return journal


def test_a_new_start_takes_what_waited_and_what_came_later_and_removes_the_rest(tmp_path):
    filled(tmp_path)
    journal = Arrivals(tmp_path)
    found = list(journal.left(since=3, waiting=[1]))
    assert [(a.number, a.site, a.round, a.start, a.bytes) for a in found] == [
        (1, "b", 0, "start", (10, 20)), (3, "a", 1, "start", (10, 20))
    ]  # fmt: skip
    for arrival in found:
        sent = update(float(arrival.number))
        np.testing.assert_array_equal(arrival.answer.params["w"], sent.params["w"])
        assert arrival.answer.params_type == ParamsType.DIFF
        assert arrival.answer.meta == {key: sent.meta[key] for key in (META_KEY, STEPS)}
    assert journal.next == 4
    assert len(list(tmp_path.glob("*"))) == 2
    journal.remove([1, 3])
    assert list(tmp_path.glob("*")) == []


def test_a_damaged_file_is_left_out_and_no_number_is_given_twice(tmp_path):
    filled(tmp_path)
    (file,) = tmp_path.glob("*3.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    journal = Arrivals(tmp_path)
    assert [arrival.number for arrival in journal.left(since=0, waiting=())] == [0, 1, 2]
    assert journal.put("b", 2, "start", update(9.0), (0, 0)).number == 4


def test_nothing_is_left_where_nothing_arrived(tmp_path):
    assert list(Arrivals(tmp_path / "none").left(since=0, waiting=())) == []

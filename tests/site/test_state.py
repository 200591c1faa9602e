"""A site's states along branches of a run, as they come about when a run goes back to an earlier round."""

import pickle

import pytest
import torch

from fedseg.errors import ConfigurationError, RefusalError
from fedseg.site.round_files import LostStateError
from fedseg.site.state import SiteState, claim


def state(folder, start, lineage, keep=0):
    site = SiteState(folder, "run", keep)
    site.start, site.lineage = start, lineage
    return site


def test_a_state_of_an_abandoned_branch_is_passed_over(tmp_path):
    """Rounds 0 to 3 in start A; back to round 1; the site misses the new round 2 and is asked for round 3."""
    for number in range(4):
        state(tmp_path, "A", ["A"] * number).save(number, {"from": f"A{number}"})
    site = state(tmp_path, "B", ["A", "A", "B"])
    assert site.load(3) == {"from": "A1"}
    site.save(3, {"from": "B3"})
    assert state(tmp_path, "B", ["A", "A", "B", "B"]).load(4) == {"from": "B3"}


def test_a_site_whose_states_do_not_lead_to_the_round_refuses(tmp_path):
    """Only the states of rounds 7 to 9 are left, and the server goes on after round 3."""
    for number in range(10):
        state(tmp_path, "A", ["A"] * number, keep=3).save(number, {"from": number})
    for asked in (4, 8):
        lineage = ["A"] * 4 + ["B"] * (asked - 4)
        with pytest.raises(RefusalError, match="is gone; the last 3 are kept") as error:
            state(tmp_path, "B", lineage, keep=3).load(asked)
        assert error.value.reason == "state"


def test_a_site_that_joined_late_starts_afresh_before_the_round_of_its_first_state(tmp_path):
    state(tmp_path, "A", ["A"] * 5).save(5, {"from": "A5"})
    assert state(tmp_path, "B", ["A"] * 3).load(3) is None


def test_without_a_lineage_every_earlier_state_counts(tmp_path):
    state(tmp_path, None, None).save(0, {"from": 0})
    assert state(tmp_path, None, None).load(1) == {"from": 0}


def test_a_damaged_state_is_a_refusal_with_its_reason(tmp_path):
    site = state(tmp_path, "A", [])
    site.save(0, {"from": 0})
    path = next(site.folder.glob("*.pt"))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RefusalError, match="after round 1 is damaged") as error:
        state(tmp_path, "A", ["A"]).load(1)
    assert error.value.reason == "state"
    assert str(tmp_path) not in str(error.value)


@pytest.mark.parametrize(("number", "said"), [(28, "its disk is full"), (5, "its disk does not take it")])
def test_a_failed_write_leaves_the_former_state_and_nothing_half_written(tmp_path, monkeypatch, number, said):
    """28 is ENOSPC, 5 an error of input or output; an error of a library may hide the one of the file."""
    site = state(tmp_path, "A", [])
    site.save(0, {"from": 0})

    def full(path):
        try:
            raise OSError(number, f"{path.name} cannot be written")
        finally:
            raise RuntimeError("unexpected position")

    monkeypatch.setattr("fedseg.files.documents.sync", full)
    with pytest.raises(RefusalError, match=f"after round 2: {said}") as error:
        site.save(1, {"from": 1})
    assert error.value.reason == "state"
    assert str(tmp_path) not in str(error.value)
    monkeypatch.undo()
    assert state(tmp_path, "A", ["A", "A"]).load(2) == {"from": 0}
    assert [path.name for path in site.folder.iterdir()] == ["round-00000.pt"]


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def pickled(path):
    path.write_bytes(pickle.dumps({"start": "A", "first": 0, "values": {"from": 7}}))


def saved_by_torch(path):
    torch.save({"start": "A", "first": 0, "values": {"from": 7}}, path)


@pytest.mark.parametrize(
    "spoil",
    [lambda path: flip(path, 12), lambda path: flip(path, -700), lambda path: flip(path, -1), pickled, saved_by_torch,
     lambda path: path.write_bytes(b""), lambda path: path.write_text('["no line"]\n'),
     lambda path: path.write_bytes(path.read_bytes().replace(b'"first": 0', b'"first": 1')),
     lambda path: path.write_bytes(path.read_bytes() + b"more")],
)  # fmt: skip
def test_whatever_is_not_the_file_that_was_written_is_named(tmp_path, spoil):
    site = state(tmp_path, "A", [])
    site.save(0, {"weights": torch.arange(300.0), "from": 0})
    spoil(site.folder / "round-00000.pt")
    with pytest.raises(LostStateError, match=r"after round 1 is damaged.*fresh_states") as error:
        state(tmp_path, "A", ["A"]).load(1)
    assert error.value.reason == "state"
    assert str(tmp_path) not in str(error.value)


@pytest.mark.parametrize("left", [(), (0,), (0, 1)])
def test_a_state_that_is_gone_is_named_where_the_server_knows_of_it(tmp_path, left):
    """The site took part in rounds 1 to 3; the last file is gone, or all are, or the folder."""
    site = state(tmp_path, "A", ["A", "A"])
    for number in range(3):
        site.save(number, {"from": number})
    for number in set(range(3)) - set(left):
        (site.folder / f"round-{number:05d}.pt").unlink()
    found = state(tmp_path, "A", ["A"] * 3)
    found.follow(last=2)
    with pytest.raises(LostStateError, match="after round 3 is gone"):
        found.load(3)
    found.follow(last=2)
    assert found.load(2) == ({"from": 1} if 1 in left else {"from": 0} if left else None), "before it nothing is lost"


def test_a_site_that_rested_has_lost_nothing(tmp_path):
    site = state(tmp_path, "A", [])
    site.save(1, {"from": 1})
    found = state(tmp_path, "A", ["A"] * 5)
    found.follow(last=1)
    assert found.load(5) == {"from": 1}
    newcomer = state(tmp_path / "newcomer", "A", ["A"] * 5)
    assert newcomer.load(5) is None


def test_a_site_that_is_told_to_goes_on_without_and_keeps_the_damaged_file_aside(tmp_path):
    site = state(tmp_path, "A", [])
    for number in range(2):
        site.save(number, {"from": number})
    flip(site.folder / "round-00001.pt", -1)
    with pytest.raises(LostStateError):
        site.load_or_lose(2)
    assert not site.lost
    assert site.load_or_lose(2, dispensable=True) is None
    assert site.lost
    site.follow(fresh=True)
    assert (site.lost, site.load_or_lose(2), site.lost) == (False, None, True)
    flip(site.folder / "round-00001.pt", 12)
    site.save(2, {"from": 2})
    assert state(tmp_path, "A", ["A"] * 3).load(3) == {"from": 2}
    names = ["damaged-round-00001.pt", "round-00000.pt", "round-00002.pt"]
    assert sorted(path.name for path in site.folder.iterdir()) == names


def test_the_state_of_a_run_belongs_to_one_job(tmp_path):
    """A run id comes from the server: another job with it must not carry out what the first one keeps here."""
    SiteState(tmp_path, "run").bind("a" * 64)
    SiteState(tmp_path, "run").bind("a" * 64)
    with pytest.raises(RefusalError, match="belongs to another job") as error:
        SiteState(tmp_path, "run").bind("b" * 64)
    assert error.value.reason == "state"
    assert str(tmp_path) not in str(error.value)
    SiteState(tmp_path, "other").bind("b" * 64)


def test_a_folder_of_which_nobody_says_whose_it_is_is_refused(tmp_path):
    SiteState(tmp_path, "run").save(0, {"x": 1})
    with pytest.raises(RefusalError, match="cannot be read or written"):
        SiteState(tmp_path, "run").bind("a" * 64)


@pytest.mark.parametrize("name", ["ledger", "Cache", "server"])
def test_a_run_cannot_have_the_name_of_something_else_in_the_state_folder(tmp_path, name):
    with pytest.raises(ConfigurationError, match="run_id"):
        SiteState(tmp_path, name)


def test_a_state_folder_is_one_sites(tmp_path):
    folder = tmp_path / "state"
    claim(folder, "alpha")
    claim(folder, "alpha")
    with pytest.raises(RefusalError, match="that of another site") as refused:
        claim(folder, "beta")
    assert refused.value.reason == "state"
    assert str(tmp_path) not in str(refused.value)


def test_a_state_folder_that_cannot_be_used_is_refused(tmp_path):
    (tmp_path / "state").write_text("no folder")
    with pytest.raises(RefusalError, match="cannot be used; its own log says why"):
        claim(tmp_path / "state", "alpha")

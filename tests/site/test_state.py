"""A site's states along branches of a run, as they come about when a run goes back to an earlier round."""

import pytest

from fedseg.errors import ConfigurationError, RefusalError
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
    """28 is ENOSPC, 5 an error of input or output. As torch does, an error of its own hides the one of the file."""
    site = state(tmp_path, "A", [])
    site.save(0, {"from": 0})

    def full(content, file):
        try:
            file.write(b"half")
            raise OSError(number, f"{file.name} cannot be written")
        finally:
            raise RuntimeError("unexpected position")

    monkeypatch.setattr("fedseg.site.state.torch.save", full)
    with pytest.raises(RefusalError, match=f"after round 2: {said}") as error:
        site.save(1, {"from": 1})
    assert error.value.reason == "state"
    assert str(tmp_path) not in str(error.value)
    monkeypatch.undo()
    assert state(tmp_path, "A", ["A", "A"]).load(2) == {"from": 0}
    assert [path.name for path in site.folder.iterdir()] == ["round-00000.pt"]


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

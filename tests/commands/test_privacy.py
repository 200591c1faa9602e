"""``fedseg privacy``: the ledger of a site, and plans, as somebody types them."""

import json
import math
import re

import pytest

from fedseg.cli import main
from fedseg.privacy.accounting.epsilon import ADAPTIVE, Release, epsilon
from fedseg.privacy.accounting.ledger import Ledger

GAUSSIAN = Release("gaussian", 20.0)


@pytest.fixture
def state(tmp_path):
    """A site's state folder after three rounds on one data set and one release on another, one patient shared."""
    ledger = Ledger(tmp_path / "ledger")
    place = {"run_id": "run", "delta": 1e-5, "budget": None}
    for number in range(3):
        ledger.charge("brain", ["p1", "p2"], GAUSSIAN, job="gaussian", round_number=number, **place)
    ledger.charge("other", ["p2"], Release("pure", epsilon=2.0), job="svt", round_number=0, **place)
    return tmp_path


def privacy(*arguments):
    return main(["privacy", *(str(argument) for argument in arguments)])


def text(captured):
    return " ".join(captured.split())


# ------------------------------------------------------------------ ledger


def test_ledger_as_json(state, capsys):
    assert privacy("ledger", state, "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert [entry["round"] for entry in content["releases"]] == [0, 1, 2, 0]
    # All four releases concern p2, who is in both data sets.
    expected = epsilon([GAUSSIAN] * 3 + [Release("pure", epsilon=2.0)], 1e-5, ADAPTIVE)
    assert {name: values["epsilon"] for name, values in content["spent"].items()} == {
        "brain": expected,
        "other": expected,
    }
    assert (content["simulated"], content["lines"], content["torn_bytes"]) == (False, 7, 0)
    last = json.loads((state / "ledger" / "ledger.jsonl").read_text().splitlines()[-1])
    assert content["head"] == last["hash"]


def test_ledger_as_a_table(state, capsys):
    assert privacy("ledger", state, "--dataset", "brain", "--delta", "1e-6") == 0
    shown = text(capsys.readouterr().out)
    expected = epsilon([GAUSSIAN] * 3 + [Release("pure", epsilon=2.0)], 1e-6, ADAPTIVE)
    assert f"brain: epsilon {expected:.4g} at delta 1e-06 per site update, of 4 guaranteed release(s); 0 " in shown
    assert "1 to 3" in shown
    assert "svt" not in shown
    assert "The ledger is intact: 7 lines, head " in shown


def test_what_left_without_a_guarantee_is_listed_and_told_with_the_epsilon(state, capsys):
    ledger, place = Ledger(state / "ledger"), {"job": "fedavg", "run_id": "plain"}
    for number in range(2):
        ledger.enter("brain", ["p1"], "update", **place, round_number=number)
    ledger.enter("third", ["p9"], "scores", **place, round_number=-1)
    assert privacy("ledger", state) == 0
    shown = text(capsys.readouterr().out)
    assert "2 release(s) without a guarantee, which this epsilon does not cover" in shown
    assert "third: no guaranteed release; 1 release(s) without a guarantee, so no epsilon" in shown
    assert "another hospital is counted there by himself" in shown
    assert re.search(r"fedavg.+update.+2.+1", shown)
    assert privacy("ledger", state, "--json", "--dataset", "third") == 0
    content = json.loads(capsys.readouterr().out)
    assert [entry["what"] for entry in content["without_guarantee"]] == ["scores"]
    assert (content["releases"], content["spent"]["third"]["without_guarantee"]) == ([], 1)


def test_a_ledger_of_its_own_folder_simulated_and_without_noise(tmp_path, capsys):
    Ledger(tmp_path, simulated=True).charge(
        "brain", ["p"], Release("gaussian", 0.0), job="job", run_id="r", round_number=0, delta=1e-5, budget=None,
        limit=None,
    )  # fmt: skip
    assert privacy("ledger", tmp_path) == 0
    shown = text(capsys.readouterr().out)
    assert "brain: epsilon endless at" in shown
    assert "The simulated ledger is intact" in shown
    assert privacy("ledger", tmp_path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["spent"]["brain"]["epsilon"] is None


def test_a_repeated_round_shows_as_two_releases(tmp_path, capsys):
    for number in (0, 1, 1):
        Ledger(tmp_path).charge(
            "brain", ["p"], GAUSSIAN, job="job", run_id="r", round_number=number, delta=1e-5, budget=None
        )
    assert privacy("ledger", tmp_path) == 0
    assert "│ 1 to 2 │ 3 " in text(capsys.readouterr().out)


def test_a_torn_line_is_shown(state, capsys):
    with (state / "ledger" / "ledger.jsonl").open("ab") as file:
        file.write(b'{"half')
    assert privacy("ledger", state) == 0
    assert "6 bytes of a line that was never completed" in text(capsys.readouterr().out)


def test_a_broken_chain_ends_with_its_line(state, capsys):
    path = state / "ledger" / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"round":1', b'"round":9'))
    assert privacy("ledger", state) == 1
    assert "Line 4 was changed" in text(capsys.readouterr().err)


def test_a_ledger_without_its_file_is_broken_not_absent(state, capsys):
    (state / "ledger" / "ledger.jsonl").unlink()
    assert privacy("ledger", state) == 1
    assert "Line 1 is missing: 7 lines were written and 0 are left" in text(capsys.readouterr().err)


def test_no_ledger(tmp_path, capsys):
    assert privacy("ledger", tmp_path) == 1
    assert "holds no privacy ledger" in text(capsys.readouterr().err)


# -------------------------------------------------------------------- plan


def plan(capsys, *arguments):
    """Exit code, noise multiplier, rounds and the epsilons of a plan."""
    assert privacy("plan", *arguments) == 0
    shown = capsys.readouterr().out
    return {
        name: float(value)
        for name, value in re.findall(r"^(noise multiplier|rounds|epsilon \(\w+\)) +(\S+)", shown, re.M)
    }


def test_noise_for_rounds(capsys):
    found = plan(capsys, "--epsilon", 8, "--delta", 1e-5, "--rounds", 100)
    # Under replacement the sensitivity is two clipping norms, and 100 rounds act as one with a tenth of the noise.
    cost = epsilon([Release("gaussian", found["noise multiplier"] / 2 / 10)], 1e-5)
    assert found["epsilon (pld)"] == pytest.approx(cost, abs=1e-4)
    assert 7.99 < cost <= 8
    assert found["epsilon (rdp)"] > cost


def test_rounds_for_noise(capsys):
    found = plan(capsys, "--epsilon", 8, "--delta", 1e-5, "--noise-multiplier", 12.1)
    assert found["rounds"] == 101
    again = plan(capsys, "--epsilon", 8, "--delta", 1e-5, "--noise-multiplier", 12.1, "--neighbours", "add-remove")
    # Half the sensitivity allows four times the rounds.
    assert math.floor(again["rounds"] / 4) == 101


def test_sampling(capsys):
    arguments = ("--epsilon", 8, "--delta", 1e-5, "--rounds", 20, "--sampling-rate", 0.1)
    found = plan(capsys, *arguments, "--neighbours", "add-remove", "--accountant", "rdp")
    assert found["epsilon (pld)"] < found["epsilon (rdp)"] <= 8
    assert privacy("plan", *arguments) == 0
    assert "not known for sampling under replacement" in capsys.readouterr().out


def test_no_round_fits(capsys):
    assert plan(capsys, "--epsilon", 1, "--delta", 1e-5, "--noise-multiplier", 0.1) == {
        "noise multiplier": 0.1,
        "rounds": 0,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epsilon", "-1", "--delta", "1e-5", "--rounds", "3"], "epsilon is -1.0"),
        (["--epsilon", "1", "--delta", "2", "--rounds", "3"], "delta is 2.0"),
        (["--epsilon", "1", "--delta", "1e-5", "--rounds", "0"], "rounds is 0"),
        (["--epsilon", "1", "--delta", "1e-5", "--noise-multiplier", "0"], "noise_multiplier is 0.0"),
        (["--epsilon", "1", "--delta", "1e-5", "--rounds", "3", "--sampling-rate", "2"], "sampling_rate is 2.0"),
        (
            ["--epsilon", "1", "--delta", "1e-5", "--rounds", "3", "--sampling-rate", "0.5", "--accountant", "rdp"],
            "accountant is 'rdp', but must be pld",
        ),
    ],
)
def test_wrong_values_of_a_plan(arguments, message, capsys):
    assert privacy("plan", *arguments) == 2
    assert message in text(capsys.readouterr().err)


def test_wrong_usage_of_a_ledger(state, capsys):
    assert privacy("ledger", state, "--dataset", "unknown") == 2
    assert "nothing of unknown is in the ledger; it holds brain, other." in text(capsys.readouterr().err)
    assert privacy("ledger", state, "--delta", "1") == 2
    assert "delta is 1.0" in text(capsys.readouterr().err)


@pytest.mark.parametrize(
    "arguments", [[], ["plan", "--epsilon", "1", "--delta", "1e-5"], ["ledger"], ["plan", "--rounds", "2"]]
)
def test_missing_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        privacy(*arguments)
    assert error.value.code == 2
    assert "required" in capsys.readouterr().err

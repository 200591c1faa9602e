"""The ledger: composition by patients, budgets at their border, restarts, kills and tampering."""

import json
import math
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedseg.errors import ConfigurationError, RefusalError
from fedseg.files.hash_chain import HashChain
from fedseg.privacy.accounting.epsilon import ADAPTIVE, PATIENT, REPLACE, SITE_UPDATE, Release, epsilon
from fedseg.privacy.accounting.ledger import Ledger, Spent, spent_words
from fedseg.privacy.accounting.ledger_errors import BudgetError, CountError, LedgerError

GAUSSIAN = Release("gaussian", 20.0)
DELTA = 1e-5


def charge(ledger, patients=("p1", "p2"), release=GAUSSIAN, dataset="brain", budget=None, number=0, **others):
    place = {"job": "brats_gaussian_dp", "run_id": "run", "round_number": number}
    return ledger.charge(dataset, patients, release, delta=DELTA, budget=budget, **{**place, **others})


def cost(*releases):
    return epsilon(releases, DELTA, ADAPTIVE)


def enter(ledger, what="update", patients=("p1", "p2"), dataset="brain", number=0):
    ledger.enter(dataset, patients, what, job="brats_fedavg", run_id="plain", round_number=number)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*")}


# ------------------------------------------------------------ composition


def test_rounds_are_composed_as_the_accountant_does(tmp_path):
    ledger = Ledger(tmp_path)
    for number in range(5):
        spent = charge(ledger, number=number)
        assert spent == Spent(cost(*[GAUSSIAN] * (number + 1)), DELTA, number + 1, SITE_UPDATE, REPLACE)
    assert ledger.spent(DELTA, dataset="brain") == spent
    assert ledger.spent(DELTA, patients=["p2"]) == spent
    assert ledger.spent(1e-7).epsilon == epsilon([GAUSSIAN] * 5, 1e-7)


def test_a_restart_forgets_nothing(tmp_path):
    for number in range(4):
        spent = charge(Ledger(tmp_path), number=number)
    assert spent.epsilon == cost(*[GAUSSIAN] * 4)


def test_one_shared_patient_is_enough(tmp_path):
    """Two names of data sets and two jobs, one patient in both: the second release pays for the first."""
    ledger = Ledger(tmp_path)
    charge(ledger, ["p1", "p2"], dataset="brain", job="first")
    assert charge(ledger, ["p3"], dataset="other", job="second").epsilon == cost(GAUSSIAN)
    assert charge(ledger, ["p2", "p4"], dataset="renamed", job="third").epsilon == cost(GAUSSIAN, GAUSSIAN)
    assert ledger.spent(DELTA, patients=["p4"]).releases == 1
    assert ledger.spent(DELTA, patients=["p2"]).releases == 2
    assert ledger.spent(DELTA, dataset="brain").releases == 2
    assert ledger.spent(DELTA, patients=["nobody"]) == Spent(0.0, DELTA, 0)
    assert ledger.spent(DELTA).releases == 3


@pytest.mark.parametrize(("first", "second"), [("p1 ", "p1"), ("M\u00fcller", "Mu\u0308ller")])
def test_two_spellings_of_one_patient(tmp_path, first, second):
    ledger = Ledger(tmp_path)
    charge(ledger, [first])
    assert charge(ledger, [second]).releases == 2


def test_units_are_composed_to_the_smaller_one(tmp_path):
    per_patient = Release("gaussian", 5.0, unit=PATIENT, sampling_rate=0.1, count=10, neighbours="add-remove")
    ledger = Ledger(tmp_path)
    assert charge(ledger).unit == SITE_UPDATE
    spent = charge(ledger, release=per_patient)
    assert (spent.unit, spent.releases) == (PATIENT, 11)
    assert spent.epsilon == cost(GAUSSIAN, per_patient)


@given(
    st.lists(st.tuples(st.frozensets(st.sampled_from("abcd"), min_size=1), st.integers(1, 3)), min_size=1, max_size=5)
)
@settings(max_examples=25)
def test_no_patient_has_ever_spent_more_than_the_ledger_says(tmp_path_factory, releases):
    """Against each patient's own releases, composed one by one."""
    ledger, own = Ledger(tmp_path_factory.mktemp("ledger")), {name: [] for name in "abcd"}
    for number, (patients, count) in enumerate(releases):
        release = Release("gaussian", 10.0 + number, count=count)
        spent = charge(ledger, patients, release, dataset=f"set-{number}")
        for name in patients:
            own[name].append(release)
        assert spent.epsilon >= max(cost(*own[name]) for name in patients) - 1e-12
    for name, found in own.items():
        assert ledger.spent(DELTA, patients=[name]).epsilon == pytest.approx(cost(*found))


def test_six_hundred_rounds_stay_quick(tmp_path):
    ledger = Ledger(tmp_path)
    charge(ledger, release=Release("gaussian", 40.0, count=599))
    started = time.process_time()
    spent = charge(ledger, release=Release("gaussian", 40.0))
    assert time.process_time() - started < 1
    assert spent.epsilon == cost(Release("gaussian", 40.0, count=600))


# ------------------------------------------------------- without a guarantee


def test_what_left_without_a_guarantee_stands_beside_epsilon_and_not_in_it(tmp_path):
    """A plain job, a private one, a plain one again, all on the same patients."""
    ledger = Ledger(tmp_path)
    enter(ledger)
    assert ledger.spent(DELTA) == Spent(0.0, DELTA, 0, without_guarantee=1)
    assert charge(ledger) == Spent(cost(GAUSSIAN), DELTA, 1, without_guarantee=1)
    enter(ledger, "scores")
    assert charge(ledger) == Spent(cost(GAUSSIAN, GAUSSIAN), DELTA, 2, without_guarantee=2)
    assert [entry["what"] for entry in ledger.history(guaranteed=False)] == ["update", "scores"]
    assert [entry["patient_count"] for entry in ledger.history("brain", guaranteed=False)] == [2, 2]
    assert len(ledger.history()) == 2


def test_one_shared_patient_is_enough_without_a_guarantee_too(tmp_path):
    ledger = Ledger(tmp_path)
    enter(ledger, patients=["p1", "p2"], dataset="renamed")
    enter(ledger, patients=["p3"])
    assert charge(ledger, ["p2", "p4"], dataset="brain").without_guarantee == 1
    assert ledger.spent(DELTA, dataset="renamed") == Spent(cost(GAUSSIAN), DELTA, 1, without_guarantee=1)
    assert ledger.spent(DELTA, patients=["p3"]) == Spent(0.0, DELTA, 0, without_guarantee=1)
    assert ledger.spent(DELTA, patients=["p5"]) == Spent(0.0, DELTA, 0)


def test_a_refused_release_leaves_the_count_as_it_was(tmp_path):
    ledger = Ledger(tmp_path)
    enter(ledger)
    before = content(tmp_path)
    with pytest.raises(BudgetError, match=r"over 0 earlier release\(s\) with a guarantee"):
        charge(ledger, budget=1e-6)
    assert content(tmp_path) == before


def test_a_gone_ledger_lets_nothing_out_without_a_guarantee_either(tmp_path):
    ledger = Ledger(tmp_path / "ledger")
    enter(ledger)
    (tmp_path / "ledger" / "ledger.jsonl").unlink()
    (tmp_path / "ledger" / "ledger.jsonl.head").unlink()
    with pytest.raises(LedgerError, match="is gone"):
        enter(ledger)


@pytest.mark.parametrize(
    ("spent", "said"),
    [
        (Spent(0.0, DELTA, 0), "no guaranteed release; 0 release(s) without a guarantee"),
        (Spent(0.0, DELTA, 0, without_guarantee=3), "3 release(s) without a guarantee, so no epsilon"),
        (Spent(1.3721, DELTA, 1, PATIENT), "epsilon 1.372 at delta 1e-05 per patient, of 1 guaranteed release(s); 0"),
        (Spent(math.inf, DELTA, 2, without_guarantee=1), "epsilon endless"),
        (Spent(1.0, DELTA, 2, without_guarantee=1), "1 release(s) without a guarantee, which this epsilon does not"),
    ],
)
def test_no_epsilon_is_told_without_the_number_of_releases_that_it_leaves_out(spent, said):
    assert said in spent_words(spent)


# ------------------------------------------------------------------ budget


def test_the_border_of_the_budget(tmp_path):
    """The very epsilon of three releases allows three of them, and one digit less only two."""
    three = cost(*[GAUSSIAN] * 3)
    for folder, budget, expected in (("a", three, 3), ("b", math.nextafter(three, 0), 2)):
        ledger = Ledger(tmp_path / folder)
        for number in range(expected):
            charge(ledger, budget=budget, number=number)
        with pytest.raises(BudgetError):
            charge(ledger, budget=budget, number=expected)
        assert len(ledger.history()) == expected


def test_a_refusal_says_why_and_writes_nothing(tmp_path):
    ledger = Ledger(tmp_path)
    charge(ledger, ["Jane Doe"])
    before = content(tmp_path)
    with pytest.raises(BudgetError) as error:
        charge(ledger, ["Jane Doe", "John Roe"], dataset="/data/brain", budget=1.0, release=Release("gaussian", 1.0))
    assert content(tmp_path) == before
    assert isinstance(error.value, RefusalError)
    assert (error.value.reason, error.value.budget, error.value.delta) == ("privacy", 1.0, DELTA)
    assert error.value.epsilon == cost(GAUSSIAN, Release("gaussian", 1.0))
    text = str(error.value)
    assert "epsilon = 4.384 at delta = 1e-05, over 1 earlier release(s) with a guarantee, but" in text
    assert not any(word in text for word in ("Jane", "John", "/data", str(tmp_path)))
    copy = pickle.loads(pickle.dumps(error.value))
    assert (type(copy), str(copy), vars(copy)) == (BudgetError, text, vars(error.value))


def test_without_a_budget_the_limit_counts_and_with_one_it_does_not(tmp_path):
    costly = Release("pure", epsilon=60.0)
    with pytest.raises(BudgetError, match="the site allows 50"):
        charge(Ledger(tmp_path), release=costly)
    with pytest.raises(BudgetError, match="the site allows 10"):
        charge(Ledger(tmp_path), release=costly, limit=10)
    assert Ledger(tmp_path).history() == []
    assert charge(Ledger(tmp_path), release=costly, budget=100.0).epsilon == pytest.approx(60.0)
    assert charge(Ledger(tmp_path), release=costly, limit=None).epsilon == pytest.approx(120.0, abs=1e-3)


@pytest.mark.parametrize("release", [Release("gaussian", 0.0), Release("pure", epsilon=math.inf)])
def test_a_release_without_noise_needs_permission_and_is_never_forgotten(tmp_path, release):
    ledger = Ledger(tmp_path)
    with pytest.raises(BudgetError, match="epsilon = inf"):
        charge(ledger, release=release)
    assert charge(ledger, release=release, limit=None).epsilon == math.inf
    with pytest.raises(BudgetError, match="epsilon = inf"):
        charge(Ledger(tmp_path), budget=1e9)


def test_jobs_at_once_cannot_spend_the_same_budget_twice(tmp_path):
    """Sixteen charges in eight threads, each with its own ledger object, and a budget for seven."""
    budget = cost(*[GAUSSIAN] * 7)

    def attempt(number):
        try:
            charge(Ledger(tmp_path), budget=budget, number=number)
        except BudgetError:
            return 0
        return 1

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(16))) == 7
    assert Ledger(tmp_path).spent(DELTA).epsilon == budget


# ------------------------------------------------------- what is written


def test_entries(tmp_path):
    ledger = Ledger(tmp_path)
    charge(ledger, ["Jane Doe", "John Roe"], release=Release("pure", epsilon=2.0), clip=1e-4, number=3)
    charge(ledger, ["John Roe", "Jane Doe"], release=Release("pure", epsilon=math.inf), limit=None)
    entries = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert [entry["kind"] for entry in entries] == ["opened", "patients", "release", "release"]
    assert len(bytes.fromhex(entries[0]["salt"])) == 32
    assert entries[1]["patients"] == sorted(entries[1]["patients"])
    assert entries[2].items() >= {
        "dataset": "brain", "job": "brats_gaussian_dp", "run_id": "run", "round": 3, "mechanism": "pure",
        "noise_multiplier": None, "epsilon": 2.0, "unit": SITE_UPDATE, "sampling_rate": 1.0, "count": 1,
        "neighbours": REPLACE, "clip": 1e-4, "patients": entries[1]["set"],
    }.items()  # fmt: skip
    assert entries[3]["epsilon"] == "infinite"
    assert [entry["patient_count"] for entry in ledger.history("brain")] == [2, 2]
    assert ledger.history("other") == []
    text = (tmp_path / "ledger.jsonl").read_text()
    assert "Jane" not in text
    assert "John" not in text


def test_ledgers_of_two_sites_cannot_be_compared(tmp_path):
    for site in "ab":
        charge(Ledger(tmp_path / site), ["p1"])
    hashes = [json.loads((tmp_path / s / "ledger.jsonl").read_text().splitlines()[1])["patients"] for s in "ab"]
    assert hashes[0] != hashes[1]


def test_nothing_spent_yet(tmp_path):
    ledger = Ledger(tmp_path / "none")
    assert ledger.history() == []
    assert ledger.spent(DELTA) == ledger.spent(DELTA, patients=["p"]) == Spent(0.0, DELTA, 0)
    assert not (tmp_path / "none").exists()


# -------------------------------------------------------------- refusals


@pytest.mark.parametrize("simulated", [True, False])
def test_a_simulation_and_a_real_site_share_no_ledger(tmp_path, simulated):
    charge(Ledger(tmp_path, simulated=simulated))
    before = content(tmp_path)
    other = Ledger(tmp_path, simulated=not simulated)
    kinds = ("a simulation", "a real site") if simulated else ("a real site", "a simulation")
    for action in (lambda: charge(other), other.history, lambda: other.spent(DELTA)):
        with pytest.raises(LedgerError, match=f"opened by {kinds[0]} and cannot count for {kinds[1]}") as error:
            action()
        assert error.value.reason == "privacy"
    assert content(tmp_path) == before


@pytest.mark.parametrize("kept", [1, 4])
def test_an_older_copy_of_the_whole_folder_is_refused(tmp_path, kept):
    """File and head of a backup fit together; the note beside the folder knows better."""
    folder = tmp_path / "ledger"
    for number in range(kept):
        charge(Ledger(folder), number=number)
    shutil.copytree(folder, tmp_path / "backup")
    assert charge(Ledger(folder), number=kept).releases == kept + 1
    newest = shutil.copytree(folder, tmp_path / "newest")
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "backup", folder)
    before = content(folder)
    for action in (lambda: charge(Ledger(folder)), Ledger(folder).history, lambda: Ledger(folder).spent(DELTA)):
        with pytest.raises(LedgerError, match=f"not the one that was written last, of {kept + 3} entries") as error:
            action()
        assert str(tmp_path) not in str(error.value)
    assert content(folder) == before
    shutil.rmtree(folder)
    shutil.copytree(newest, folder)
    assert charge(Ledger(folder)).releases == kept + 2


def test_another_ledger_of_the_same_length_is_refused_and_one_without_the_note_is_taken(tmp_path):
    for name in ("ledger", "other"):
        charge(Ledger(tmp_path / name))
    for path in (tmp_path / "other").iterdir():
        shutil.copy2(path, tmp_path / "ledger")
    with pytest.raises(LedgerError, match="not the one that was written last"):
        charge(Ledger(tmp_path / "ledger"))
    # As a version that kept no such note has left it.
    (tmp_path / ".ledger-opened").write_bytes(b"")
    assert charge(Ledger(tmp_path / "ledger")).releases == 2


def test_a_reader_is_not_misled_by_a_release_that_another_job_enters_meanwhile(tmp_path, monkeypatch):
    folder = tmp_path / "ledger"
    charge(Ledger(folder))
    reader, read = Ledger(folder), HashChain.read

    def overtaken(chain):
        entries = read(chain)
        charge(Ledger(folder), number=1)
        return entries

    monkeypatch.setattr(HashChain, "read", overtaken)
    assert [entry["round"] for entry in reader.history()] == [0]
    monkeypatch.undo()
    assert [entry["round"] for entry in reader.history()] == [0, 1]


def tamper_change(rows):
    rows[2] = rows[2].replace(b'"noise_multiplier":20.0', b'"noise_multiplier":99.0')


def tamper_remove(rows):
    del rows[2]


def tamper_cut(rows):
    del rows[-1]


@pytest.mark.parametrize(
    ("tamper", "line", "message"),
    [(tamper_change, 3, "was changed"), (tamper_remove, 3, "were removed"), (tamper_cut, 5, "is missing")],
)
def test_a_tampered_ledger_is_refused(tmp_path, tamper, line, message):
    ledger = Ledger(tmp_path)
    for number in range(3):
        charge(ledger, number=number)
    path = tmp_path / "ledger.jsonl"
    rows = path.read_bytes().splitlines(keepends=True)
    tamper(rows)
    path.write_bytes(b"".join(rows))
    for action in (lambda: charge(ledger), ledger.history, lambda: ledger.spent(DELTA)):
        with pytest.raises(LedgerError, match=f"Line {line} .*{message}") as error:
            action()
        assert str(tmp_path) not in str(error.value)
        assert (error.value.reason, str(pickle.loads(pickle.dumps(error.value)))) == ("privacy", str(error.value))
    assert path.read_bytes() == b"".join(rows)


def test_a_ledger_that_cannot_be_written_is_a_refusal_without_its_path(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="cannot be read or written, so nothing leaves") as error:
        charge(Ledger(tmp_path / "file"))
    assert "file" not in str(error.value)


def test_a_chain_that_is_no_ledger_is_a_refusal(tmp_path):
    HashChain(tmp_path / "ledger.jsonl").append({"something": "else"})
    with pytest.raises(LedgerError, match="entries that this version does not know"):
        charge(Ledger(tmp_path))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"patients": []}, "patients is \\[\\], but must be at least one patient"),
        ({"budget": -1.0}, "budget is -1.0"),
        ({"budget": math.nan}, "budget is nan"),
        ({"limit": "50"}, "limit is '50'"),
    ],
)
def test_arguments_that_are_refused(tmp_path, changed, message):
    with pytest.raises(ConfigurationError, match=message):
        charge(Ledger(tmp_path), **changed)
    assert Ledger(tmp_path).history() == []


def test_patients_and_a_data_set_at_once_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="dataset is 'brain'"):
        Ledger(tmp_path).spent(DELTA, patients=["p"], dataset="brain")


# ------------------------------------------------------------------ kills

CHARGER = """
import sys
from pathlib import Path
from fedseg.privacy.accounting.epsilon import Release, epsilon
from fedseg.privacy.accounting.ledger import Ledger
epsilon([Release("gaussian", 20.0)], 1e-5)
print("ready", flush=True)
for number in range(100_000):
    Ledger(Path(sys.argv[1])).charge("brain", ["p1", "p2"], Release("gaussian", 200.0), job="job", run_id=sys.argv[2],
                                     round_number=number, delta=1e-5, budget=50.0)
    print(number, flush=True)
"""


def test_a_killed_site_forgets_nothing_that_it_released(tmp_path):
    """SIGKILL at any moment: what was charged before a result could leave is there, and at most one more."""
    total, draw = 0, random.Random(2)
    for attempt in range(3):
        process = subprocess.Popen([sys.executable, "-c", CHARGER, str(tmp_path), str(attempt)], stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"ready\n"
        time.sleep(draw.uniform(0.05, 0.3))
        process.send_signal(signal.SIGKILL)
        acknowledged = process.communicate()[0].count(b"\n")
        rounds = [entry["round"] for entry in Ledger(tmp_path).history() if entry["run_id"] == str(attempt)]
        assert rounds == list(range(len(rounds)))
        assert acknowledged <= len(rounds) <= acknowledged + 1
        total += len(rounds)
    assert total > 3
    spent = charge(Ledger(tmp_path), release=Release("gaussian", 200.0), budget=50.0)
    assert spent.epsilon == cost(Release("gaussian", 200.0, count=total + 1))


def test_what_left_as_often_as_allowed_leaves_no_more_of_any_of_these_patients(tmp_path):
    ledger = Ledger(tmp_path / "ledger")
    place = {"job": "j", "run_id": "r", "round_number": -1}
    ledger.enter("brain", ["p1", "p2"], "statistics", **place, most=2)
    ledger.enter("brain", ["p1", "p2"], "scores", **place)
    ledger.enter("renamed", ["p2", "p3"], "statistics", **place, most=2)
    with pytest.raises(CountError, match=r"2 answer\(s\) with statistics .* allows 2 \(max_statistics"):
        ledger.enter("brain", ["p2", "p4"], "statistics", **place, most=2)
    assert len(ledger.history(guaranteed=False)) == 3
    ledger.enter("brain", ["p4"], "statistics", **place, most=1)
    ledger.enter("brain", ["p1"], "statistics", **place)
    error = CountError("statistics", 2, 2)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)

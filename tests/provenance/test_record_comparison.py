"""Records of server and sites that fit together, and every way in which one that was rewritten does not."""

import pytest

from fedseg.files.digest import model_digest
from fedseg.files.hash_chain_check import head_path
from fedseg.provenance.reading import read_record, server_starts
from fedseg.provenance.record_comparison import compare
from recorded_run import CASES, RecordedRun, forge, model_after


@pytest.fixture
def run(tmp_path):
    return RecordedRun(tmp_path).whole()


def findings(run, sites=tuple(CASES)):
    return compare(read_record(run.path("server")), [read_record(run.path(site)) for site in sites])


def wrong(run, *sites):
    return [finding.text for finding in findings(run, sites or tuple(CASES)) if not finding.good]


def test_an_honest_run_with_a_stop_in_between_holds(run):
    assert wrong(run) == []
    texts = " ".join(finding.text for finding in findings(run))
    assert "2 start(s) and 4 finished round(s)" in texts
    assert "site alpha: all 4 round(s)" in texts
    assert "site beta: all 3 round(s)" in texts, "the server left it out of one"
    assert "site alpha: 5 model(s) received" in texts, "also that of the round in which the server stopped"


def test_starts_and_rounds_are_brought_into_order(run):
    first, second = server_starts(read_record(run.path("server")))
    assert (sorted(first.rounds), sorted(second.rounds)) == ([0, 1], [2, 3])
    assert first.rounds[1].sites == {"alpha": {"cases": 4, "epsilon": None, "privacy": []}}
    assert first.rounds[1].left_out == {"beta": "too late"}
    assert second.rounds[2].before == first.rounds[1].after
    assert second.sent(4) == second.rounds[3].after
    assert second.sent(5) is None


def lines_of(lines, kind, **values):
    return [line for line in lines if line["kind"] == kind and values.items() <= line.items()]


def set_in(kind, number=0, **changes):
    return lambda lines: lines_of(lines, kind)[number].update(changes)


def without(kind, number=0):
    return lambda lines: lines.remove(lines_of(lines, kind)[number])


@pytest.mark.parametrize(
    ("who", "change", "said"),
    [
        ("alpha", set_in("received", 1, model="0" * 64), "received another model in round 2"),
        ("alpha", set_in("received", 2, model="0" * 64), "received another model in round 3"),
        ("alpha", set_in("received", 1, cases=40), "trained 40 case(s) in round 2 (start s0), the server counts 4"),
        ("alpha", set_in("received", 1, round=7), "tells of round 8, which the server's record lacks"),
        ("alpha", set_in("received", 1, start="s9"), "the server counts round 2 (start s0), of which"),
        ("alpha", without("received", 3), "the server counts round 3 (start s1), of which the site's record knows"),
        ("alpha", without("sent", 0), "the server counts round 1 (start s0), in which nothing was sent"),
        ("alpha", set_in("accepted", 1, job_hash="9" * 64), "another job_hash than the server ran"),
        ("alpha", set_in("accepted", 1, plan="0" * 64), "another plan than the server ran"),
        ("alpha", set_in("accepted", 0, job_id="job-9"), "accepts the job job-9, which the server did not run"),
        ("alpha", set_in("accepted", 0, submitter={"name": "eve"}), "another submitter"),
        ("alpha", set_in("scored", 0, model="0" * 64), "scored a model that the server's record lacks"),
        ("alpha", lambda lines: lines.__delitem__(slice(-3, None)), "the server counts round 4 (start s1), of which"),
        ("alpha", set_in("received", 0, cases=None), "trained None case(s)"),
        ("alpha", lambda lines: lines_of(lines, "received")[0].pop("round"), "lacks what such a line holds"),
        ("server", set_in("accepted", 0, cases={"training": 5, "validation": 1, "test": 0}), "never stated"),
        ("server", set_in("round", 0, model="0" * 64), "received another model in round 2"),
        ("server", set_in("round", 1, model="0" * 64), "goes on from a model after round 2 that no line"),
        ("server", set_in("start", 0, model="0" * 64), "received another model in round 1"),
        ("server", without("round", 0), "tells of round 2, which does not follow"),
        ("server", set_in("round", 3, round=2), "tells of round 3, which does not follow"),
        ("server", set_in("start", 0, job_hash="9" * 64), "another job_hash"),
        ("server", without("resumed", 0), "tells of round 3, which does not follow"),
        ("server", lambda lines: lines_of(lines, "round")[0].pop("sites"), "lacks what such a line holds"),
        ("server", lambda lines: lines_of(lines, "round")[1].update(left_out={}), "beta: line 6 sent something for"),
        ("server", set_in("final", 0, model=model_digest(model_after(9))), "that is not the one made there"),
        ("server", set_in("final", 0, round=2), "leaves a model after round 3 that is not the one made there"),
    ],
)
def test_a_rewritten_record_does_not_fit_the_others(run, who, change, said):
    forge(run.path(who), change)
    found = wrong(run)
    assert any(said in text for text in found), found


def carried(run, received):
    """The run as if its model had come to beta in round 2 from alpha, as the server would note it."""
    forge(run.path("beta"), set_in("received", 1, model="1" * 64))
    visit = {"kind": "visit", "round": 1, "site": "beta", "start": "s0", "received": received}
    forge(run.path("server"), lambda lines: lines.insert(lines.index(lines_of(lines, "round", round=1)[0]), visit))


def test_a_model_that_is_carried_is_the_one_that_the_server_notes_for_the_visit(run):
    carried(run, "1" * 64)
    assert wrong(run) == []


def test_another_model_than_the_one_of_the_visit_is_found(run):
    carried(run, "2" * 64)
    assert [text for text in wrong(run) if "beta" in text and "received another model in round 2" in text]


def test_a_site_that_the_server_adds_to_a_round_knows_nothing_of_it(run):
    part = {"cases": CASES["beta"], "epsilon": None, "privacy": []}
    forge(run.path("beta"), lambda lines: lines.remove(lines_of(lines, "sent", round=1)[0]))
    assert wrong(run) == [], "the server left it out of that round"
    forge(run.path("server"), lambda lines: lines_of(lines, "round")[1]["sites"].update(beta=part))
    assert any("site beta: the server counts round 2" in text for text in wrong(run))


def test_a_swapped_last_model_is_found_even_if_the_server_had_the_sites_score_it(run):
    other = model_digest(model_after(9))
    forge(run.path("server"), set_in("final", 0, model=other))
    for site in CASES:
        forge(run.path(site), set_in("scored", 0, model=other))
    assert any("leaves a model after round 4" in text for text in wrong(run))


@pytest.mark.parametrize(("name", "other"), [("epsilon", 0.1), ("epsilon", None), ("privacy", [])])
def test_less_privacy_spent_than_the_site_sent_is_found(run, name, other):
    spent = {"epsilon": 3.5, "privacy": [{"filter": "DPSGD", "noise_multiplier": 0.8}]}
    forge(run.path("alpha"), set_in("sent", 1, **spent))
    part = {"cases": CASES["alpha"], **spent}
    forge(run.path("server"), lambda lines: lines_of(lines, "round")[1]["sites"].update(alpha=part))
    assert wrong(run) == []
    forge(run.path("server"), lambda lines: lines_of(lines, "round")[1]["sites"].update(alpha={**part, name: other}))
    assert [f"the server notes {other} as" in text for text in wrong(run)] == [True]


def test_a_record_of_another_run_is_named(run, tmp_path):
    other = RecordedRun(tmp_path / "other", "run-2").whole()
    found = compare(read_record(run.path("server")), [read_record(other.path("alpha"))])
    assert [finding.text for finding in found if not finding.good] == [
        "record of the site alpha: is of the run run-2, that of the server is of the run run-1"
    ]


def test_sites_that_decrypt_come_to_the_same_weights(run):

    def decrypt(lines):
        for line in lines_of(lines, "received") + lines_of(lines, "scored"):
            line["weights"] = f"of {line['model']}"

    for site in CASES:
        forge(run.path(site), decrypt)
    assert wrong(run) == []
    assert findings(run)[-1].text == "5 decrypted model(s) are equal at all sites"
    whole = run.path("beta").read_bytes(), head_path(run.path("beta")).read_bytes()
    for kind, number, line in (("received", 1, 5), ("scored", 0, 12)):
        run.path("beta").write_bytes(whole[0])
        head_path(run.path("beta")).write_bytes(whole[1])
        forge(run.path("beta"), set_in(kind, number, weights="v"))
        said = f"site beta: line {line} decrypted other weights than the site alpha"
        assert any(said in text for text in wrong(run)), wrong(run)


def test_without_a_site_the_others_are_compared(run):
    assert wrong(run, "beta") == []

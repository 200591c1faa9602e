"""The record of a run at the server: what stands in it, in which order, and that nothing goes on without it."""

import json
from contextlib import suppress

import numpy as np
import pytest

from fedseg.errors import AbortedError, RefusalError
from fedseg.files.digest import model_digest
from fedseg.files.hash_chain_check import head_path
from fedseg.models.model_file import read_model
from fedseg.models.note import note_path, read_note
from fedseg.provenance.reading import named_models, read_record, server_starts
from fedseg.provenance.run_log import RecordError, RunLog
from fedseg.workflows.run.checkpoint import CheckpointError, Checkpoints
from fedseg.workflows.run.record import RunRecord, round_line
from fedseg.workflows.selection import LargestSites
from scripted_sites import ScriptedSites, accepted, train
from workflows.test_federated_training import good, scripted, seeded, update

JOB = {"job": "tiny", "job_id": "job-1", "job_hash": "0" * 64, "submitter": {"name": "ada@example.org"}}


def record_of(folder):
    return read_record(folder / "state" / "run" / "record.jsonl")


def lines(folder, *kinds):
    return list(record_of(folder).of_kind(*kinds))


def scoring(task, site, model):
    """Sites that also answer the last evaluation."""
    if task != "validate":
        return seeded(task, site, model)
    none = {"both": 0, "reference": 0, "prediction": 0}
    part = {"split": "validation", "loss": 1.0, "cases": 2, "hd95": {}, "defined": {"inner": 2, "whole": 2}}
    part |= {"dice": {"inner": 0.4, "whole": 0.4, "mean": 0.4}, "empty": {"inner": none, "whole": none}}
    answer = accepted()
    answer.metrics = {"final": part, "validation": part}
    return answer


def test_a_whole_run_from_its_submission_to_its_models(tmp_path):
    loop = scripted(tmp_path, scoring)
    start = model_digest(loop.state.model.weights)
    train(loop)
    loop.finish()
    record = record_of(tmp_path)
    assert [entry["kind"] for entry in record.entries] == [
        *("opened", "start", "prepare", "accepted", "accepted", "accepted"),
        *("round", "round", "round", "final", "final", "finished"),
    ]
    first = lines(tmp_path, "start")[0]
    assert (first["model"], first["plan"], first["start"]) == (start, loop.state.plan.digest, loop.state.start_id)
    assert lines(tmp_path, "prepare")[0]["sites"] == ["a", "b", "c"]
    assert {e["site"]: e["cases"]["training"] for e in lines(tmp_path, "accepted")} == {"a": 1, "b": 2, "c": 3}
    last = lines(tmp_path, "round")[-1]
    assert last["model"] == model_digest(loop.state.model.weights)
    assert last["sites"]["b"] == {"cases": 2, "epsilon": None, "privacy": []}
    assert len({entry["model"] for entry in lines(tmp_path, "start", "round")}) == 4, "every round made another model"


def test_every_model_that_is_stored_has_a_note_that_fits(tmp_path):
    loop = scripted(tmp_path, scoring)
    loop.state.record.job = JOB
    train(loop)
    during = read_note(tmp_path / "last.safetensors")
    assert record_of(tmp_path).entries[during.line - 1]["kind"] == "round"
    loop.finish()
    for name in ("last", "best"):
        path = tmp_path / f"{name}.safetensors"
        note = read_note(path)
        line = record_of(tmp_path).entries[note.line - 1]
        assert (line["kind"], line["name"], line["hash"]) == ("final", name, note.hash)
        assert note.model == line["model"] == model_digest(read_model(path).weights)
        assert (note.round, note.sites, note.job_id) == (line["round"], ("a", "b", "c"), "job-1")
    assert (tmp_path / "record.jsonl").read_bytes() == (tmp_path / "state" / "run" / "record.jsonl").read_bytes()
    assert read_record(tmp_path / "record.jsonl").head == record_of(tmp_path).head


def test_a_stopped_run_goes_on_in_the_same_record(tmp_path):
    def dies(task, site, model):
        if task == "train" and model.current_round > 1:
            raise AbortedError("stopped")
        return seeded(task, site, model)

    with pytest.raises(AbortedError):
        train(scripted(tmp_path, dies, num_rounds=4))
    loop = scripted(tmp_path, scoring, num_rounds=4, resume=True)
    train(loop)
    loop.finish()
    starts = server_starts(record_of(tmp_path))
    assert [sorted(start.rounds) for start in starts] == [[0, 1], [2, 3]]
    assert lines(tmp_path, "resumed")[0]["round"] == 1
    assert starts[1].id == loop.state.start_id != starts[0].id
    assert read_note(tmp_path / "best.safetensors").model in named_models(record_of(tmp_path))


def test_a_run_that_goes_back_tells_of_both_branches(tmp_path):
    train(scripted(tmp_path, seeded, num_rounds=3, keep_checkpoints=0))
    train(scripted(tmp_path, seeded, num_rounds=3, keep_checkpoints=0, resume=True, resume_round=0))
    first, second = server_starts(record_of(tmp_path))
    assert (sorted(first.rounds), sorted(second.rounds)) == ([0, 1, 2], [1, 2])
    assert second.rounds[1].before == first.rounds[0].after


def test_a_model_names_the_sites_of_the_rounds_that_made_it(tmp_path):
    first = RunRecord(tmp_path / "other")
    first.keep_in(RunLog(tmp_path / "other" / "record.jsonl", "server", "server", "run"))
    plan = scripted(tmp_path / "plan", good).state.plan
    first.append("start", round=-1, model="m-1")
    for number, sites in enumerate((["a", "b"], ["a", "b", "c"], ["c", "d"])):
        first.append("round", round=number, sites={site: {} for site in sites}, model=f"m{number}")
    assert first.note("last", plan, "m2", 2).sites == ("a", "b", "c", "d")
    assert first.note("best", plan, "m0", 0).sites == ("a", "b"), "who came later did not make it"
    again = RunRecord(tmp_path / "other")
    again.keep_in(RunLog(tmp_path / "other" / "record.jsonl", "server", "server", "run"))
    again.append("resumed", round=0, model="m0")
    again.append("round", round=1, sites={"a": {}}, model="n1")
    assert again.note("last", plan, "n1", 1).sites == ("a", "b"), "c and d are in rounds that the run went back before"


def test_rounds_that_change_nothing_are_told_apart_by_their_numbers(tmp_path):
    record = RunRecord(tmp_path)
    record.keep_in(RunLog(tmp_path / "record.jsonl", "server", "server", "run"))
    record.append("start", round=-1, model="m")
    for number in range(3):
        record.append("round", round=number, sites={"a": {}}, model="m")
    assert [record.names("m", number) for number in range(-1, 4)] == [True, True, True, True, False]
    plan = scripted(tmp_path / "plan", good).state.plan
    assert record.note("best", plan, "m", 1).line == 4, "opened, start, and the rounds 0 and 1"


def test_a_checkpoint_that_is_not_of_the_record_is_not_gone_on_with(tmp_path):
    train(scripted(tmp_path, good, num_rounds=2))
    record = tmp_path / "state" / "run" / "record.jsonl"
    for part in (record, head_path(record)):
        part.rename(part.with_name(f"away-{part.name}"))
    with pytest.raises(CheckpointError, match="or the record is gone"):
        scripted(tmp_path, good, num_rounds=2, resume=True)
    assert not record.exists(), "no record begins in the middle"
    for part in (record, head_path(record)):
        part.with_name(f"away-{part.name}").rename(part)
    before = record.read_bytes()
    loop = scripted(tmp_path / "elsewhere", good, num_rounds=2)
    values = Checkpoints(tmp_path / "state" / "run").load(1)[1]
    arrays = {f"weights/{name}": value + 1 for name, value in loop.state.model.weights.items()}
    Checkpoints(tmp_path / "state" / "run").save(1, arrays, values)
    with pytest.raises(CheckpointError, match="holds another model than the run's record names"):
        scripted(tmp_path, good, num_rounds=2, resume=True)
    assert record.read_bytes() == before


def test_a_server_that_ends_between_a_model_and_its_note_leaves_no_note_about_another(tmp_path, monkeypatch):
    loop = scripted(tmp_path, seeded, num_rounds=1)
    train(loop)
    path = tmp_path / "last.safetensors"
    assert note_path(path).is_file()

    def killed(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("fedseg.models.note.write_note", killed)
    other = {name: value + 1 for name, value in loop.state.model.weights.items()}
    with pytest.raises(KeyboardInterrupt):
        loop.state.record.model("last.safetensors", loop.state.plan, other, 0)
    assert model_digest(read_model(path).weights) == model_digest(other)
    assert not note_path(path).exists()


def test_who_refused_or_was_left_out_stands_there_with_the_reason(tmp_path):
    def script(task, site, model):
        if (task, site) == ("prepare", "b"):
            return RefusalError("policy", "Not here.")
        if task == "train" and site == "c" and model.current_round == 1:
            answer = update(model)
            answer.params = {name: value * np.nan for name, value in answer.params.items()}
            return answer
        return good(task, site, model)

    train(scripted(tmp_path, script, selection=LargestSites(2), num_rounds=2))
    first = lines(tmp_path, "site")[0]
    assert (first["site"], first["what"]) == ("b", "policy: Not here.")
    rounds = lines(tmp_path, "round")
    assert (sorted(rounds[0]["sites"]), rounds[0]["left_out"]) == (["a", "c"], {})
    assert sorted(rounds[1]["sites"]) == ["a"]
    assert "not finite" in rounds[1]["left_out"]["c"]


def test_a_site_that_was_not_asked_is_left_out_with_the_policys_reason():
    part = {"num_samples": 4, "epsilon": 1.5, "privacy": [{"filter": "DPSGD"}]}
    entry = {"round": 2, "asked": ["a", "b"], "selection": {"a": "x", "b": "y", "c": "drawn out"}, "sites": {"a": part}}
    events = [{"round": 1, "site": "b", "what": "before"}, {"round": 2, "site": "b", "what": "too late"}]
    assert round_line(entry, events) == {
        "round": 2,
        "sites": {"a": {"cases": 4, "epsilon": 1.5, "privacy": [{"filter": "DPSGD"}]}},
        "left_out": {"b": "too late", "c": "drawn out"},
    }


def full_disk(loop, monkeypatch, after):
    """The record's file takes so many more lines, and then no other."""
    enter, count = loop.state.record._log._chain.exclusive, [0]

    def exclusive():
        count[0] += 1
        if count[0] > after:
            raise OSError(28, "No space left on device")
        return enter()

    monkeypatch.setattr(loop.state.record._log._chain, "exclusive", exclusive)


def test_a_record_that_cannot_be_written_stops_the_run_before_anything_is_stored(tmp_path, monkeypatch):
    loop = scripted(tmp_path, good)
    full_disk(loop, monkeypatch, after=4)
    with pytest.raises(RecordError, match="cannot be written"):
        train(loop)
    assert not (tmp_path / "last.safetensors").exists()
    assert loop.state.checkpoints.rounds() == [], "a round without its line leaves no checkpoint"
    assert [task for task, _ in loop.state.sites.tasks] == ["prepare", "train"], "and nobody is asked again"


def test_a_line_that_is_lost_while_answers_come_stops_the_run_too(tmp_path, monkeypatch):
    """FLARE swallows what a callback raises; the next line says that one is missing."""

    class Swallowing(ScriptedSites):
        def answer(self, *task_and_receive):
            with suppress(RecordError):
                super().answer(*task_and_receive)

    def script(task, site, model):
        if task == "train" and site == "b":
            full_disk(loop, monkeypatch, after=0)
            return RefusalError("failed", "It broke.")
        return good(task, site, model)

    loop = scripted(tmp_path, Swallowing(script))
    with pytest.raises(RecordError, match="cannot be written"):
        train(loop)
    monkeypatch.undo()
    assert lines(tmp_path, "round") == []


def test_a_changed_record_is_not_gone_on_with(tmp_path):
    train(scripted(tmp_path, good, num_rounds=4))
    path = tmp_path / "state" / "run" / "record.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"training":2', b'"training":9'))
    with pytest.raises(RecordError, match="was changed"):
        scripted(tmp_path, good, num_rounds=4, resume=True)


def test_another_job_with_the_same_run_id_leaves_no_line(tmp_path):
    train(scripted(tmp_path, good, num_rounds=2))
    before = (tmp_path / "state" / "run" / "record.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match=r"workflow\.resume to true"):
        scripted(tmp_path, good, num_rounds=2)
    assert (tmp_path / "state" / "run" / "record.jsonl").read_bytes() == before


def test_the_end_of_a_failed_run_stands_there_and_in_the_progress(tmp_path):
    loop = scripted(tmp_path, good, num_rounds=1)
    loop.state.record.failed("No site answered.")
    assert lines(tmp_path, "failed")[0]["what"] == "No site answered."
    events = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert (events[-1]["event"], events[-1]["what"]) == ("failed", "No site answered.")
    assert (tmp_path / "record.jsonl").is_file()


def test_a_site_that_goes_wrong_for_ever_fills_no_disk(tmp_path):
    record = RunRecord(tmp_path)
    for number in range(200):
        record.round = number // 100
        record.note_site("a", f"answered too late {number}")
    record.note_site("b", "No cases.")
    told = [(event["round"], event["site"], event["what"]) for event in record.events]
    assert len(told) == 2 * 50 + 1
    assert told[0] == (0, "a", "answered too late 0")
    assert told[49] == (0, "a", "answered too late 49 (what else goes wrong there in this round is not noted)")
    assert told[-1] == (1, "b", "No cases.")


def test_a_failure_before_the_run_is_open_is_told_in_the_progress(tmp_path):
    record = RunRecord(tmp_path)
    record.failed("no plan")
    assert not (tmp_path / "record.jsonl").exists()
    assert "no plan" in (tmp_path / "progress.jsonl").read_text()


def test_progress_may_fail_and_the_record_goes_on(tmp_path):
    loop = scripted(tmp_path, good, num_rounds=1)
    (tmp_path / "progress.jsonl").mkdir()
    train(loop)
    assert len(lines(tmp_path, "round")) == 1


def test_a_model_that_no_line_names_gets_one(tmp_path):
    loop = scripted(tmp_path, good, num_rounds=1)
    weights = {name: value + 1 for name, value in loop.state.model.weights.items()}
    loop.state.record.model("best.safetensors", loop.state.plan, weights, 7)
    note = read_note(tmp_path / "best.safetensors")
    assert lines(tmp_path, "model")[0]["number"] == note.line
    assert note_path(tmp_path / "best.safetensors").name == "best.safetensors.provenance.json"

"""``fedseg audit-log`` and the commands that use a model: what was changed is found, and said in one line."""

import json
import pickle
import shutil
from dataclasses import replace

import pytest
import torch

from fedseg.cli import main
from fedseg.commands.audit_log import _DETAILS
from fedseg.errors import DataError
from fedseg.files.digest import model_digest
from fedseg.files.hash_chain import HashChain
from fedseg.files.hash_chain_check import head_path
from fedseg.messages.calls.call import AT_PREDICTIONS, FEATURES, LABELS, PARAMETERS, PART
from fedseg.models.encrypted_file import write_encrypted_file
from fedseg.models.model_file import read_model, write_model
from fedseg.models.note import note_path, read_note, write_note
from fedseg.privacy.encryption.encrypted_model import EncryptedModel, first_id
from fedseg.provenance.run_log import RunLog
from recorded_run import PLAN_OF_RUN, RUN, RecordedRun, forge, job, model_after
from tiny import TASK, make_sites


@pytest.fixture
def run(tmp_path):
    return RecordedRun(tmp_path / "run").whole()


def call(capsys, *arguments):
    """Exit code, stdout and stderr of a command, each as one line."""
    code = main([str(argument) for argument in arguments])
    streams = capsys.readouterr()
    return code, " ".join(streams.out.split()), " ".join(streams.err.split())


def verify(capsys, *paths):
    return call(capsys, "audit-log", "verify", *paths)[:2]


def model(run):
    return run.out / "models" / "last.safetensors"


# ---------------------------------------------------------------- verify


def test_a_run_that_nobody_touched_holds(run, capsys):
    code, said = verify(capsys, run.out)
    assert code == 0, said
    assert "WRONG" not in said
    assert "is a copy of" in said
    assert "is the model after round 4, as line" in said
    assert said.endswith("check(s) hold.")


@pytest.mark.parametrize("name", ["server", "alpha"])
@pytest.mark.parametrize("kind", ["changed", "removed", "cut", "moved", "head"])
def test_every_change_of_a_record_is_found(run, capsys, name, kind):
    path = run.path(name)
    lines = path.read_bytes().splitlines(keepends=True)
    if kind == "changed":
        lines[2] = lines[2].replace(b'"kind":"', b'"kind":"x')
    elif kind == "removed":
        del lines[2]
    elif kind == "cut":
        del lines[-2:]
    elif kind == "moved":
        lines[2], lines[3] = lines[3], lines[2]
    if kind == "head":
        head_path(path).unlink()
    path.write_bytes(b"".join(lines))
    code, said = verify(capsys, path)
    assert code == 1
    assert said.startswith(f"WRONG {path}: Line")
    assert verify(capsys, run.out)[0] == 1


def test_a_record_cut_off_together_with_its_head_does_not_fit_the_others(run, capsys):
    forge(run.path("alpha"), lambda lines: lines.__delitem__(slice(-3, None)))
    assert verify(capsys, run.path("alpha"))[0] == 0, "by itself nobody can tell"
    code, said = verify(capsys, run.path("server"), run.path("alpha"), run.path("beta"))
    assert code == 1
    assert "WRONG record of the site alpha: the server counts round 4" in said


def test_another_copy_of_the_servers_record_is_found(run, capsys):
    forge(run.out / "report" / "record.jsonl", lambda lines: lines[5].update(what="nothing happened"))
    code, said = verify(capsys, run.out)
    assert code == 1
    assert "tells another story than" in said


def test_records_of_two_runs_do_not_go_together(run, tmp_path, capsys):
    other = RecordedRun(tmp_path / "other", "run-2").whole()
    code, said = verify(capsys, run.path("server"), other.path("alpha"))
    assert code == 1
    assert "is of the run run-2, that of the server is of the run run-1" in said
    assert verify(capsys, run.path("server"), run.path("alpha"), other.path("server"), other.path("alpha"))[0] == 0


def swap(path, weights):
    """Put other weights into a model file."""
    write_model(path, PLAN_OF_RUN, weights, 3)


def test_a_swapped_model_is_found(run, capsys):
    swap(model(run), model_after(1))
    for path in (run.out, model(run)):
        code, said = verify(capsys, path)
        assert code == 1
        assert "is not the model that its provenance file is about" in said


def test_a_swapped_model_whose_note_was_swapped_too_is_found(run, capsys):
    swap(model(run), model_after(7))
    note = json.loads(note_path(model(run)).read_text())
    note_path(model(run)).write_text(json.dumps({**note, "model": model_digest(model_after(7))}))
    code, said = verify(capsys, run.out)
    assert code == 1
    assert "is not the one that its provenance file names" in said


@pytest.mark.parametrize("record", [{"line": 2}, {"line": 999}, {"line": 0}, {"hash": "0" * 64}])
def test_a_note_that_names_another_line_is_found(run, capsys, record):
    note = json.loads(note_path(model(run)).read_text())
    note["record"].update(record)
    note_path(model(run)).write_text(json.dumps(note))
    assert verify(capsys, run.out)[0] == 1


def test_an_older_model_of_the_run_does_not_pass_for_the_last_one(run, capsys):
    """The model of round 2 stands in the record, but not as that of round 4."""
    note = json.loads(note_path(model(run)).read_text())
    earlier = next(e for e in map(json.loads, run.path("server").read_text().splitlines()) if e["kind"] == "round")
    swap(model(run), model_after(0))
    note |= {"model": earlier["model"], "record": {"line": earlier["number"], "hash": earlier["hash"]}}
    note_path(model(run)).write_text(json.dumps(note))
    assert verify(capsys, run.out)[0] == 1
    note_path(model(run)).write_text(json.dumps({**note, "round": 0}))
    code, said = verify(capsys, run.out)
    assert code == 0
    assert "is the model after round 1" in said, "what it is then is said"


def test_a_model_of_another_run_is_found(run, tmp_path, capsys):
    other = RecordedRun(tmp_path / "other", "run-2").whole()
    for path in (model(other), note_path(model(other))):
        shutil.copy(path, run.out / "models")
    code, said = verify(capsys, run.out)
    assert code == 1
    assert "is a model of the run run-2, of which no record is here" in said


def test_a_model_without_a_note_is_looked_up_in_the_record(run, capsys):
    note_path(model(run)).unlink()
    code, said = verify(capsys, run.out)
    assert code == 0
    assert "has no provenance file; line" in said
    swap(model(run), model_after(9))
    code, said = verify(capsys, run.out)
    assert code == 1
    assert "no record here names its digest" in said


def test_a_model_far_from_its_run_is_compared_with_its_note_only(run, tmp_path, capsys):
    (tmp_path / "alone").mkdir()
    for path in (model(run), note_path(model(run))):
        shutil.copy(path, tmp_path / "alone")
    code, said = verify(capsys, tmp_path / "alone" / "last.safetensors")
    assert code == 0
    assert "no record of a server is here to look further" in said
    assert verify(capsys, tmp_path / "alone" / "last.safetensors", run.path("server"))[0] == 0


def test_an_encrypted_model_is_named_by_its_rounds(run, capsys):
    weights = model_after(-1)
    whole = EncryptedModel(first_id(weights), (), weights)
    path = write_encrypted_file(run.out / "models" / "last.encrypted", PLAN_OF_RUN, whole, -1)
    code, said = verify(capsys, path, run.path("server"))
    assert code == 0, "the model that a run starts from is named by its weights"
    assert "has no provenance file; line" in said
    other = model_after(8)
    write_encrypted_file(path, PLAN_OF_RUN, EncryptedModel(first_id(other), (), other), -1)
    assert verify(capsys, path, run.path("server"))[0] == 1


def test_an_opened_model_is_found_where_a_site_named_it(run, capsys):
    weights = model_after(11)
    write_model(run.out / "models" / "opened.safetensors", PLAN_OF_RUN, weights, 3)
    assert verify(capsys, run.out)[0] == 1
    run.sites["alpha"].append("scored", name="last", model="0", weights=model_digest(weights), cases={})
    said = verify(capsys, run.out)[1]
    assert "of the record of the site alpha names it as scored" in said


def test_an_opened_model_that_says_what_it_was_opened_from_must_be_what_the_sites_came_to(run, capsys):
    """As if the run were encrypted: the record names the model of round 4, and the sites noted the weights."""
    path, note = run.out / "models" / "opened.safetensors", read_note(model(run))
    write_model(path, PLAN_OF_RUN, model_after(11), 3)
    write_note(path, note.of_opened(model_digest(model_after(11))))
    code, said = verify(capsys, path, run.path("server"))
    assert code == 0
    assert "opened from the model after round 4, as line" in said
    for digest, good in ((model_digest(model_after(11)), True), ("0" * 64, False)):
        forge(run.path("beta"), lambda lines, digest=digest: lines[-1].update(weights=digest))
        code, said = verify(capsys, path, run.path("server"), run.path("beta"))
        assert ("the sites decrypted the same" in said) is good
        assert ("but the sites decrypted other weights" in said) is not good
        assert code == (0 if good else 1)
    write_note(path, replace(note.of_opened(model_digest(model_after(11))), opened_from="0" * 64))
    code, said = verify(capsys, path, run.path("server"))
    assert code == 1
    assert "is not the one that its provenance file names" in said


def test_refused_jobs_are_verified_too_and_shown_with_who_wanted_them(run, capsys, monkeypatch):
    path = run.out / "state" / "alpha" / "_refused.jsonl"
    why = {"task": "prepare", "code": "x", "reason": "policy", "text": "No."}
    RunLog(path, "site", "alpha", "").append("refused", **job(0), **why)
    code, said = verify(capsys, run.out)
    assert code == 0
    assert "record of jobs that the site alpha refused, 2 lines" in said
    monkeypatch.setenv("COLUMNS", "400")
    shown = call(capsys, "audit-log", "show", path)[1]
    assert "prepare: policy: No.; tiny (job-0), content 0000000000000000, by ada@example.org, Example" in shown
    path.write_bytes(path.read_bytes().replace(b"policy", b"nothing"))
    assert verify(capsys, run.out)[0] == 1


@pytest.mark.parametrize("what", ["nothing", "folder", "text"])
def test_what_cannot_be_checked_is_wrong_usage(tmp_path, capsys, what):
    path = tmp_path / what
    if what == "folder":
        path.mkdir()
    elif what == "text":
        path.write_text("hello")
    for action in ("verify", "show"):
        code, _, said = call(capsys, "audit-log", action, path)
        assert code == 2
        assert ("does not exist" if what == "nothing" else "is no record, model or folder of a run") in said


def test_a_model_that_is_not_there_is_not_verified_by_the_record_beside_it(run, capsys):
    code, _, said = call(capsys, "audit-log", "verify", run.out / "models" / "lost.safetensors")
    assert code == 2
    assert "lost.safetensors does not exist" in said


def test_an_older_copy_of_a_sites_record_is_a_copy_and_another_story_is_found(run, capsys):
    backup = run.out / "backup" / "record.jsonl"
    backup.parent.mkdir()
    lines = run.path("alpha").read_bytes().splitlines(keepends=True)
    backup.write_bytes(b"".join(lines[:4]))
    fourth = json.loads(lines[3])
    head_path(backup).write_text(json.dumps({"count": 4, "hash": fourth["hash"]}))
    code, said = verify(capsys, run.out)
    assert code == 0, said
    forge(backup, lambda lines: lines[1].update(job="another"))
    code, said = verify(capsys, run.out)
    assert code == 1
    assert "tells another story than" in said


def test_a_site_finds_a_model_in_its_own_record(run, tmp_path, capsys):
    shutil.copy(model(run), tmp_path / "last.safetensors")
    code, said = verify(capsys, tmp_path / "last.safetensors", run.path("alpha"))
    assert code == 0
    assert "of the record of the site alpha names it as scored" in said


@pytest.mark.parametrize("change", [{"kind": None}, {"kind": "final", "model": None, "round": "x"}])
def test_a_chain_whose_lines_are_none_of_a_record_ends_in_a_sentence(run, capsys, change):
    note_path(model(run)).unlink()
    forge(run.path("server"), lambda lines: lines[3].update(change))
    code, said = verify(capsys, run.path("server"), model(run))
    assert code == 1
    assert "WRONG" in said


@pytest.mark.parametrize("content", [b"", b"hello\nyou\n", b'{"kind": "round"}\n'])
def test_a_file_that_is_no_record_is_said_to_be_none(tmp_path, capsys, content):
    path = tmp_path / "record.jsonl"
    path.write_bytes(content)
    code, said = verify(capsys, path)
    assert code == 1
    assert str(path) in said


def test_another_chain_is_no_record(tmp_path, capsys):
    HashChain(tmp_path / "ledger.jsonl").append({"kind": "opened", "schema": "fedseg-ledger-1"})
    code, said = verify(capsys, tmp_path / "ledger.jsonl")
    assert code == 1
    assert "is not the record of a run" in said


# ---------------------------------------------------------------- show


def test_a_record_is_shown_with_its_head(run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    code, said, _ = call(capsys, "audit-log", "show", run.out)
    assert code == 0
    for words in ("tiny (job-0)", "by ada@example.org, Example", "after round 2", "without beta: too late", "finished"):
        assert words in said, words
    assert f"of the run {RUN}" in said
    assert f"head {json.loads(head_path(run.path('server')).read_text())['hash']}" in said
    code, said, _ = call(capsys, "audit-log", "show", run.path("alpha"))
    assert code == 0
    assert "train in round 4: WEIGHT_DIFF, 9 bytes" in said


def test_which_record_is_to_be_shown_must_be_clear(run, capsys):
    code, _, said = call(capsys, "audit-log", "show", run.out / "state" / "alpha")
    assert code == 0, said
    RecordedRun(run.out / "again", "run-2").whole()
    code, _, said = call(capsys, "audit-log", "show", run.out)
    assert code == 2
    assert "holds 2 records; name one of them" in said
    path = run.path("server")
    path.write_bytes(path.read_bytes().replace(b"ada@", b"eve@"))
    code, _, said = call(capsys, "audit-log", "show", path)
    assert code == 1
    assert "was changed" in said


# ---------------------------------------------------------------- evaluate and predict


@pytest.fixture
def use(run, tmp_path, capsys):
    """Runs ``evaluate`` or ``predict`` with the run's model on two tiny cases."""
    data = make_sites(tmp_path / "data", {"a": (1, 1)})
    (tmp_path / "task.json").write_text(json.dumps(TASK))

    def run_command(command, *more):
        arguments = ["--task", tmp_path / "task.json", "--data", data / "a", "--out", tmp_path / "out"]
        return call(capsys, command, model(run), *arguments, *more)

    return run_command


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_changed_model_is_used_only_if_told(run, use, command):
    code, _, said = use(command)
    assert code == 0, said
    assert "provenance" not in said
    swap(model(run), model_after(0))
    code, _, said = use(command)
    assert code == 1
    assert "is not the one that its provenance file is about" in said
    assert "fetch the run again" in said
    code, _, said = use(command, "--accept-changed-model")
    assert code == 0
    assert "Used all the same" in said


def test_a_model_without_provenance_is_taken_with_one_line(run, use):
    note_path(model(run)).unlink()
    code, _, said = use("predict")
    assert code == 0
    assert "last.safetensors has no provenance file beside it" in said


class Code:
    """Would write a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("save", [lambda value, path: path.write_bytes(pickle.dumps(value)), torch.save])
def test_a_pickle_with_code_is_refused_and_not_run(run, tmp_path, use, save):
    save({"network": Code(tmp_path / "ran")}, model(run))
    with pytest.raises(DataError, match="not a model in safetensors form"):
        read_model(model(run))
    for command in ("evaluate", "predict"):
        code, _, said = use(command, "--accept-changed-model")
        assert code == 1
        assert "not a model in safetensors form" in said
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Code(tmp_path / "ran"))).close()
    assert (tmp_path / "ran").exists(), "the code of this test would have run"


@pytest.mark.parametrize(
    ("left", "words"),
    [
        ([FEATURES, LABELS], "features of image patches, labels as they are"),
        ([AT_PREDICTIONS, PARAMETERS], "which tell the labels, gradients of the site's part of the network"),
        ([PART], "weights of the site's part of the network"),
        ([], "no data"),
    ],
)
def test_direct_calls_are_told_in_a_sentence(left, words):
    entry = {"kind": "called", "round": 2, "start": "x", "calls": 6, "bytes_in": 80, "bytes_out": 120, "left": left}
    said = _DETAILS["called"](entry)
    assert said.startswith("round 3: answered 6 direct call(s) of the server; what left the site: ")
    assert f"{words}; 120 bytes out, 80 bytes in" in said

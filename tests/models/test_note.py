"""The note beside a model: comes back as it was, and is refused where it is about another model."""

import json

import pytest

from fedseg.errors import DataError
from fedseg.models.note import ModelNote, check_against_note, copy_with_note, note_path, read_note, write_note

NOTE = ModelNote("m" * 64, "run", "job", "id", 3, "p" * 64, 12, "h" * 64, {"fedseg": "1"}, ("alpha", "beta"))


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "last.safetensors"
    path.write_bytes(b"weights")
    write_note(path, NOTE)
    return path


def test_a_note_comes_back_and_says_where_the_record_names_the_model(model):
    assert read_note(model) == check_against_note(model, "m" * 64) == NOTE
    content = json.loads(note_path(model).read_text())
    assert (content["schema"], content["record"]) == ("fedseg-provenance-1", {"line": 12, "hash": "h" * 64})


def test_a_note_travels_with_its_model(model, tmp_path):
    (tmp_path / "there").mkdir()
    assert read_note(copy_with_note(model, tmp_path / "there")) == NOTE
    note_path(model).unlink()
    (tmp_path / "alone").mkdir()
    assert read_note(copy_with_note(model, tmp_path / "alone")) is None


def test_another_model_is_refused_with_what_to_do(model):
    with pytest.raises(DataError, match=r"digest is xxxx.*noted is mmmm.*fetch the run again.*--accept-changed-model"):
        check_against_note(model, "x" * 64)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        json.dumps({**NOTE.to_dict(), "schema": "fedseg-provenance-2"}),
        json.dumps({**NOTE.to_dict(), "more": 1}),
        json.dumps({**NOTE.to_dict(), "round": "3"}),
        json.dumps({**NOTE.to_dict(), "model": None}),
        json.dumps({**NOTE.to_dict(), "record": {"line": 12}}),
    ],
)
def test_a_file_that_is_no_note_is_refused(model, content):
    note_path(model).write_text(content)
    with pytest.raises(DataError, match="provenance file"):
        read_note(model)

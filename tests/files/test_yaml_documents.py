"""YAML as settings are written in it: what values mean, and what is refused."""

import pytest

from fedseg.errors import ConfigurationError, UsageError
from fedseg.files.yaml_documents import read_yaml


def read(tmp_path, text, name="a.yaml"):
    (tmp_path / name).write_text(text, "utf-8")
    return read_yaml(tmp_path / name, "a test")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("4.0E-3", 0.004),
        (".5", 0.5),
        ("5.", 5.0),
        ("-3", -3),
        ("010", 10),
        ("true", True),
        ("null", None),
        ("", None),
        ("~", None),
        ("no", "no"),
        ("on", "on"),
        ("NO", "NO"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("1.2.3", "1.2.3"),
        ("'5'", "5"),
        ("[1, a, {b: 2}]", [1, "a", {"b": 2}]),
    ],
)
def test_values_mean_what_they_mean_in_json(tmp_path, text, value):
    found = read(tmp_path, f"key: {text}\n")["key"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\na: 2\n", "'a' stands twice"),
        ("a: {b: 1, b: 2}\n", "'b' stands twice"),
        ("1: a\n", "the name 1 is no text"),
        ("a: &x [1]\nb: *x\n", "anchors"),
        ("a: !!python/object/apply:os.getcwd []\n", "tags (!), anchors"),
        ("a: !!set {b}\n", "tags (!), anchors"),
        ("a: [1\n", "expected"),
        ("a: 1\n---\nb: 2\n", "single document"),
        ("[" * 5000, ""),
    ],
)
def test_what_is_no_plain_content_is_refused(tmp_path, text, said):
    with pytest.raises(ConfigurationError, match=r"a readable YAML file") as found:
        read(tmp_path, text)
    assert said in str(found.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a:b\nc: 1\n", "a space is missing after the colon in line 1"),
        ("a:b\n", "a space is missing after the colon in line 1"),
        ("a: 1\nb:\n  c: 2\n  d:e\nf: 3\n", "a space is missing after the colon in line 4"),
        ("a: 1\nb:\n  - c:2\n    d: 3\n", "a space is missing after the colon in line 3"),
        ("a:\n  b: 1\n\tc: 2\n", "line 3 begins with a tab; use spaces"),
        ("a:\n  \tb: 1\n", "line 2 begins with a tab; use spaces"),
    ],
)
def test_a_usual_slip_is_named_with_its_line(tmp_path, text, said):
    with pytest.raises(ConfigurationError) as found:
        read(tmp_path, text)
    assert f"({said})" in str(found.value)


@pytest.mark.parametrize("text", ["a: 1\nb: [2\n", "link: http://a.b\nb: [2\n", "'a:b': 1\nb: [2\n"])
def test_no_slip_is_named_where_there_is_none(tmp_path, text):
    with pytest.raises(ConfigurationError) as found:
        read(tmp_path, text)
    assert "expected" in str(found.value)
    assert "colon" not in str(found.value)


def test_a_colon_within_a_value_is_no_slip(tmp_path):
    assert read(tmp_path, "time: 1:30\nsite: a:b\n") == {"time": "1:30", "site": "a:b"}


def test_a_file_that_is_missing_or_not_text_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"none\.yaml does not exist"):
        read_yaml(tmp_path / "none.yaml", "a test")
    with pytest.raises(UsageError, match=r"is a folder"):
        read_yaml(tmp_path, "a test")
    (tmp_path / "b.yaml").write_bytes("a: 1\nb: Küche\n".encode("latin-1"))
    with pytest.raises(ConfigurationError, match=r"b\.yaml.*line 2 is not in UTF-8"):
        read_yaml(tmp_path / "b.yaml", "a test")


def test_json_is_read_as_json(tmp_path):
    assert read(tmp_path, '{"a": 1e-3}', "a.json") == {"a": 0.001}
    with pytest.raises(ConfigurationError, match="twice"):
        read(tmp_path, '{"a": 1, "a": 2}', "a.json")

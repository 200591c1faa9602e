"""The page by symptom quotes what is really printed: by fedseg, by the installed FLARE, with FLARE's own statuses."""

import ast
import re
from functools import cache
from pathlib import Path

import nvflare
import pytest
from nvflare.apis.job_def import RunStatus

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "trouble.md"
PACKAGE, FLARE = ROOT / "custom" / "fedseg", Path(nvflare.__file__).parent
_ROW = re.compile(r"^\| `(?P<words>[^`]+)` \| (?P<source>\w+) \| .+ \|$")
LETTERS = 10
"""Fewest characters of a message, placeholders aside: fewer would be found anywhere."""


def quoted(source):
    rows = [_ROW.match(line) for line in PAGE.read_text("utf-8").splitlines()]
    return [row["words"] for row in rows if row and row["source"] == source]


def pieces(words):
    return [piece for piece in words.split("...") if piece.strip(" .")]


def texts_of(source):
    """Every text in a module that can be printed (docstrings cannot), with one mark for each value that is put in."""
    tree = ast.parse(source)
    silent = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if id(node) in silent:
            continue
        if isinstance(node, ast.JoinedStr):
            yield "".join(p.value if isinstance(p, ast.Constant) else "\0" for p in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def says(text, words):
    """Whether a text holds the message; what stands for ``...`` may be anything."""
    return re.search(".*".join(map(re.escape, pieces(words))), text, re.DOTALL) is not None


@cache
def own_texts():
    return [text for path in PACKAGE.rglob("*.py") for text in texts_of(path.read_text("utf-8"))]


@cache
def flare_sources():
    return [path.read_text("utf-8") for path in FLARE.rglob("*.py")]


@cache
def flare_scripts():
    return [path.read_text("utf-8") for path in (FLARE / "lighter" / "templates").glob("*.yml")]


def flare_says(words):
    longest = max(pieces(words), key=len)
    modules = (source for source in flare_sources() if longest in source)
    if any(says(text, words) for module in modules for text in texts_of(module)):
        return True
    return any(re.search(".*".join(map(re.escape, pieces(words))), script) for script in flare_scripts())


def test_every_row_of_words_says_where_they_come_from():
    """A row whose first cell is a quotation and that is not understood would not be tested."""
    lines = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| `")]
    statuses = [line for line in lines if line.startswith("| `FINISHED:")]
    rest = [line for line in lines if line not in statuses]
    assert [line for line in rest if not (row := _ROW.match(line)) or row["source"] not in _SOURCES] == []
    assert len(rest) > 80
    assert all(quoted(source) for source in _SOURCES)


_SOURCES = ("fedseg", "FLARE", "system")


@pytest.mark.parametrize("words", quoted("fedseg"))
def test_fedseg_says_this(words):
    assert sum(map(len, pieces(words))) >= LETTERS, f"too short to be told from others: {words}"
    assert any(says(text, words) for text in own_texts())


@pytest.mark.parametrize("words", quoted("FLARE"))
def test_flare_says_this(words):
    assert sum(map(len, pieces(words))) >= LETTERS, f"too short to be told from others: {words}"
    assert flare_says(words)


def test_the_search_does_not_find_everything():
    assert not any(says(text, "The site's datalist is ... and very tired.") for text in own_texts())
    assert not flare_says("Component ... at config path ... is well liked")


def test_every_status_of_an_ended_job_is_explained():
    found = re.findall(r"^\| `(FINISHED:\w+)` \|", PAGE.read_text("utf-8"), re.MULTILINE)
    assert sorted(found) == sorted(status.value for status in RunStatus if status.value.startswith("FINISHED"))


def test_no_words_are_quoted_twice():
    words = [word for source in _SOURCES for word in quoted(source)]
    assert sorted(set(words)) == sorted(words)

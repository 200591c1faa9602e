"""What is printed reaches the terminal, whatever letters the terminal has."""

import io
import sys

import pytest

from fedseg.console import err, out, print_table, tell


@pytest.mark.parametrize("encoding", ["ascii", "latin_1", "utf_8"])
def test_letters_that_the_terminal_lacks_are_written_otherwise(monkeypatch, encoding):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding, errors="strict", write_through=True) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    out().print("Scha\u0308del \udce4")
    err().print("头 \udce4")
    tell("头 \udce4", warning=True)
    written = [stream.buffer.getvalue().decode(encoding) for stream in streams]
    assert written[0].endswith("del \\udce4\n")
    assert written[1] == ("头 \\udce4\n" if encoding == "utf_8" else "\\u5934 \\udce4\n") * 2


def test_what_a_terminal_would_obey_is_shown_instead(monkeypatch):
    """A job's name, a site's refusal, a file's name: others write them."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    hostile = "job\x1b[2J\x1b]0;owned\x07\r\u202eslived\u200b\x9b1m"
    out().print(hostile)
    tell(hostile, warning=True)
    print_table(["name"], [[hostile]], left=1)
    assert not any(letter in stream.getvalue() for letter in "\x1b\x07\r\x9b\u202e\u200b")
    assert stream.getvalue().count(r"job\x1b[2J\x1b]0;owned") == 3
    assert stream.getvalue().count(r"\u202eslived\u200b\x9b1m") >= 2
    out().print("two\nlines")
    assert stream.getvalue().endswith("two\nlines\n")

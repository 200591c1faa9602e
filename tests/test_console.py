"""What is printed reaches the terminal, whatever letters the terminal has."""

import io
import sys

import pytest

from fedseg.console import err, out, tell


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

"""Arrays of many threads: the headers of all are read, on every version of Python."""

import ast
import gc
import io
import sys
import threading
import time

import numpy as np
import pytest

from fedseg.messages import array_headers
from fedseg.messages.array_headers import read_one_at_a_time


@pytest.fixture
def parser(monkeypatch):
    """Python's own parser, whatever this process received before; it is put back afterwards."""
    monkeypatch.setattr(ast, "parse", array_headers._parse)


@pytest.fixture
def restless():
    """A process in which garbage is collected often, each time with a chance for other threads."""

    def pause(phase, info):
        time.sleep(0)

    usual = gc.get_threshold()
    gc.callbacks.append(pause)
    gc.set_threshold(20)
    yield
    gc.set_threshold(*usual)
    gc.callbacks.remove(pause)


def test_threads_that_read_arrays_at_the_same_time_all_succeed(parser, restless):
    read_one_at_a_time()
    file = io.BytesIO()
    np.save(file, np.arange(6.0).reshape(2, 3))
    read, failed = [], []

    def receive():
        try:
            for _ in range(500):
                read.append(np.load(io.BytesIO(file.getvalue())).shape)
        except SystemError as error:
            failed.append(error)

    threads = [threading.Thread(target=receive) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert read == [(2, 3)] * 4000


@pytest.mark.parametrize(("version", "waits"), [((3, 11, 7), True), ((3, 11, 8), False), ((3, 12, 0), False)])
def test_only_versions_with_the_fault_wait(parser, monkeypatch, version, waits):
    monkeypatch.setattr(sys, "version_info", version)
    read_one_at_a_time()
    assert (ast.parse is not array_headers._parse) is waits


def test_what_is_parsed_is_the_same(parser, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 11, 7))
    read_one_at_a_time()
    assert ast.literal_eval("{'shape': (3, 4), 'fortran_order': False}") == {"shape": (3, 4), "fortran_order": False}
    with pytest.raises(SyntaxError):
        ast.parse("(")

"""The examples in docstrings hold: what stands after ``>>>`` is run."""

import doctest
import importlib
from pathlib import Path

import pytest

import fedseg

ROOT = Path(fedseg.__file__).parent
MODULES = [
    ".".join(("fedseg", *path.relative_to(ROOT).with_suffix("").parts))
    for path in sorted(ROOT.rglob("*.py"))
    if ">>> " in path.read_text("utf-8")
]


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_of_a_module(module):
    found = doctest.testmod(importlib.import_module(module))
    assert found.attempted > 0
    assert found.failed == 0

"""Headers of arrays, read in one thread at a time where Python cannot read two at once."""

from __future__ import annotations

import ast
import sys
import threading
from typing import Any

_SAFE = (3, 11, 8)
"""The first Python whose parser counts its depth for each call (python/cpython#113035)."""
_parse = ast.parse
_turn = threading.RLock()


def read_one_at_a_time() -> None:
    """Let threads wait for each other in ``ast.parse``; call it once a process begins to receive arrays.

    FLARE receives the arrays of several sites in threads, and NumPy reads the header of each with ``ast.literal_eval``.
    In Python before 3.11.8 threads that parse at the same moment share one counter of depth: seldom, on a busy
    machine, one of them gets ``SystemError: AST constructor recursion depth mismatch``, and FLARE ends the whole job.
    On later versions nothing is done.
    """
    if sys.version_info < _SAFE:
        ast.parse = _parse_alone  # type: ignore[assignment]


def _parse_alone(*args: Any, **options: Any) -> ast.AST:
    with _turn:
        return _parse(*args, **options)

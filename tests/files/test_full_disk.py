"""A full disk is told from other errors, whoever wraps them."""

import errno
import os

import pytest

from fedseg.files.full_disk import is_full, lacks_room


def wrapped(cause):
    try:
        try:
            raise cause
        except OSError:
            raise RuntimeError("of a library") from None
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "x"), True),
        (OSError(errno.EDQUOT, "x"), True),
        (OSError(errno.EFBIG, "x"), True),
        (OSError(errno.EIO, "x"), False),
        (wrapped(OSError(errno.ENOSPC, "x")), True),
        (wrapped(OSError(errno.EACCES, "x")), False),
        (RuntimeError(f"I/O error: {os.strerror(errno.ENOSPC)} (os error 28)"), True),
        (ValueError("no room in the field"), False),
    ],
)
def test_which_errors_are_those_of_a_full_disk(error, full):
    assert is_full(error) == full


def test_a_disk_with_room(tmp_path):
    assert not lacks_room(tmp_path)
    assert not lacks_room(tmp_path / "missing")

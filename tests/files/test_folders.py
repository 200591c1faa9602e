"""Walking through folders: sorted, links followed, nothing twice, nothing left out in silence."""

import os
from pathlib import Path

import pytest

from fedseg.errors import DataError
from fedseg.files.folders import walk


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    return path


def files_of(folder: Path) -> list[str]:
    return [str((place / name).relative_to(folder)) for place, _, names in walk(folder) for name in names]


def test_links_to_folders_are_followed_and_no_folder_is_entered_twice(tmp_path):
    put(tmp_path / "elsewhere" / "far.txt")
    put(tmp_path / "top" / "b" / "near.txt")
    for link, target in {"top/a": "elsewhere", "top/c": "elsewhere", "top/b/up": "top", "top/z": "top/b"}.items():
        (tmp_path / link).symlink_to(tmp_path / target)
    assert files_of(tmp_path / "top") == ["a/far.txt", "b/near.txt"]


def test_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    """Whoever runs this may have every right, so the system's refusal is played."""
    put(tmp_path / "open" / "file")
    put(tmp_path / "shut" / "file")
    listing = os.scandir

    def scandir(place):
        if Path(place).name == "shut":
            raise PermissionError(13, "Permission denied", str(place))
        return listing(place)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=r"shut cannot be read: Permission denied"):
        files_of(tmp_path)

"""Places for results, compared with what is read: by whatever name a file is called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedseg.errors import UsageError
from fedseg.files.outputs import check_copied_folder, check_new_folder, check_outputs


def linked(folder: Path, make) -> Path:
    make(folder / "image.nii", folder / "other.nii")
    return folder / "other.nii"


@pytest.mark.parametrize(
    "called",
    [
        lambda folder: folder / "image.nii",
        lambda folder: folder / "new" / ".." / "image.nii",
        lambda folder: linked(folder, lambda old, new: new.symlink_to(old)),
        lambda folder: linked(folder, lambda old, new: new.symlink_to(old.name)),
        lambda folder: linked(folder, lambda old, new: os.link(old, new)),
    ],
)
@pytest.mark.parametrize("whole_folder", [False, True])
def test_a_file_that_is_read_is_not_written_whatever_it_is_called(tmp_path, called, whole_folder):
    (tmp_path / "image.nii").write_text("voxels")
    (tmp_path / "new").mkdir()
    with pytest.raises(UsageError, match=r"--out: .* is a file that this command reads"):
        check_outputs("--out", [called(tmp_path)], [tmp_path if whole_folder else tmp_path / "image.nii"])


def test_a_folder_through_a_link_is_the_same_folder(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.nii").write_text("voxels")
    (tmp_path / "link").symlink_to("data")
    with pytest.raises(UsageError, match="reads"):
        check_outputs("--out", [tmp_path / "link" / "a.nii"], [tmp_path / "data" / "a.nii"])
    check_outputs("--out", [tmp_path / "link" / "b.nii"], [tmp_path / "data"])


def test_what_will_be_read_is_not_written_even_if_it_is_not_there_yet(tmp_path):
    with pytest.raises(UsageError, match="reads"):
        check_outputs("--out", [tmp_path / "a" / "b.nii"], [tmp_path / "a" / "b.nii"])


def test_what_the_system_would_refuse_after_the_work_is_refused_before(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a folder"):
        check_outputs("--json", [tmp_path], [])
    with pytest.raises(UsageError, match="is a file, so nothing"):
        check_outputs("--out", [tmp_path / "file" / "more" / "a.nii"], [])


def test_a_folder_that_is_made_new_holds_nothing_that_is_read(tmp_path):
    out = tmp_path / "run"
    (out / "models").mkdir(parents=True)
    (tmp_path / "link").symlink_to(out / "models")
    for path in (out, out / "models", tmp_path / "link"):
        with pytest.raises(UsageError, match=r"--initial .* lies inside --out"):
            check_new_folder("--out", out, {"--data": tmp_path / "data", "--initial": path})
    check_new_folder("--out", out, {"--data": tmp_path, "--initial": None, "--job": tmp_path / "run2"})


def test_a_folder_is_not_copied_into_itself(tmp_path):
    for out in (tmp_path / "job", tmp_path / "job" / "out", tmp_path / "job" / "a" / ".." / "b"):
        with pytest.raises(UsageError, match="which is copied there"):
            check_copied_folder("--out", out, tmp_path / "job")
    check_copied_folder("--out", tmp_path / "job.out", tmp_path / "job")

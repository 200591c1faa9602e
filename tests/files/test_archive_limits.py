"""Archives made to fill a disk or to lead out of a folder are refused by their table, before anything is unpacked."""

import copy
import io
import os
import stat
import zipfile

import pytest

from fedseg.errors import ConfigurationError
from fedseg.files.archive_limits import DEEPEST, Limits, check_archive, files_below

LIMITS = Limits("the parcel", files=1000, size=2**30)


def packed(files, kind=zipfile.ZIP_DEFLATED):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", kind) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return content


def check(content, limits=LIMITS):
    with zipfile.ZipFile(content) as archive:
        return check_archive(archive, limits)


def test_a_plain_archive_passes_with_its_folders():
    entries = check(packed([("a/", b""), ("a/b.json", b"{}" * 100_000), ("c", bytes(1000))]))
    assert [entry.filename for entry in entries] == ["a/", "a/b.json", "c"]
    check(packed([("model", bytes(2**23))], zipfile.ZIP_STORED))


def test_too_many_files_are_refused_however_small():
    with pytest.raises(ConfigurationError, match=r"number of files in the parcel is 'more than 1000'.*1000 at most"):
        check(packed((f"{n}", b"") for n in range(1001)))


def test_many_small_files_count_together():
    """300 files of 1 MiB of zeros: each alone would pass, and 300 KB unpack to 300 MB."""
    content = packed((f"{n}", bytes(2**20)) for n in range(300))
    assert len(content.getvalue()) < 2**20
    with pytest.raises(ConfigurationError, match="size of the parcel is 314572800, but must be at most 20 times"):
        check(content)


def test_one_tightly_packed_file_is_refused_by_its_name():
    with pytest.raises(ConfigurationError, match=r"size of zeros is 16777216, .* at most 20 times"):
        check(packed([("zeros", bytes(2**24)), ("noise", os.urandom(2**20))]))


def test_entries_that_share_the_same_packed_bytes_count_each():
    """The bomb of Fifield (WOOT 2019): all entries of the table point at one file, so that each alone looks plain."""
    whole = zipfile.ZipFile(packed([("a", os.urandom(2**21))], zipfile.ZIP_STORED), "a")
    for number in range(200):
        again = copy.copy(whole.filelist[0])
        again.filename = again.orig_filename = f"b{number}"
        whole.filelist.append(again)
        whole.NameToInfo[again.filename] = again
    whole._didModify = True
    content = whole.fp
    whole.close()
    with pytest.raises(ConfigurationError, match="at most 20 times what it takes in the archive"):
        check(content)


def test_what_the_table_says_bounds_what_is_unpacked(tmp_path):
    """A table that lies is no way around: no more bytes come out than it promises."""
    content = packed([("a", bytes(2**24))])
    raw = bytearray(content.getvalue())
    place = raw.rindex(b"PK\x01\x02") + 24
    raw[place : place + 4] = (1000).to_bytes(4, "little")
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        assert check_archive(archive, LIMITS)[0].file_size == 1000
        with pytest.raises(zipfile.BadZipFile):
            archive.extractall(tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1000


def test_no_more_bytes_than_the_limit():
    with pytest.raises(ConfigurationError, match="size of the parcel is 3000, but must be 2999 bytes at most"):
        check(packed([("a", bytes(1500)), ("b", bytes(1500))]), Limits("the parcel", 10, 2999))


@pytest.mark.parametrize(
    "name", ["../x", "a/../x", "/etc/x", "a//x", "a/./x", "a\\..\\x", "C:\\x", "../", "a/../../b/", "./x", "/"]
)
def test_names_that_lead_elsewhere_or_are_another_spelling(name):
    with pytest.raises(ConfigurationError, match="that of a place inside of it"):
        check(packed([(name, b"")]))


@pytest.mark.parametrize("name", ["d/" * DEEPEST + "x", "d/" * (DEEPEST + 1), "d" * 1001])
def test_names_beyond_use(name):
    with pytest.raises(ConfigurationError, match="at most 20 folders deep and 1000 letters long"):
        check(packed([(name, b"")]))
    check(packed([("d/" * (DEEPEST - 1) + "x", b"")]))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("names", [("a", "a"), ("a/", "a"), ("a", "a/")])
def test_a_name_stands_there_once(names):
    with pytest.raises(ConfigurationError, match="a plain file, and there once"):
        check(packed([(name, b"") for name in names]))


def test_no_links():
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(ConfigurationError, match="a plain file"):
        check(packed([(link, "/etc/hostname")]))


# --------------------------------------------------------------------------------------------------------- folders


def test_a_folder_is_listed_in_order(tmp_path):
    for name in ("b/c/x", "a", "b/a"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(len(name)))
    assert files_below(tmp_path, LIMITS) == [(n, tmp_path / n, len(n)) for n in ("a", "b/a", "b/c/x")]


def test_a_folder_has_the_same_limits(tmp_path):
    for number in range(5):
        (tmp_path / str(number)).write_bytes(bytes(10))
    with pytest.raises(ConfigurationError, match="more than 4"):
        files_below(tmp_path, Limits("the folder", 4))
    with pytest.raises(ConfigurationError, match="is 50, but must be 49 bytes at most"):
        files_below(tmp_path, Limits("the folder", 5, 49))
    os.truncate(tmp_path / "0", 2**40)  # takes no room, but would where it is copied
    with pytest.raises(ConfigurationError, match="bytes at most"):
        files_below(tmp_path, LIMITS)


def test_a_deep_folder_is_refused_before_it_is_walked(tmp_path):
    """Deeper than Python recurses."""
    place = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=place)
        inner = os.open("d", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = inner
    os.close(place)
    with pytest.raises(ConfigurationError, match="at most 20 folders deep"):
        files_below(tmp_path, LIMITS)
    os.system(f"rm -rf {tmp_path}/d")  # pytest's own way to remove it would recurse


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x")
    with pytest.raises(ConfigurationError, match="a usual file"):
        files_below(tmp_path, LIMITS)

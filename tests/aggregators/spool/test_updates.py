import errno
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from nvflare.app_opt.pt.lazy_tensor_dict import LazyTensorDict
from safetensors.torch import save_file

from fedseg.aggregators.spool import reader as spool_reader
from fedseg.aggregators.spool.updates import SpoolError, SpoolReader, UpdateSpool
from fedseg.errors import RefusalError

SHAPES = [(), (1,), (0,), (2, 0, 3), (7,), (2, 3, 5), (64, 33)]


def make_update(seed=0, kind=np.float32):
    generator = np.random.default_rng(seed)
    return {f"array-{i}": generator.normal(size=shape).astype(kind) for i, shape in enumerate(SHAPES)}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def open_files(folder):
    """Files of the folder that this process holds, those without a name too."""
    links = []
    for number in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
    return [link for link in links if link.startswith(str(folder))]


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_arrays_come_back_as_they_went(kind):
    spool, update = UpdateSpool(), make_update(kind=kind)
    spool.put("a", update)
    with spool.columns() as reader:
        for name, array in update.items():
            read = reader.read("a", name)
            assert (read.shape, read.dtype, reader.shape(name), reader.size(name)) == (
                array.shape,
                array.dtype,
                array.shape,
                array.size,
            )
            np.testing.assert_array_equal(read, array)


def test_all_half_precision_numbers_are_kept():
    # Every bit pattern of float16 that is a number.
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    spool = UpdateSpool()
    spool.put("a", {"w": halves})
    with spool.columns() as reader:
        read = reader.read("a", "w")
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read.astype(np.float16), halves)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_and_leaves_the_others(value):
    spool = UpdateSpool()
    spool.put("a", {"w": np.ones(2, np.float32)})
    with pytest.raises(RefusalError, match="not finite"):
        spool.put("b", {"v": np.ones(2, np.float32), "w": np.array([1, value], np.float32)})
    assert (spool.sites, spool.names()) == (["a"], ["w"])


@pytest.mark.parametrize(
    "sent",
    [
        np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4)),
        np.repeat(np.arange(12, dtype=np.float32), 2)[::2].reshape(3, 4),
        np.arange(12, dtype=">f4").reshape(3, 4),
        torch.arange(12.0).reshape(3, 4).requires_grad_(),
        torch.arange(12.0, dtype=torch.bfloat16).reshape(3, 4),
    ],
    ids=["column-major", "strided", "big-endian", "tensor with gradient", "bfloat16"],
)
def test_other_layouts_come_back_in_rows(sent):
    spool = UpdateSpool()
    spool.put("a", {"w": sent})
    with spool.columns() as reader:
        np.testing.assert_array_equal(reader.read("a", "w"), np.arange(12).reshape(3, 4))


def test_sites_and_names_are_sorted_and_sites_may_lack_arrays():
    spool = UpdateSpool()
    spool.put("b", {"z": np.ones(2, np.float32), "m": np.ones(1, np.float32)})
    spool.put("a", {"m": np.zeros(1, np.float32), "c": np.zeros(3, np.float64)})
    assert (spool.sites, spool.names()) == (["a", "b"], ["c", "m", "z"])
    with spool.columns() as reader:
        assert [reader.sites_with(name) for name in "cmz"] == [["a"], ["a", "b"], ["b"]]
        assert [reader.result_type(name) for name in "cmz"] == [np.float64, np.float32, np.float32]


@pytest.mark.parametrize("sizes", [(3, 0), (0, 3), (0,), (0, 0)])
def test_arrays_without_elements_take_no_space(sizes):
    spool = UpdateSpool()
    spool.put("a", {f"w{i}": np.ones(size, np.float32) for i, size in enumerate(sizes)})
    with spool.columns() as reader:
        assert [reader.read("a", f"w{i}").size for i in range(len(sizes))] == list(sizes)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize(("start", "stop"), [(0, 30), (0, 0), (7, 8), (11, 30), (30, 30)])
def test_parts_are_those_of_the_flattened_array(kind, start, stop):
    update, spool = make_update(1), UpdateSpool()
    spool.put("a", update)
    with spool.columns() as reader:
        part = np.full(stop - start, np.nan, kind)
        reader.read_into("a", "array-5", start, part)
    np.testing.assert_array_equal(part, update["array-5"].reshape(-1)[start:stop].astype(kind))


@pytest.mark.parametrize("in_place", [0, 8])
@pytest.mark.parametrize(("kinds", "kind"), [("444", "f4"), ("482", "f8"), ("888", "f8")])
def test_rows_are_the_same_part_of_many_sites(kinds, kind, in_place, monkeypatch):
    monkeypatch.setattr(spool_reader, "_MOST_IN_PLACE", in_place)
    spool, updates = UpdateSpool(), {}
    for number, (site, size) in enumerate(zip("cab", kinds, strict=True)):
        updates[site] = make_update(number, f"f{size}")
        spool.put(site, updates[site])
    with spool.columns() as reader:
        for start, stop in [(100, 165), (0, 2112), (2110, 2112), (5, 5)]:
            data, starts = reader.rows("array-6", ["a", "b", "c"], start, stop)
            assert (data.dtype, data.flags.writeable) == (np.dtype(kind), False)
            for site, begin in zip("abc", starts, strict=True):
                part = data[begin : begin + stop - start]
                np.testing.assert_array_equal(part, updates[site]["array-6"].reshape(-1)[start:stop])


@pytest.mark.parametrize(("start", "size"), [(-1, 3), (28, 3), (31, 0)])
def test_what_lies_outside_an_array_is_not_read(start, size):
    spool = UpdateSpool()
    spool.put("a", make_update())
    with spool.columns() as reader:
        with pytest.raises(IndexError, match="array-5 has 30 elements"):
            reader.read_into("a", "array-5", start, np.empty(size, np.float32))
        with pytest.raises(IndexError, match="array-5 has 30 elements"):
            reader.rows("array-5", ["a"], start, start + size)


def test_a_second_update_replaces_the_first_completely():
    spool = UpdateSpool()
    spool.put("a", {"w": np.ones(3, np.float32), "only first": np.ones(1, np.float32)})
    spool.put("a", {"w": np.full(5, 2, np.float32)})
    assert (spool.sites, spool.names()) == (["a"], ["w"])
    with spool.columns() as reader:
        assert reader.read("a", "w").tolist() == [2.0] * 5


class Breaking(Mapping):
    """An update whose second array cannot be had."""

    def __iter__(self):
        return iter(["w", "x"])

    def __len__(self):
        return 2

    def __getitem__(self, name):
        if name == "x":
            raise KeyError("lost on the way")
        return np.full(3, 9, np.float32)


def test_an_update_that_breaks_off_leaves_the_former_one():
    spool, kept = UpdateSpool(), {"w": np.ones(3, np.float32), "x": np.ones(1, np.float32)}
    spool.put("a", kept)
    size = os.fstat(spool._file).st_size
    with pytest.raises(KeyError, match="lost on the way"):
        spool.put("a", Breaking())
    with pytest.raises(KeyError, match="lost on the way"):
        spool.put("b", Breaking())
    assert (spool.sites, spool.names()) == (["a"], ["w", "x"])
    assert os.fstat(spool._file).st_size == size
    with spool.columns() as reader:
        np.testing.assert_array_equal(reader.read("a", "w"), kept["w"])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.arange(3), "w is of the type int64"),
        (np.ones(3, bool), "w is of the type bool"),
        (np.ones(3, complex), "w is of the type complex128"),
        (np.ones(3, np.longdouble), "w is of the type float128"),
        ("text", "w is of the type <U4"),
        (np.ones(4, np.float32), r"w of b has the shape \(4,\), that of a \(3,\)"),
        (np.ones((3, 1), np.float32), r"w of b has the shape \(3, 1\), that of a \(3,\)"),
    ],
)
def test_what_cannot_be_summed_is_refused(value, message):
    spool = UpdateSpool()
    spool.put("a", {"w": np.ones(3, np.float32)})
    with pytest.raises(RefusalError, match=message) as caught:
        spool.put("b", {"w": value})
    assert caught.value.reason == "weights"
    assert spool.sites == ["a"]


def test_references_of_flare_to_tensors_on_disk_are_read_one_at_a_time(tmp_path, monkeypatch):
    shard = tmp_path / "offload"
    shard.mkdir()
    tensors = {f"t{i}": torch.full((3, 2), float(i), dtype=torch.bfloat16 if i else torch.float32) for i in range(4)}
    save_file(tensors, shard / "part.safetensors")
    lazy = LazyTensorDict({name: (str(shard / "part.safetensors"), name) for name in tensors}, str(shard))
    references = {name: lazy.make_lazy_ref(name) for name in lazy}
    events = []
    materialize, write = type(references["t0"]).materialize, os.pwrite
    monkeypatch.setattr(type(references["t0"]), "materialize", lambda r: events.append("read") or materialize(r))
    monkeypatch.setattr(os, "pwrite", lambda *arguments: events.append("write") or write(*arguments))
    spool = UpdateSpool()
    spool.put("references", references)
    assert events == ["read", "write"] * 4
    spool.put("dictionary", lazy)
    lazy.cleanup()
    assert not shard.exists()
    with spool.columns() as reader:
        for site in spool.sites:
            assert [reader.read(site, f"t{i}").tolist() for i in range(4)] == [[[float(i)] * 2] * 3 for i in range(4)]


def test_a_lost_reference_is_not_taken_for_a_full_disk(tmp_path):
    lazy = LazyTensorDict({"w": (str(tmp_path / "gone"), "w")}, str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError):
        UpdateSpool().put("a", {"w": lazy.make_lazy_ref("w")})


def test_a_full_disk_is_an_error_that_says_what_to_do(folder):
    spool = UpdateSpool()
    spool.put("a", {"w": np.ones(1000, np.float32)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, hard))
        with pytest.raises(SpoolError, match=f"update of b could not be kept in {folder}: .*TMPDIR") as caught:
            spool.put("b", {"w": np.ones(1000, np.float32)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.__cause__.errno == errno.EFBIG
    assert spool.sites == ["a"]
    assert os.fstat(spool._file).st_size == 4000
    spool.put("b", {"w": np.full(1000, 2, np.float32)})
    with spool.columns() as reader:
        assert reader.read("b", "w").sum() == 2000


def test_an_unwritable_folder_is_an_error_that_names_it(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(SpoolError, match=f"could not be kept in {tmp_path / 'absent'}: No such file"):
        UpdateSpool().put("a", {"w": np.ones(1, np.float32)})


def test_updates_have_no_name_and_go_when_forgotten(folder):
    spool = UpdateSpool()
    spool.put("a", make_update())
    assert list(folder.iterdir()) == []
    assert len(open_files(folder)) == 1
    spool.clear()
    assert open_files(folder) == []
    assert (spool.sites, spool.names()) == ([], [])
    spool.put("b", make_update())
    assert len(open_files(folder)) == 1
    del spool
    assert open_files(folder) == []


def test_an_open_reader_outlives_what_happens_to_the_spool(folder):
    spool = UpdateSpool()
    spool.put("a", {"w": np.ones(3, np.float32)})
    with spool.columns() as reader:
        data, starts = reader.rows("w", ["a"], 0, 3)
        spool.put("a", {"w": np.zeros(3, np.float32)})
        spool.clear()
        assert reader.read("a", "w").tolist() == data[starts[0] : starts[0] + 3].tolist() == [1.0] * 3
    del data
    assert open_files(folder) == []


def test_a_file_that_lost_its_end_is_an_error():
    spool = UpdateSpool()
    spool.put("a", {"w": np.ones(3, np.float32)})
    os.ftruncate(spool._file, 8)
    with pytest.raises(SpoolError, match="shorter than it was written"):
        SpoolReader(spool._file, 8, spool._places).read("a", "w")


def test_an_error_while_reading_is_not_covered_up(folder):
    spool = UpdateSpool()
    spool.put("a", {"w": np.ones(3, np.float32)})

    def fail():
        with spool.columns() as reader:
            data, _ = reader.rows("w", ["a"], 0, 3)
            raise ValueError(f"of {data.size} elements")

    with pytest.raises(ValueError, match="of 3 elements"):
        fail()


def test_a_killed_process_leaves_nothing(folder):
    code = (
        "import os, signal, numpy as np\n"
        "from fedseg.aggregators.spool.updates import UpdateSpool\n"
        "spool = UpdateSpool()\n"
        "spool.put('a', {'w': np.ones(1000, np.float32)})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(folder)}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert list(folder.iterdir()) == []


def test_nothing_sent_is_nothing_to_read():
    spool = UpdateSpool()
    with spool.columns() as reader:
        assert (spool.sites, spool.names(), reader.sites_with("w")) == ([], [], [])


def test_sites_may_send_at_the_same_time():
    spool, updates = UpdateSpool(), {f"s{i}": make_update(i) for i in range(8)}
    threads = [threading.Thread(target=spool.put, args=item) for item in updates.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with spool.columns() as reader:
        for site, update in updates.items():
            for name, array in update.items():
                np.testing.assert_array_equal(reader.read(site, name), array)


@pytest.mark.parametrize(("sites", "least", "most"), [(4, 2**22, 48 * 2**20), (16, 0, 0)])
def test_pages_looked_at_are_given_back(folder, sites, least, most):
    # 96 MiB in all, looked at from end to end: without giving back, all would stay mapped. Many sites are never mapped.
    spool, size = UpdateSpool(), 24 * 2**20 // sites
    names = [f"s{number:02d}" for number in range(sites)]
    for site in names:
        spool.put(site, {"w": np.ones(size, np.float32)})

    def mapped():
        resident, ours = 0, False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            if "-" in line.split()[0]:
                ours = str(folder) in line
            elif ours and line.startswith("Rss:"):
                resident += int(line.split()[1]) * 1024
        return resident

    with spool.columns() as reader:
        marks = []
        for start in range(0, size, 2**18):
            data, starts = reader.rows("w", names, start, start + 2**18)
            assert sum(data[begin : begin + 2**18 : 1024].sum() for begin in starts) == 256 * sites
            marks.append(mapped())
    assert least <= max(marks) <= most

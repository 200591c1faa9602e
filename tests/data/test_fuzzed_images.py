"""Damaged images, drawn by a seeded generator: commands end with a sentence, read all or nothing, keep their input.

Each mutated file is the image or the label of one case. The data check, training's reader, ``evaluate`` and ``predict``
must agree whether the case can be used.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from fedseg.cli import main
from fedseg.contract.plan import parse_plan
from fedseg.data.case_reading import read_case
from fedseg.data.datalist import Case, Datalist, case_names, write_datalist
from fedseg.errors import DataError
from fedseg.models.model_file import write_model
from fedseg.networks.weights import get_weights
from fedseg.tasks.registry import resolve_task
from fedseg.tasks.task import Task
from raw_dicom import SLOPE, slice_bytes
from raw_nifti import FIELDS, HEADER_BYTES, nifti_bytes
from tiny import PLAN, TASK

CASES = 300
SHAPE = (4, 5, 6)
SMALL_TASK = {**TASK, "patch_size": [8, 8, 8]}
# Findings that are about the list, not about what a reader of one case can see.
OF_THE_LIST = {"no-cases", "few-cases", "duplicate-content", "label-twice", "patient-in-two-splits"}
EXTREMES = [0.0, -0.0, 1e-30, 1e30, -1.0, 2.0, 255.0, float("nan"), float("inf"), float("-inf"), 0.5, 1e9]
WHOLES = [0, 1, -1, 2, 4, 7, 8, 16, 64, 127, 255, 256, 348, 1000, 32767, -32768]
Generator = np.random.Generator


def voxels_of(generator: Generator, label: bool) -> np.ndarray:
    if not label:
        return generator.uniform(1, 99, SHAPE).astype(np.float32)
    return generator.integers(0, 3, SHAPE).astype(np.uint8)


def mutate_field(content: bytes, generator: Generator) -> bytes:
    """One to three header fields with values that are extreme, or of another kind of file."""
    changed = bytearray(content)
    for _ in range(generator.integers(1, 4)):
        offset, form = FIELDS[list(FIELDS)[generator.integers(len(FIELDS) - 1)]]  # all but the magic
        letter, count = form[-1], int(form[:-1] or 1)
        value = (
            EXTREMES[generator.integers(len(EXTREMES))] if letter == "f" else WHOLES[generator.integers(len(WHOLES))]
        )
        place = offset + struct.calcsize(letter) * int(generator.integers(count))
        struct.pack_into("<" + letter, changed, place, value % 256 if letter == "B" else value)
    return bytes(changed)


def mutate_sizes(content: bytes, generator: Generator) -> bytes:
    """Dimensions that no memory holds."""
    changed = bytearray(content)
    struct.pack_into("<8h", changed, 40, 3, *generator.integers(20000, 32768, 3).tolist(), 1, 1, 1, 1)
    return bytes(changed)


def mutate_bytes(content: bytes, generator: Generator) -> bytes:
    changed = bytearray(content)
    for _ in range(generator.integers(1, 9)):
        changed[generator.integers(HEADER_BYTES)] = generator.integers(256)
    return bytes(changed)


def mutate_magic(content: bytes, generator: Generator) -> bytes:
    return content[:344] + generator.bytes(4) + content[348:]


def swap_bytes(content: bytes, generator: Generator) -> bytes:
    """A file of the other byte order; some have their sizes or their voxel type in the first."""
    voxels = np.frombuffer(content[HEADER_BYTES:], np.float32 if len(content) > 500 else np.uint8).reshape(
        SHAPE, order="F"
    )
    swapped = nifti_bytes(voxels, ">")
    first = generator.integers(3)
    return (
        swapped
        if first == 0
        else swapped[:40] + content[40:56] + swapped[56:]
        if first == 1
        else mutate_bytes(swapped, generator)
    )


def cut(content: bytes, generator: Generator) -> bytes:
    return content[: generator.integers(len(content))]


def flip(content: bytes, generator: Generator) -> bytes:
    changed = bytearray(content)
    changed[generator.integers(len(changed))] ^= 1 << int(generator.integers(8))
    return bytes(changed)


Mutation = Callable[[bytes, Generator], bytes]
OF_HEADERS: tuple[Mutation, ...] = (
    mutate_field,
    mutate_field,
    mutate_sizes,
    mutate_bytes,
    mutate_magic,
    swap_bytes,
    cut,
)
HOPELESS: tuple[Mutation, ...] = (mutate_sizes, cut)
PACKING: dict[str, Callable[[bytes], bytes]] = {"nii": bytes, "nii.gz": gzip.compress, "nii.bz2": bz2.compress}


def draw_file(folder: Path, name: str, label: bool, generator: Generator) -> tuple[Path, bool]:
    """Write a mutated file; also says whether nothing can be read from it."""
    ending = list(PACKING)[generator.integers(len(PACKING))]
    content, packing = nifti_bytes(voxels_of(generator, label)), PACKING[ending]
    after = (cut, flip)[generator.integers(2)] if ending != "nii" and generator.random() < 0.3 else None
    if after:
        content, hopeless = after(packing(content), generator), after is cut
    else:
        mutation = OF_HEADERS[generator.integers(len(OF_HEADERS))]
        content, hopeless = packing(mutation(content, generator)), mutation in HOPELESS
    path = folder / f"{name}.{ending}"
    path.write_bytes(content)
    return path, hopeless


def digests(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A folder of cases, each with one mutated file, a task and a model; and which cases are hopeless."""
    folder = tmp_path_factory.mktemp("fuzzed")
    (folder / "data").mkdir()
    (folder / "task.json").write_text(json.dumps(SMALL_TASK))
    plan = parse_plan({**PLAN, "task": SMALL_TASK, "network": {**PLAN["network"], "channels": [2, 4], "strides": [2]}})
    write_model(folder / "model.safetensors", plan, get_weights(plan.build_network()), 1)
    cases, hopeless = [], []
    for index in range(CASES):
        generator = np.random.default_rng([20260, index])
        kind = bool(generator.integers(2))
        mutated, cannot = draw_file(folder / "data", f"case{index:03d}{'_seg' * kind}", kind, generator)
        other = folder / "data" / f"case{index:03d}{'' if kind else '_seg'}.nii"
        other.write_bytes(nifti_bytes(voxels_of(generator, not kind)))
        image, label = (other, mutated) if kind else (mutated, other)
        cases.append(Case((image,), label, f"p{index}"))
        hopeless.append(cannot)
    return {"folder": folder, "cases": cases, "hopeless": hopeless, "before": digests(folder / "data")}


def run(arguments: list[Any], capsys: Any) -> int:
    code = main([str(a) for a in arguments])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.out + printed.err
    assert code == 0 or (printed.out + printed.err).strip()
    return code


def errors_by_case(site: dict[str, Any], capsys: Any, *more: str) -> list[set[str]]:
    """What the check finds wrong with the files of each case."""
    folder, kept = site["folder"], "".join(more)
    if kept not in site:
        path = write_datalist(Datalist(tuple(site["cases"])), folder / "all" / "datalist.json")
        assert run(["check-data", folder / "task.json", path, "--json", folder / "check.json", *more], capsys) == 1
        found = json.loads((folder / "check.json").read_text())["errors"]
        assert all(e["message"] and e["remedy"] for e in found)
        named = {(e["patient"], e["code"]) for e in found if e["code"] not in OF_THE_LIST}
        site[kept] = [{code for patient, code in named if patient == case.patient} for case in site["cases"]]
    return site[kept]


def refusal_of_reader(task: Task, case: Case) -> str:
    """What training's reader says against a case; empty where it reads all of it."""
    try:
        array, grid, label = read_case(task, case)
    except DataError as error:
        return str(error)
    assert label is not None
    assert array.shape[1:] == grid.shape == label.shape
    return ""


def test_commands_agree_on_every_file_and_keep_it(site: dict[str, Any], capsys: Any) -> None:
    folder, task, cases = site["folder"], resolve_task(SMALL_TASK), site["cases"]
    found = errors_by_case(site, capsys)
    assert 50 < sum(map(bool, found)) < CASES - 50
    for case, codes, hopeless in zip(cases, found, site["hopeless"], strict=True):
        assert codes or not hopeless, case
        refusal = refusal_of_reader(task, case)
        assert bool(refusal) <= bool(codes), (case, codes)
        assert not refusal or any(str(file) in refusal for file in (*case.images, case.label))

    data = folder / "all" / "datalist.json"
    model = [folder / "model.safetensors", "--task", folder / "task.json", "--data", data, "--split", "all"]
    assert run(["evaluate", *model, "--out", folder / "scores"], capsys) == 1
    content = json.loads((folder / "scores" / "evaluation.json").read_text())
    names = case_names(cases)
    assert list(content["failed"]) == [name for name, codes in zip(names, found, strict=True) if codes]
    assert [e["id"] for e in content["cases"]] == [name for name in names if name not in content["failed"]]

    assert run(["predict", *model, "--out", folder / "masks"], capsys) == 1
    for name, case, codes in zip(names, cases, found, strict=True):
        mask = folder / "masks" / f"{name}.nii.gz"
        assert mask.exists() or codes
        if mask.exists():
            assert nib.load(mask).shape == read_case(task, replace(case, label=None))[1].shape

    for index in range(0, CASES, 6):
        source = write_datalist(Datalist((cases[index],)), folder / "one" / "datalist.json")
        out = folder / f"list{index}"
        run(["import-data", source, "--task", folder / "task.json", "--out", out, "--validation-fraction", "0"], capsys)
    assert digests(folder / "data") == site["before"]


def test_quick_check_finds_no_more_than_the_whole_and_asks_for_no_memory(site: dict[str, Any], capsys: Any) -> None:
    whole = errors_by_case(site, capsys)
    tracemalloc.start()
    quick = errors_by_case(site, capsys, "--quick")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert all(q <= w for q, w in zip(quick, whole, strict=True))
    assert peak < 64e6


def test_whole_check_of_absurd_sizes_asks_for_no_memory(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "task.json").write_text(json.dumps(SMALL_TASK))
    cases = []
    for index, (ending, packing) in enumerate(sorted(PACKING.items()) * 10):
        generator = np.random.default_rng([20261, index])
        path = tmp_path / f"{index}.{ending}"
        path.write_bytes(packing(mutate_sizes(nifti_bytes(voxels_of(generator, False)), generator)))
        cases.append(Case((path,), None, f"p{index}"))
    data = write_datalist(Datalist(tuple(cases)), tmp_path / "datalist.json")
    tracemalloc.start()
    code = run(["check-data", tmp_path / "task.json", data, "--json", tmp_path / "check.json"], capsys)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert code == 1
    found = json.loads((tmp_path / "check.json").read_text())["errors"]
    assert sum(e["code"] == "unreadable" for e in found) == len(cases)
    assert peak < 64e6


DICOM_CASES = 150
PIXELS = np.random.default_rng(4).integers(0, 2000, (3, 4, 5)).astype(np.int16)
TEXTS = ["0", "-1", "nan", "inf", "1e300", "abc", "1\\2", "", "1\\0\\0\\0\\1\\0", "0.5", "3.5"]


def mutate_element(z: int, generator: Generator) -> bytes:
    """A slice with one to three elements of other values, or without them."""
    tags = [(0x0008, 0x0016), (0x0008, 0x0060), (0x0020, 0x000E), (0x0020, 0x0032), (0x0020, 0x0037), (0x0028, 0x0002)]
    tags += [(0x0028, e) for e in (0x0004, 0x0008, 0x0010, 0x0011, 0x0030, 0x0100, 0x0101, 0x0102, 0x0103, 0x1052)]
    changes: dict[tuple[int, int], tuple[str, object] | None] = {}
    for tag in (tags[i] for i in generator.integers(len(tags) + 1, size=generator.integers(1, 4)) if i < len(tags)):
        if generator.random() < 0.2:
            changes[tag] = None
        elif tag[0] == 0x0028 and tag[1] not in (0x0004, 0x0008, 0x0030, 0x1052):
            changes[tag] = ("US", int(generator.choice([0, 1, 2, 4, 5, 8, 12, 16, 32, 1000, 65535])))
        else:
            changes[tag] = ("DS", TEXTS[generator.integers(len(TEXTS))])
    changes.setdefault(
        SLOPE, ("DS", TEXTS[generator.integers(len(TEXTS))]) if generator.random() < 0.2 else ("DS", "1")
    )
    return slice_bytes(PIXELS[z], z + 1, changes=changes)


def test_damaged_slices_never_make_a_part_of_a_volume(tmp_path: Path, capsys: Any) -> None:
    """One slice of three is damaged: the import is whole, with every slice's own values, or it ends with a sentence."""
    whole = 0
    for index in range(DICOM_CASES):
        generator = np.random.default_rng([20262, index])
        folder = tmp_path / f"in{index}"
        folder.mkdir()
        good = [slice_bytes(PIXELS[z], z + 1) for z in range(3)]
        bad = int(generator.integers(3))
        kind = generator.integers(5)
        content = mutate_element(bad, generator) if kind < 2 else (cut, flip, flip)[kind - 2](good[bad], generator)
        good[bad] = content
        for z in range(3):
            (folder / f"{z}.dcm").write_bytes(good[z])
        before = digests(folder)
        out = tmp_path / f"out{index}"
        code = run(["import-dicom", folder, "--out", out], capsys)
        assert digests(folder) == before
        assert out.exists() == (code == 0)
        if code == 0:
            volume = np.asarray(nib.load(out / "image.nii.gz").dataobj)
            assert volume.shape == (5, 4, 3), index
            same = np.transpose(PIXELS, (2, 1, 0)) - 1024
            others = [z for z in range(3) if z != bad]
            np.testing.assert_array_equal(volume[..., others], same[..., others])
            assert np.isfinite(volume).all()
            whole += 1
    assert 10 < whole < DICOM_CASES - 50

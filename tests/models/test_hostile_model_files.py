"""Model files that somebody made to harm whoever reads them: each is refused in a sentence, before memory is asked."""

import json
import random
from pathlib import Path

import pytest

from fedseg import memory
from fedseg.cli import main
from fedseg.contract.plan import parse_plan
from fedseg.errors import DataError
from fedseg.files import arrays
from fedseg.memory import check_memory
from fedseg.models.model_file import read_model, write_model
from fedseg.networks.weights import get_weights
from tiny import PLAN, make_sites

ODD = (None, True, -1, 0, 2**20, 10**5, 2**62, 2**70, 10**400, 1e-9, 1e308, float("inf"), "", "x", "{$HOME}", [], {})
ODD += ([0], [[]], [2**62] * 3, [1e-9] * 3, {"name": 1}, ["\ud800"], "9" * 5000)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Header and data of a sound model."""
    plan = parse_plan(PLAN)
    content = write_model(tmp_path_factory.mktemp("m") / "m", plan, get_weights(plan.build_network()), 0).read_bytes()
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def write(path, header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def with_meta(header, part, change):
    """The header with a part of what the model says of itself changed."""
    meta = dict(header["__metadata__"])
    content = json.loads(meta[part])
    return {**header, "__metadata__": {**meta, part: json.dumps(change(content))}}


def replaced(content, generator, value):
    """A copy of a JSON document with one place of it replaced."""
    if isinstance(content, dict | list) and content and generator.random() < 0.8:
        keys = list(content) if isinstance(content, dict) else range(len(content))
        chosen = generator.choice(list(keys))
        copy = dict(content) if isinstance(content, dict) else list(content)
        copy[chosen] = replaced(copy[chosen], generator, value)
        return copy
    return value


def read(path):
    """Whether it is a model; every other end than a sentence is an error of the test."""
    try:
        read_model(path)
    except DataError:
        return False
    return True


@pytest.mark.parametrize("part", ["task", "network", "notes"])
def test_no_odd_value_in_what_a_model_says_of_itself_is_more_than_a_sentence(parts, tmp_path, part):
    header, data = parts
    generator = random.Random(part)
    taken = 0
    for _ in range(120):
        value = generator.choice(ODD)
        changed = with_meta(header, part, lambda c, v=value: replaced(c, generator, v))
        taken += read(write(tmp_path / "m", changed, data))
    assert taken < 120, "some changes matter"


def test_no_odd_value_in_the_header_of_the_arrays_is_more_than_a_sentence(parts, tmp_path):
    header, data = parts
    generator = random.Random(1)
    for _ in range(150):
        read(write(tmp_path / "m", replaced(header, generator, generator.choice(ODD)), data))


NESTED = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
RAW = {
    "nothing but a length": b"\xff" * 8,
    "a length beyond the file": (2**40).to_bytes(8, "little") + b"{}",
    "a negative length": (2**63).to_bytes(8, "little") + b"{}",
    "a nested header": len(NESTED).to_bytes(8, "little") + NESTED,
    "no JSON": (4).to_bytes(8, "little") + b"abcd",
    "not UTF-8": (4).to_bytes(8, "little") + b"\xff\xfe{}",
}


@pytest.mark.parametrize("kind", RAW)
def test_no_bytes_are_more_than_a_sentence(kind, tmp_path):
    (tmp_path / "m").write_bytes(RAW[kind])
    assert not read(tmp_path / "m")


HUGE = {
    "nested task": ("task", None, "nested"),
    "patch": ("task", {"patch_size": [2**20] * 3}, "patch_size"),
    "patch within bounds": ("task", {"patch_size": [1024] * 3}, r"memory of the network .* GiB"),
    "spacing": ("task", {"spacing": [1e-9] * 3}, "spacing"),
    "spacing of 400 digits": ("task", {"spacing": [10**400] * 3}, "spacing"),
    "channels": ("task", {"channels": [f"c{i}" for i in range(10**5)]}, "channels"),
    "strides": ("network", {"strides": [2, 10**6]}, "strides"),
    "depth": ("network", {"channels": [8] * 10**4, "strides": [1] * (10**4 - 1)}, "channels"),
    "width": ("network", {"channels": [10**5, 8, 8]}, "channels"),
    "width within bounds": ("network", {"channels": [4096, 4096, 4096]}, "expected"),
    "a patch that does not divide": ("task", {"patch_size": [17, 16, 16]}, "divisible"),
    "overlap": ("notes", {"overlap": 10**400}, "header is damaged"),
}


@pytest.mark.parametrize("kind", HUGE)
def test_absurd_numbers_end_a_command_with_one_sentence(parts, tmp_path, kind, capsys, monkeypatch):
    monkeypatch.setattr(memory, "machine_memory", lambda: 4 * memory.GIB)
    header, data = parts
    part, change, named = HUGE[kind]
    if change is None:
        meta = {**header["__metadata__"], part: "[" * 50_000 + "]" * 50_000}
        changed = {**header, "__metadata__": meta}
    else:
        changed = with_meta(header, part, lambda content: {**content, **change})
    model = write(tmp_path / "m.safetensors", changed, data)
    with pytest.raises(DataError, match=named) as raised:
        read_model(model)
    assert len(str(raised.value)) < 2000
    folder = make_sites(tmp_path / "data", {"a": (1, 1)})
    before = sorted(path.name for path in tmp_path.rglob("*"))
    code = main(
        ["evaluate", str(model), "--task", "hippocampus", "--data", str(folder / "a"), "--out", str(tmp_path / "o")]
    )
    told = capsys.readouterr().err
    assert code == 1
    assert "Traceback" not in told
    assert "m.safetensors" in "".join(told.split())
    assert sorted(path.name for path in tmp_path.rglob("*")) == before, "nothing was written"


def test_a_file_larger_than_the_memory_is_not_read(parts, tmp_path, monkeypatch):
    """A sparse file, which takes no room on the disk."""
    header, data = parts
    path = write(tmp_path / "m", header, data)
    with path.open("r+b") as file:
        file.truncate(10**7)
    monkeypatch.setattr(arrays, "check_memory", lambda what, needed, **rest: check_memory(what, needed, 10**6))
    with pytest.raises(DataError, match=r"memory of its arrays .* GiB"):
        read_model(path)


def test_the_sound_model_is_read(parts, tmp_path):
    assert read(write(Path(tmp_path / "m"), *parts))

"""Names of models and folders: equal for equal contents, in whatever file or order, and another for every change."""

import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedseg.contract.plan import parse_plan
from fedseg.files.digest import folder_digest, model_digest
from fedseg.models.model_file import read_model, write_model
from fedseg.networks.weights import get_weights
from fedseg.privacy.encryption.encrypted_model import first_id
from tiny import PLAN

WEIGHTS = {
    "b": np.array([[1.5, -2.0], [0.0, 3e-40]], np.float32),
    "a": np.array(7, np.int64),
    "empty": np.zeros((0, 3), np.float64),
}


def slow_digest(weights):
    """The same by hand: the header spelled out, the elements written one by one in the order of their indices."""
    content = b""
    for name in sorted(weights):
        value = weights[name]
        shape = ", ".join(str(length) for length in value.shape)
        content += f'["{name}", "{value.dtype}", [{shape}]]'.encode()
        for index in itertools.product(*map(range, value.shape)):
            content += value[index].tobytes()
    return hashlib.sha256(content).hexdigest()


def test_the_digest_is_the_one_computed_by_hand():
    assert model_digest(WEIGHTS) == slow_digest(WEIGHTS)
    transposed = {"w": np.arange(6, dtype=np.float32).reshape(2, 3).T}
    assert model_digest(transposed) == slow_digest(transposed), "no matter how the array lies in memory"


@given(st.lists(st.floats(width=32, allow_nan=False), max_size=6), st.text("xyz.", max_size=5))
def test_any_values_and_names(values, name):
    weights = {name: np.array(values, np.float32), "other": np.array(True)}
    assert model_digest(weights) == slow_digest(weights)


def changed(name, value):
    return {**WEIGHTS, name: value}


@pytest.mark.parametrize(
    "other",
    {
        "one bit": changed("b", np.array([[1.5, -2.0], [0.0, 2.9999e-40]], np.float32)),
        "sign of zero": changed("b", np.array([[1.5, -2.0], [-0.0, 3e-40]], np.float32)),
        "type": changed("a", np.array(7, np.int32)),
        "equal bytes of another type": changed("a", np.array(7, np.uint64)),
        "shape": changed("b", WEIGHTS["b"].reshape(4)),
        "no dimension": changed("a", np.array([7], np.int64)),
        "shape of nothing": changed("empty", np.zeros((3, 0))),
        "name": {"B" if name == "b" else name: value for name, value in WEIGHTS.items()},
        "exchanged": {**WEIGHTS, "a": WEIGHTS["b"], "b": WEIGHTS["a"]},
        "one less": {name: value for name, value in WEIGHTS.items() if name != "empty"},
        "one more": {**WEIGHTS, "c": np.zeros(())},
    }.items(),
    ids=lambda item: item[0],
)
def test_every_change_has_another_digest(other):
    assert model_digest(other[1]) != model_digest(WEIGHTS)


def test_order_and_file_do_not_matter(tmp_path):
    assert model_digest(dict(reversed(WEIGHTS.items()))) == model_digest(WEIGHTS)
    plan = parse_plan(PLAN)
    weights = get_weights(plan.network.build(1, 2, 0))
    files = [write_model(tmp_path / name, plan, weights, number) for number, name in enumerate("ab")]
    assert files[0].read_bytes() != files[1].read_bytes()
    assert {model_digest(read_model(file).weights) for file in files} == {model_digest(weights)}
    np.savez(tmp_path / "c.npz", **weights)
    assert model_digest(dict(np.load(tmp_path / "c.npz"))) == model_digest(weights)


def test_an_encrypted_run_starts_from_a_model_of_the_same_name():
    assert first_id(WEIGHTS) == model_digest(WEIGHTS)


def fill(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


FILES = {"config/plan.json": b"{}", "config/server.json": b"[1]", "custom/rule.py": b"x = 1"}


def test_a_folder_is_named_by_paths_and_contents(tmp_path):
    digest = folder_digest(fill(tmp_path / "a", FILES))
    assert folder_digest(fill(tmp_path / "b", dict(reversed(FILES.items())))) == digest
    fill(tmp_path / "b", {"custom/__pycache__/rule.pyc": b"compiled"})
    assert folder_digest(tmp_path / "b") == digest, "what Python leaves there is no part of a job"
    assert folder_digest(fill(tmp_path / "__pycache__" / "c", FILES)) == digest, "wherever the folder itself lies"


@pytest.mark.parametrize(
    "files",
    [
        {**FILES, "config/plan.json": b"{} "},
        {**FILES, "config/more.json": b""},
        {"config/plan.json": b"[1]", "config/server.json": b"{}", "custom/rule.py": b"x = 1"},
        {"custom/plan.json": b"{}", "config/server.json": b"[1]", "custom/rule.py": b"x = 1"},
        {name: FILES[name] for name in list(FILES)[:2]},
    ],
)
def test_another_folder_has_another_name(tmp_path, files):
    assert folder_digest(fill(tmp_path / "a", FILES)) != folder_digest(fill(tmp_path / "b", files))

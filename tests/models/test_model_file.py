import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

import fedseg
from fedseg.contract.plan import parse_plan
from fedseg.errors import ConfigurationError, DataError
from fedseg.models.model_file import model_header, read_model, write_model
from fedseg.networks.weights import get_weights
from tiny import PLAN

plan = parse_plan(PLAN)
weights = get_weights(plan.network.build(1, 2, 0))


def test_a_model_explains_itself(tmp_path):
    model = read_model(write_model(tmp_path / "m.safetensors", plan, weights, 4))
    assert (model.task, model.network, model.notes["round"]) == (plan.task, plan.network, 4)
    for name, value in get_weights(model.build()).items():
        np.testing.assert_array_equal(value, weights[name])


def test_equal_models_are_equal_bytes(tmp_path):
    a, b = (write_model(tmp_path / name, plan, weights, 1).read_bytes() for name in "ab")
    assert a == b


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a pickled model", b"\xff" * 64])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(DataError, match="not a model"):
        read_model(tmp_path / "m")


def test_a_missing_model_and_one_of_another_program_are_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_model(tmp_path / "none")
    save_file({"w": np.zeros(2)}, tmp_path / "other")
    with pytest.raises(DataError, match="not a model of fedseg"):
        read_model(tmp_path / "other")


@pytest.mark.parametrize(
    "change",
    [
        {"task": None},
        {"task": "[1, 2]"},
        {"task": '"no such task"'},
        {"network": "{"},
        {"notes": "{}"},
        {"notes": '{"overlap": 1.5}'},
        {"notes": "7"},
    ],
)
def test_a_damaged_header_is_told_in_a_sentence(tmp_path, change):
    header = {"format": "fedseg-model-1", **model_header(plan, 0), **change}
    save_file(weights, tmp_path / "m", {name: text for name, text in header.items() if text is not None})
    with pytest.raises(DataError, match=r"m: |header is damaged"):
        read_model(tmp_path / "m")


def test_a_number_type_that_is_not_known_is_told_in_a_sentence(tmp_path):
    save_torch({"w": torch.zeros(2, dtype=torch.bfloat16)}, tmp_path / "m")
    with pytest.raises(DataError, match="not a model"):
        read_model(tmp_path / "m")


def test_weights_that_do_not_fit_their_network_are_refused(tmp_path):
    fewer = dict(list(weights.items())[1:])
    with pytest.raises(DataError, match="missing"):
        read_model(write_model(tmp_path / "m", plan, fewer, 0))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": "1"}, "seed"),
        ({"surprise": 1}, "surprise"),
        ({"task": {**PLAN["task"], "patch_size": [18, 16, 16]}}, "patch_size"),
        ({"task": {**PLAN["task"], "patch_size": [4, 4, 4]}}, "single voxel"),
        ({"task": None}, "task"),
    ],
)
def test_a_wrong_plan_is_refused_by_name(change, named):
    with pytest.raises(ConfigurationError, match=named):
        parse_plan({**PLAN, **change})


def test_the_digest_covers_every_setting():
    other = parse_plan({**PLAN, "training": {**PLAN["training"], "overlap": 0.3}})
    assert other.digest != plan.digest
    assert parse_plan(plan.to_dict()).digest == plan.digest


def test_nothing_that_is_read_can_bring_code_along():
    """Pickles run what they hold: every reader of tensors reads safetensors, or asks for weights only."""
    found = []
    for path in Path(fedseg.__file__).parent.rglob("*.py"):
        for call in (node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)):
            name, options = ast.unparse(call.func), {k.arg: ast.unparse(k.value) for k in call.keywords}
            unsafe = name in ("pickle.load", "pickle.loads", "pickle.Unpickler") or "allow_pickle" in options
            if name == "torch.load":
                found.append((path.name, options.get("weights_only")))
            assert not unsafe, f"{path}: {ast.unparse(call)}"
    assert sorted(found) == [("cache.py", "True"), ("foreign_weights.py", "True"), ("state.py", "True")]

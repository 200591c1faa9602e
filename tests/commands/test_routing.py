"""``--route`` of ``evaluate`` and ``predict``: an outside site with the models of others, and no label."""

import json

import numpy as np
import pytest

from fedseg.cli import main
from fedseg.contract.plan import parse_plan
from fedseg.files.digest import model_digest
from fedseg.models.model_file import read_model, write_model
from fedseg.networks.weights import get_weights
from tiny import PLAN, TASK, make_model_and_site


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a model, two further ones of the same network, and a site."""
    monkeypatch.chdir(tmp_path)
    make_model_and_site(tmp_path)
    for seed, name in ((5, "one"), (6, "two")):
        other = get_weights(parse_plan({**PLAN, "seed": seed}).build_network())
        write_model(tmp_path / f"{name}.safetensors", parse_plan(PLAN), other, 4)
    return tmp_path


def use(command, *more, model="model.safetensors", out="out"):
    return main([command, model, "--task", "task.json", "--data", "a", "--out", out, *more])


def masks(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.nii.gz")}


def test_it_says_what_was_mixed_and_by_how_much(folder, capsys):
    assert use("predict", "--route", "one.safetensors", "two.safetensors", "--route-epochs", "2") == 0
    content = json.loads((folder / "out" / "routing.json").read_text())
    files = ["model.safetensors", "one.safetensors", "two.safetensors"]
    assert [each["file"] for each in content["models"]] == files
    assert [each["digest"] for each in content["models"]] == [model_digest(read_model(file).weights) for file in files]
    assert sum(each["share"] for each in content["models"]) == pytest.approx(1, abs=1e-5)
    assert len(content["losses"]) == 2
    assert len(masks(folder / "out")) == 5
    assert "routed among 3 model(s), mean gates: model.safetensors 0." in capsys.readouterr().out


def test_equal_gates_are_the_mean_model(folder):
    weights = [read_model(f"{name}.safetensors").weights for name in ("model", "one", "two")]
    mean = {
        n: np.mean([w[n] for w in weights], axis=0, dtype=np.float64).astype(weights[0][n].dtype) for n in weights[0]
    }
    write_model(folder / "mean.safetensors", parse_plan(PLAN), mean, 4)
    assert use("evaluate", "--route", "one.safetensors", "two.safetensors", "--route-epochs", "0") == 0
    assert use("evaluate", model="mean.safetensors", out="mean") == 0
    found, expected = (json.loads((folder / out / "evaluation.json").read_text()) for out in ("out", "mean"))
    for one, other in zip(found["cases"], expected["cases"], strict=True):
        assert one["dice"] == pytest.approx(other["dice"], abs=0.01)


def test_the_model_itself_is_counted_once_and_stays_itself(folder):
    (folder / "same.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    assert use("predict") == 0
    alone = masks(folder / "out")
    assert use("predict", "--route", "same.safetensors", "model.safetensors", out="routed") == 0
    assert masks(folder / "routed") == alone
    (model,) = json.loads((folder / "routed" / "routing.json").read_text())["models"]
    assert (model["file"], model["share"]) == ("model.safetensors", 1.0)


def test_the_same_command_gives_the_same_masks(folder):
    for out in ("first", "second"):
        assert use("predict", "--route", "one.safetensors", "--route-epochs", "1", out=out) == 0
    assert masks(folder / "first") == masks(folder / "second") != {}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--route", "other.safetensors"], "--route other.safetensors is of another task or network than the model"),
        (["--route", "gone.safetensors"], "The model gone.safetensors does not exist"),
        (["--route", "global.safetensors"], "lacks 1 arrays that each site has for itself"),
        (["--route", "one.safetensors", "--route-epochs", "-1"], "--route.epochs is -1"),
        (["--route-epochs", "2"], "--route-epochs needs --route"),
    ],
)
def test_what_cannot_be_mixed_is_refused(folder, capsys, more, said):
    small = parse_plan({**PLAN, "network": {**PLAN["network"], "res_units": 2}})
    write_model(folder / "other.safetensors", small, get_weights(small.build_network()), 1)
    weights = get_weights(parse_plan(PLAN).build_network())
    write_model(folder / "global.safetensors", parse_plan(PLAN), weights, 1, own_arrays=[next(iter(weights))])
    assert use("predict", *more) in (1, 2)
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (folder / "out").exists()


def test_a_result_never_takes_the_place_of_a_model(folder, capsys):
    (folder / "one.safetensors").rename(folder / "routing.json")
    assert use("predict", "--route", "routing.json", out=".") == 2
    assert "is a file that this command reads" in " ".join(capsys.readouterr().err.split())


def test_a_task_with_several_label_conventions_is_the_same_task(folder):
    """``evaluate`` narrows the model's task to the convention of the labels at hand."""
    declared = {name: value for name, value in TASK.items() if name != "labels"} | {
        "classes": ["inner", "outer"],
        "conventions": {"here": {"inner": 1, "outer": 2}, "elsewhere": {"inner": 4, "outer": 5}},
    }
    plan = parse_plan({**PLAN, "task": declared})
    for seed, name in ((5, "model"), (6, "one")):
        weights = get_weights(parse_plan({**PLAN, "seed": seed}).build_network())
        write_model(folder / f"{name}.safetensors", plan, weights, 4)
    (folder / "task.json").write_text(json.dumps(declared))
    assert use("evaluate", "--route", "one.safetensors", "--route-epochs", "0") == 0

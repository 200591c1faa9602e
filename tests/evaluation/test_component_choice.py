"""Rules for connected parts: chosen on cubes whose Dice is known by hand, stated, and applied by both commands."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch

import fedseg.evaluation.component_choice as choice_module
from fedseg.cli import main
from fedseg.contract.plan import parse_plan
from fedseg.data.datalist import read_datalist
from fedseg.errors import DataError
from fedseg.evaluation.component_choice import choose_components, with_components
from fedseg.evaluation.scoring import Predictor
from fedseg.files.digest import model_digest
from fedseg.models.model_file import read_model, write_model
from fedseg.networks.weights import get_weights
from fedseg.tasks.segmentation.components import keep_components
from fedseg.tasks.task import parse_task
from tiny import EXCLUSIVE, PLAN, TASK, make_model_and_site


def boxes(*parts, size=16):
    label = np.zeros((size,) * 3, np.uint8)
    for value, start, edge in parts:
        label[start : start + edge, start : start + edge, start : start + edge] = value
    return label


def chosen(monkeypatch, tmp_path, task, pairs, volumes=(0.01, 0.1)):
    """The choice where the network decides what the first of each pair says, and the second is the reference."""
    task = parse_task(task)
    monkeypatch.setattr(
        choice_module, "_judged", lambda *_: [choice_module._Judged(p, r, (1.0, 1.0, 1.0), None) for p, r in pairs]
    )
    model = read_model(make_model_and_site(tmp_path) / "model.safetensors")
    return choose_components(Predictor(choice_module.replace(model, task=task)), [], volumes)


ONE = {**EXCLUSIVE, "labels": {"only": 1}, "sampling": {}}


def test_a_false_island_makes_the_largest_part_the_rule(monkeypatch, tmp_path):
    truth = boxes((1, 1, 4))
    found = chosen(monkeypatch, tmp_path, ONE, [(boxes((1, 1, 4), (1, 10, 2)), truth)])
    assert found["rules"] == {"only": "largest"}
    assert found["without"] == pytest.approx(2 * 64 / (64 + 72))
    # 64 mm^3 are 0.064 ml: 0.01 ml removes the island of 0.008 ml too, and 0.1 ml removes everything.
    assert found["tried"]["only"] == pytest.approx({"none": 128 / 136, "largest": 1, "0.01 ml": 1, "0.1 ml": 0})
    assert found["with"] == 1


def test_two_lesions_need_a_volume(monkeypatch, tmp_path):
    truth = boxes((1, 1, 4), (1, 7, 3))
    found = chosen(monkeypatch, tmp_path, ONE, [(boxes((1, 1, 4), (1, 7, 3), (1, 13, 2)), truth)])
    assert found["rules"] == {"only": 0.01}
    assert found["tried"]["only"]["largest"] == pytest.approx(128 / (91 + 64))


def test_a_rule_that_helps_nobody_is_not_chosen(monkeypatch, tmp_path):
    truth = boxes((1, 1, 4))
    found = chosen(monkeypatch, tmp_path, ONE, [(truth, truth)])
    assert (found["rules"], found["without"], found["with"]) == ({}, 1, 1)


def test_each_region_has_its_own_rule_and_it_is_the_mean_over_cases_that_counts(monkeypatch, tmp_path):
    truth = boxes((1, 1, 4), (2, 7, 3))
    islands = boxes((1, 1, 4), (2, 7, 3), (2, 12, 2))
    found = chosen(monkeypatch, tmp_path, EXCLUSIVE, [(islands, truth), (truth, truth)])
    assert set(found["rules"]) == {"foreground"}
    both = boxes((2, 1, 4), (2, 7, 3))
    harmed = chosen(monkeypatch, tmp_path, EXCLUSIVE, [(both, both), (islands, truth)], volumes=(0.0001,))
    assert harmed["rules"] == {"inner": "largest"} or "outer" not in harmed["rules"]
    assert harmed["with"] >= harmed["without"]


def test_no_rule_chosen_earlier_is_worse_than_none_in_the_end(monkeypatch, tmp_path):
    draw = np.random.default_rng(0)
    pairs = [
        (draw.choice([0, 0, 0, 1, 2], size=(10,) * 3).astype(np.uint8), boxes((2, 1, 6), (1, 3, 2), size=10))
        for _ in range(3)
    ]
    found = chosen(monkeypatch, tmp_path, TASK, pairs, volumes=(0.002, 0.005))
    task = choice_module.replace(parse_task(TASK), components=found["rules"])
    slow = []
    for predicted, reference in pairs:
        kept = keep_components(task, predicted, (1.0, 1.0, 1.0))
        for values in ((1,), (1, 2)):
            a, b = np.isin(kept, values), np.isin(reference, values)
            slow.append(2 * (a & b).sum() / (a.sum() + b.sum()))
    assert found["with"] == pytest.approx(np.mean(slow))
    assert found["with"] > found["without"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make_model_and_site(tmp_path)


def use(command, *more, out="out"):
    return main([command, "model.safetensors", "--task", "task.json", "--data", "a", "--out", out, *more])


def test_rules_of_a_file_are_applied_by_both_commands_and_stated(folder, capsys):
    assert use("choose-components", out="rules.json") == 0
    content = json.loads((folder / "rules.json").read_text())
    assert (content["schema"], content["cases"]) == ("fedseg-components-1", 2)
    assert content["model"]["digest"] == model_digest(read_model("model.safetensors").weights)
    assert content["data"]["split"] == "validation"
    assert list(content["tried"]) == ["foreground", "whole", "inner"]
    content["rules"] = {"inner": 1000.0}
    (folder / "rules.json").write_text(json.dumps(content))
    assert use("predict", "--split", "test", out="plain") == 0
    assert use("predict", "--split", "test", "--components", "rules.json", out="kept") == 0
    assert "parts kept: inner 1000.0 (rules.json)" in " ".join(capsys.readouterr().out.split())
    plain, kept = (np.asarray(nib.load(next((folder / n).glob("*.nii.gz"))).dataobj) for n in ("plain", "kept"))
    task = choice_module.replace(parse_task(TASK), components={"inner": 1000.0})
    np.testing.assert_array_equal(kept, keep_components(task, plain, (1.0, 1.0, 1.0)))
    assert not np.array_equal(plain, kept), "no region of 8 ml has parts of a litre"
    assert use("evaluate", "--components", "rules.json") == 0
    told = json.loads((folder / "out" / "evaluation.json").read_text())["components"]
    assert told["rules"] == {"inner": 1000.0}
    assert told["chosen_on"]["data"]["split"] == "validation"
    assert "expect less" not in capsys.readouterr().err
    assert use("evaluate", "--components", "rules.json", "--split", "validation") == 0
    assert "expect less" in " ".join(capsys.readouterr().err.split())
    assert use("evaluate", out="plain-scores") == 0
    assert json.loads((folder / "plain-scores" / "evaluation.json").read_text())["components"]["rules"] == {}


def test_rules_of_another_model_and_broken_files_are_refused(folder):
    assert use("choose-components", out="rules.json") == 0
    model = read_model("model.safetensors")
    with pytest.raises(DataError, match="another model"):
        with_components(model, "other", folder / "rules.json")
    with pytest.raises(DataError, match="chosen without --adapt-statistics"):
        with_components(model, model_digest(model.weights), folder / "rules.json", adapted=True)
    content = json.loads((folder / "rules.json").read_text())
    for rules, why in (({"liver": "largest"}, "liver"), ({"whole": -1}, "whole"), ([], "rules")):
        (folder / "rules.json").write_text(json.dumps({**content, "rules": rules}))
        with pytest.raises(DataError, match=why):
            with_components(model, model_digest(model.weights), folder / "rules.json")
    (folder / "rules.json").write_text("{}")
    with pytest.raises(DataError, match="no choice of components"):
        with_components(model, model_digest(model.weights), folder / "rules.json")


def test_statistics_are_adapted_on_request_and_refused_by_name_without_any(folder, capsys):
    assert use("evaluate", "--adapt-statistics") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "the network residual_unet of this model has instance normalisation" in said
    plan = parse_plan({**PLAN, "network": {**PLAN["network"], "norm": "batch"}})
    torch.manual_seed(0)
    write_model(folder / "model.safetensors", plan, get_weights(plan.build_network()), 4)
    found = []
    for name, more in (("plain", []), ("adapted", ["--adapt-statistics"])):
        assert use("evaluate", *more, "--pictures", out=name) == 0
        assert use("predict", *more, "--split", "test", out=f"{name}-masks") == 0
        content = json.loads((folder / name / "evaluation.json").read_text())
        assert content["adapted_statistics"] == bool(more)
        found.append(content["mean"]["dice"])
        mask = nib.load(next((folder / f"{name}-masks").glob("*.nii.gz"))).get_fdata()
        picture = nib.load(folder / name / "overlays" / "best.nii.gz").get_fdata()
        np.testing.assert_array_equal(mask, picture)
    assert found[0] != found[1]


def test_a_choice_on_training_cases_is_warned_of(folder, capsys):
    assert use("choose-components", "--split", "training", "--volumes", "1", out="rules.json") == 0
    assert "choose on validation" in " ".join(capsys.readouterr().err.split())


def test_volumes_that_cannot_be_are_refused(folder, capsys):
    assert use("choose-components", "--volumes", "0,1", out="rules.json") == 2
    assert "--volumes (0.0, 1.0)" in capsys.readouterr().err
    assert read_datalist(folder / "a").validation

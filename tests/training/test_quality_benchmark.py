"""The benchmark of training quality: its time, its opponent's batches and predictions, and who is chosen on what."""

import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import nnunet_recipe
import training_quality

from fedseg.contract.plan import parse_plan
from fedseg.data.datalist import Case, Datalist, read_datalist
from fedseg.errors import AbortedError
from fedseg.jobs.job import read_job
from fedseg.networks.weights import get_weights
from fedseg.training.trainer import SiteTrainer, TrainerSetup
from tiny import PLAN, make_sites


def test_a_training_ends_with_its_time_and_its_rate_has_gone_through_its_course(tmp_path, monkeypatch):
    datalist = read_datalist(make_sites(tmp_path, {"a": (3, 1)}) / "a")
    plan = parse_plan({**PLAN, "training": {**PLAN["training"], "local_epochs": 50, "schedule": "polynomial"}})
    clock, rates = training_quality.ProcessorTime(8.0), []
    monkeypatch.setattr(training_quality.ProcessorTime, "spent", property(lambda self: float(self.steps)))
    watch = type("Watch", (training_quality.TrainingHook,), {})()
    watch.after_step = lambda training: rates.append(training.optimizer.param_groups[0]["lr"])
    trainer = SiteTrainer(plan, "a", datalist, TrainerSetup(hooks=(clock, watch), aborted=clock.over))
    with pytest.raises(AbortedError):
        trainer.train_round(get_weights(trainer.network), 0, 1)
    assert clock.steps == 8
    np.testing.assert_allclose(rates, [plan.training.learning_rate * (1 - step / 8) ** 0.9 for step in range(8)])


def test_the_last_third_of_a_batch_has_foreground_in_its_centre():
    label = torch.zeros(1, 60, 80, 60)
    label[:, 30, 40, 30] = 1
    cases = [{"image": label.clone(), "label": label}]
    for batch, forced in ((2, 1), (3, 1), (9, 3)):
        batches = nnunet_recipe.Batches(cases, nnunet_recipe.Recipe(batch=batch), seed=0)
        batches.change = lambda patch: patch
        drawn = [batches.draw()["label"] for _ in range(4)]
        centres = [[patch[0, 20, 28, 20] == 1 for patch in patches] for patches in drawn]
        assert all(all(row[-forced:]) for row in centres)
        assert not all(all(row) for row in centres), "the others lie anywhere"


def test_a_prediction_is_the_mean_over_all_mirror_images(tmp_path):
    torch.manual_seed(0)
    network = nnunet_recipe.network_of(2).eval()
    values = np.random.default_rng(0).normal(size=nnunet_recipe.PATCH).astype(np.float32)
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "image.nii.gz")
    image = torch.from_numpy((values - values.mean()) / values.std())[None, None]
    total = torch.zeros(1, 3, *nnunet_recipe.PATCH)
    with torch.inference_mode():
        for axes in [chosen for count in range(4) for chosen in combinations((2, 3, 4), count)]:
            total += network(image.flip(axes)).softmax(1).flip(axes)
    got = nnunet_recipe.predictor(network, mirrored=True)(tmp_path / "image.nii.gz")
    assert (got == total[0].argmax(0).numpy()).mean() > 0.999, "equal but where two classes are as likely"
    alone = nnunet_recipe.predictor(network, mirrored=False)(tmp_path / "image.nii.gz")
    assert (got != alone).mean() > 0.01


def test_the_search_sees_no_test_case(tmp_path):
    case = Case((tmp_path / "image.nii.gz",), tmp_path / "label.nii.gz", "")
    training = tuple(replace(case, patient=f"p{number}") for number in range(40))
    found = training_quality.watched(Datalist(training, (), (replace(case, patient="test"),)))
    assert (found.training, found.test) == (training[:38], training[38:])


def test_nnunets_settings_are_those_of_its_job_without_what_only_spares_memory():
    plan, plain = (training_quality.built_in(arm, 3) for arm in (training_quality.BUILT_IN_NNUNET, "fedseg"))
    job = read_job(training_quality.JOBS / "brats_nnunet_recipe").plan
    assert (plan.training.activation_checkpointing, job.training.activation_checkpointing) == (False, True)
    assert plan.training.to_dict() == {
        **job.training.to_dict(), "activation_checkpointing": False, "local_epochs": 100_000
    }  # fmt: skip
    assert (plan.task.name, plan.task.mirrored, plain.task.mirrored) == ("hippocampus", True, False)
    assert replace(plan.task, mirrored=False) == plain.task
    assert plan.seed == plain.seed == 3


@pytest.mark.parametrize("mirrored", [True, False])
def test_every_recipe_predicts_as_it_trained_also_in_the_search(tmp_path, monkeypatch, mirrored):
    told = []
    dice = {"mean": 0.5}
    monkeypatch.setattr(training_quality, "load_cases", lambda images, labels: [])
    monkeypatch.setattr(training_quality, "train", lambda cases, recipe, seed, seconds: (None, 1))
    monkeypatch.setattr(training_quality, "predictor", lambda network, mirrored: told.append(mirrored))
    monkeypatch.setattr(training_quality, "score", lambda kind, cases, predict: dice)
    recipe = nnunet_recipe.Recipe(mirrored=mirrored)
    case = Case((tmp_path / "image.nii.gz",), tmp_path / "label.nii.gz", "")
    training_quality.search(Datalist((case, case), (), ()), (recipe,), 7.0, tmp_path)
    training_quality.run(training_quality.RECIPE, recipe, Datalist((case,), (), (case,)), 0, 14.0, tmp_path)
    assert told == [mirrored, mirrored]
    results = training_quality.load(tmp_path)
    for result in results:
        result["dice"] |= {"anterior": 0.5, "posterior": 0.5}
    assert "Each trial of the search trained for 7 s." in training_quality.table(results)


def test_a_kept_run_of_another_plan_is_made_anew(tmp_path, monkeypatch):
    made, cases = [], Datalist((), (), ())

    def train_built_in(plan, cases, seconds):
        made.append(plan.digest)
        return {"steps": 1, "dice": {"mean": 0.5}}

    monkeypatch.setattr(training_quality, "train_built_in", train_built_in)
    for _ in range(2):
        training_quality.run("fedseg", None, cases, 0, 1.0, tmp_path)
    assert len(made) == 1
    other = training_quality.built_in("fedseg", 1)
    monkeypatch.setattr(training_quality, "built_in", lambda arm, seed: other)
    assert training_quality.run("fedseg", None, cases, 0, 1.0, tmp_path)["plan"] == other.digest
    assert len(made) == 2
    assert len(training_quality.load(tmp_path)) == 1

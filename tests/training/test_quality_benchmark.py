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

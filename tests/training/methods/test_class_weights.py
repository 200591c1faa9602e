import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedseg.cli import main
from fedseg.data.datalist import read_datalist
from fedseg.errors import RefusalError
from fedseg.jobs.job import read_job
from fedseg.models.model_file import read_model
from fedseg.tasks.registry import get_task, resolve_task
from fedseg.tasks.segmentation.losses import SegmentationLoss
from fedseg.training.methods.class_weights import ClassWeights, inverse_frequencies, weights_from_totals
from fedseg.training.trainer import SiteTrainer, TrainerSetup
from hooked import assert_differ, assert_same, check_seeded_and_restarted, make_trainer, plain_rounds, start_of
from tiny import PLAN, TASK, make_image, make_sites

EXCLUSIVE = {**TASK, "regions": {"inner": ["inner"], "outer": ["outer"]}}
SKEWED = {"voxels": 1000.0, "voxels/inner": 10.0, "voxels/whole": 40.0}
EQUAL = {"voxels": 1000.0, "voxels/inner": 500.0, "voxels/whole": 500.0}


@pytest.fixture(scope="module")
def datalist(tmp_path_factory):
    return read_datalist(make_sites(tmp_path_factory.mktemp("data"), {"a": (4, 1)}) / "a")


# ---------------------------------------------------------------- weights


def test_weights_by_hand():
    # 1/8, 1/2, 1/2 in proportion: mean 3/8, so 1/3, 4/3, 4/3
    assert inverse_frequencies(torch.tensor([8.0, 2.0, 2.0])).tolist() == pytest.approx([1 / 3, 4 / 3, 4 / 3])


@given(st.lists(st.integers(1, 10**10), min_size=1, max_size=6))
def test_weights_have_mean_one_and_balance_the_classes(counts):
    weights = inverse_frequencies(torch.tensor(counts, dtype=torch.float64))
    assert float(weights.mean()) == pytest.approx(1)
    shares = weights.numpy() * np.array(counts)
    np.testing.assert_allclose(shares, shares[0], rtol=1e-9)


@pytest.mark.parametrize("count", [1.0, 7.0, 1e10])
def test_equal_counts_give_exactly_one(count):
    assert inverse_frequencies(torch.full((3,), count, dtype=torch.float64)).tolist() == [1, 1, 1]


def test_a_class_without_voxels_gets_one_and_leaves_the_others_alone():
    weights = inverse_frequencies(torch.tensor([[6.0, 0.0, 2.0], [0.0, 0.0, 5.0], [0.0, 0.0, 0.0]]))
    # 1/6 and 1/2: mean 1/3, so 0.5 and 1.5
    assert weights.tolist() == [pytest.approx([0.5, 1.0, 1.5]), [1, 1, 1], [1, 1, 1]]


def test_weights_of_overlapping_and_of_exclusive_regions():
    overlapping = weights_from_totals(resolve_task(TASK), SKEWED)
    # outside, inside of 990 and 10: weights 2 * 0.01 and 2 * 0.99; of 960 and 40: 0.08 and 1.92
    assert overlapping.tolist() == [pytest.approx([0.02, 1.98]), pytest.approx([0.08, 1.92])]
    exclusive = weights_from_totals(
        resolve_task(EXCLUSIVE), {"voxels": 100.0, "voxels/inner": 10.0, "voxels/outer": 10.0}
    )
    # background 80: as 1/8 to 1 to 1
    assert exclusive.tolist() == pytest.approx([3 / 17, 24 / 17, 24 / 17])


@pytest.mark.parametrize(
    "totals",
    [
        {},
        {"voxels": 10.0},
        {**SKEWED, "voxels/inner": -1.0},
        {**SKEWED, "voxels/inner": 2e3},
        {**SKEWED, "voxels": float("nan")},
        {**SKEWED, "voxels/whole": "40"},
    ],
)
def test_sums_that_cannot_be_are_refused(totals):
    with pytest.raises(RefusalError, match="sums of voxels per region") as error:
        weights_from_totals(resolve_task(TASK), totals)
    assert error.value.reason == "report"


# ------------------------------------------------------------------- loss


def test_weighted_loss_of_exclusive_regions_by_hand():
    task = get_task("hippocampus")
    logits = torch.zeros(1, 3, 1, 1, 4)
    logits[0, 0, 0, 0, 0] = math.log(2.0)  # the first voxel: probabilities 1/2, 1/4, 1/4
    classes = torch.tensor([0, 0, 1, 2]).reshape(1, 1, 1, 1, 4)
    plain = SegmentationLoss(task)
    weighted = SegmentationLoss(task, class_weights=torch.tensor([1.0, 3.0, 5.0]))
    # entropies log 2, log 3, log 3, log 3 with the weights 1, 1, 3, 5
    entropy = (math.log(2) + 9 * math.log(3)) / 10
    unweighted = (math.log(2) + 3 * math.log(3)) / 4
    difference = float(weighted(logits, classes) - plain(logits, classes))
    assert difference == pytest.approx(entropy - unweighted, abs=1e-6)


def test_weighted_loss_of_overlapping_regions_by_a_slow_loop():
    task = resolve_task(TASK)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 2, 3, 4, 5, generator=generator)
    classes = torch.randint(0, 3, (2, 1, 3, 4, 5), generator=generator)
    table = torch.tensor([[0.5, 1.5], [0.1, 1.9]])
    per_region, plain_per_region = [], []
    for region, members in enumerate(([1], [1, 2])):  # inner, whole
        total = weight_sum = plain = 0.0
        for value, logit in zip(classes.flatten().tolist(), logits[:, region].flatten().tolist(), strict=True):
            inside = value in members
            entropy = math.log(1 + math.exp(-logit if inside else logit))
            weight = float(table[region, int(inside)])
            total, weight_sum, plain = total + weight * entropy, weight_sum + weight, plain + entropy
        per_region.append(total / weight_sum)
        plain_per_region.append(plain / classes.numel())
    difference = float(
        SegmentationLoss(task, class_weights=table)(logits, classes) - SegmentationLoss(task)(logits, classes)
    )
    assert difference == pytest.approx(np.mean(per_region) - np.mean(plain_per_region), abs=1e-6)


@pytest.mark.parametrize("task", [TASK, EXCLUSIVE], ids=["overlapping", "exclusive"])
def test_weights_of_one_are_no_weights(task):
    task = resolve_task(task)
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, task.output_channels, 4, 4, 4, generator=generator)
    classes = torch.randint(0, 3, (2, 1, 4, 4, 4), generator=generator)
    ones = torch.ones(3) if task.exclusive else torch.ones(2, 2)
    expected = float(SegmentationLoss(task)(logits, classes))
    assert float(SegmentationLoss(task, class_weights=ones)(logits, classes)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("task", [TASK, EXCLUSIVE], ids=["overlapping", "exclusive"])
def test_a_patch_of_background_has_a_finite_loss_where_a_class_is_nowhere(task):
    task = resolve_task(task)
    weights = weights_from_totals(task, {"voxels": 1e10, **{f"voxels/{r}": 0.0 for r in task.region_names}})
    loss = SegmentationLoss(task, class_weights=weights)
    assert math.isfinite(float(loss(torch.zeros(1, task.output_channels, 2, 2, 2), torch.zeros(1, 1, 2, 2, 2))))


# ---------------------------------------------------------------- the hook


def test_the_counts_are_those_of_the_training_cases(datalist):
    labels = [make_image(i)[1] for i in range(4)]  # the seeds of `make_sites`; 20^3 voxels, no padding to 16^3
    expected = {
        "voxels": 4 * 20**3,
        "voxels/inner": sum(int((label == 1).sum()) for label in labels),
        "voxels/whole": sum(int((label > 0).sum()) for label in labels),
    }
    assert make_trainer(datalist, [ClassWeights()]).statistics() == expected
    # Images of 20 voxels a side in patches of 32: what fills the patch is no background of theirs.
    padded = {**TASK, "patch_size": [32, 32, 32]}
    assert make_trainer(datalist, [ClassWeights()], task=padded).statistics() == expected


@pytest.mark.parametrize("task", [TASK, EXCLUSIVE], ids=["overlapping", "exclusive"])
def test_equal_classes_are_plain_training_to_the_last_bit(datalist, task):
    names = resolve_task(task).region_names
    share = 1 / 2 if task is TASK else 1 / 3
    totals = {"voxels": 600.0, **{f"voxels/{name}": 600 * share for name in names}}
    trainer = make_trainer(datalist, [ClassWeights()], task=task)
    start = start_of(trainer)
    weighted = trainer.train_round(start, 0, 1, totals=totals).update
    assert trainer.loss.class_weights is None  # a weighted mean with ones would add up in another order
    assert_same(weighted, make_trainer(datalist, task=task).train_round(start, 0, 1).update)


def test_training_is_seeded_and_survives_a_restart(datalist, tmp_path):
    weights = check_seeded_and_restarted(datalist, ClassWeights, tmp_path / "1", lambda number: {"totals": SKEWED})
    assert_differ(weights, plain_rounds(datalist))
    equal = check_seeded_and_restarted(datalist, ClassWeights, tmp_path / "2", lambda number: {"totals": EQUAL})
    assert_same(equal, plain_rounds(datalist))


def test_scores_stay_comparable(datalist):
    trainer = make_trainer(datalist, [ClassWeights()])
    start = start_of(trainer)
    before = [case.loss for case in trainer.validate(start)]
    trainer.train_round(start, 0, 1, totals=SKEWED)
    assert [case.loss for case in trainer.validate(start)] == before


def test_a_server_that_sums_nothing_is_refused(datalist):
    trainer = make_trainer(datalist, [ClassWeights()])
    with pytest.raises(RefusalError, match="sums of voxels"):
        trainer.train_round(start_of(trainer), 0, 1)


# ---------------------------------------------------------------- fine-tuning


def test_a_site_goes_on_for_itself_with_the_weights_of_the_run_also_when_its_process_is_new(datalist):
    """As the only round of a job with the same weights would, whatever this process has trained before."""
    trained = make_trainer(datalist, [ClassWeights()])
    last = trained.train_round(start_of(trained), 0, 2, totals=SKEWED).weights
    tuned = trained.fine_tuned(last, 1, SKEWED)
    assert_same(make_trainer(datalist, [ClassWeights()]).fine_tuned(last, 1, SKEWED), tuned)
    assert_same(make_trainer(datalist, [ClassWeights()]).train_round(last, 0, 1, totals=SKEWED).weights, tuned)
    assert_differ(make_trainer(datalist).fine_tuned(last, 1), tuned)


def test_without_the_sums_nobody_fine_tunes_with_another_loss(datalist):
    trained = make_trainer(datalist, [ClassWeights()])
    with pytest.raises(RefusalError, match="sums of voxels per region"):
        trained.fine_tuned(start_of(trained), 1)


def test_the_server_sends_the_sums_with_the_last_model(tmp_path, capsys):
    """What a site of a run has made is what a trainer that never saw a round makes of the run's last model."""
    data, out = make_sites(tmp_path / "data", {"a": (3, 1), "b": (2, 1)}), tmp_path / "out"
    job = read_job(Path(__file__).parents[3] / "jobs" / "hippocampus_class_weights")
    for key in ("task", "network"):
        job.set(key, PLAN[key])
    job.set("workflow.fine_tune", 1)
    options = ["--data", str(data), "--out", str(out), "--in-process", "--no-probe", "--rounds", "1"]
    assert main(["simulate", str(job.write(tmp_path / "job")), *options]) == 0
    capsys.readouterr()
    datalists = {site: read_datalist(data / site) for site in ("a", "b")}
    fresh = {s: SiteTrainer(job.plan, s, d, TrainerSetup(hooks=[ClassWeights()])) for s, d in datalists.items()}
    totals = Counter()
    for trainer in fresh.values():
        totals.update(trainer.statistics())
    final = json.loads((out / "report" / "summary.json").read_text("utf-8"))["final"]
    last = read_model(out / "models" / "last.safetensors").weights
    for site, trainer in fresh.items():
        found = read_model(out / final["site_models"][site]["fine_tuned"]).weights
        assert_same(found, trainer.fine_tuned(last, 1, totals))
        assert_differ(found, SiteTrainer(job.plan, site, datalists[site]).fine_tuned(last, 1))

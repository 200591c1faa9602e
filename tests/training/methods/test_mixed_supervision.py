"""FedMix and self-training: the limits in which they are plain training, who learns from whom, and what is reported."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedseg.contract.plan import parse_plan
from fedseg.contract.round_settings import RoundSettings
from fedseg.data.datalist import read_datalist
from fedseg.data.supervision import Supervision
from fedseg.data.weak_labels import WeakLabels, weakened
from fedseg.errors import ConfigurationError
from fedseg.jobs.job import read_job
from fedseg.networks.parts.second_network import second_network
from fedseg.networks.weights import get_weights
from fedseg.simulation.in_process import InProcessFederation
from fedseg.tasks.segmentation.labels import to_regions
from fedseg.training.methods.mixed_supervision import MixedSupervision
from fedseg.training.methods.self_training import SelfTraining
from fedseg.training.pseudo_labels import PseudoLabel, TaughtCases
from fedseg.training.site_round import site_round
from fedseg.training.trainer import SiteTrainer, TrainerSetup
from tiny import EXCLUSIVE, PLAN, TASK, make_sites

PARTS = {"parts": [{"name": "second_network"}]}
TWO = {**PLAN, "network": {**PLAN["network"], **PARTS}}
SECOND = "parts.second_network."


@pytest.fixture(scope="module")
def alpha(tmp_path_factory):
    return read_datalist(make_sites(tmp_path_factory.mktemp("mixed"), {"alpha": (5, 1)}) / "alpha")


def weak(datalist, kind, share=0.6):
    return weakened(WeakLabels({"": kind}, share), parse_plan(PLAN).task, {"alpha": datalist}, 0)["alpha"]


def trainer_of(plan, datalist, *hooks):
    return SiteTrainer(parse_plan(plan), "alpha", datalist, TrainerSetup(hooks=hooks))


def start(plan):
    return get_weights(parse_plan(plan).build_network())


def rounds(trainer, weights, count=3):
    reports = []
    for number in range(count):
        update, report = site_round(trainer, weights, number, count)
        weights = {name: value + update.get(name, 0) for name, value in weights.items()}
        reports.append(report)
    return weights, reports


@pytest.mark.parametrize("task", [TASK, EXCLUSIVE], ids=["nested", "apart"])
@pytest.mark.parametrize("method", [MixedSupervision, SelfTraining])
def test_where_all_voxels_are_labelled_it_is_supervised_training_to_the_bit(method, task, alpha):
    plain, two = ({**plan, "task": task} for plan in (PLAN, TWO if method is MixedSupervision else PLAN))
    wanted, told = rounds(trainer_of(plain, alpha), start(plain))
    found, reports = rounds(trainer_of(two, alpha, method(from_round=0)), start(two))
    assert all(np.array_equal(found[name], value) for name, value in wanted.items())
    assert [report.train_loss for report in reports] == [report.train_loss for report in told]
    assert [report.val_scores for report in reports] == [report.val_scores for report in told]
    assert [report.extras for report in reports] == [{"taught_cases": 5}] * 3


@pytest.mark.parametrize(
    "hook", [MixedSupervision(strength=0), MixedSupervision(least_agreement=1.1), SelfTraining(strength=0)]
)
@pytest.mark.parametrize("kind", ["boxes", "none"])
def test_without_pseudo_labels_it_is_training_on_what_is_labelled_to_the_bit(hook, kind, alpha):
    mixed = weak(alpha, kind)
    count = len(mixed.labelled.training)
    assert 0 < count < 5
    plan = TWO if isinstance(hook, MixedSupervision) else PLAN
    wanted, told = rounds(trainer_of(PLAN, mixed), start(PLAN))
    found, reports = rounds(trainer_of(plan, mixed, hook), start(plan))
    assert all(np.array_equal(found[name], value) for name, value in wanted.items())
    assert [report.train_loss for report in reports] == [report.train_loss for report in told]
    assert [(report.num_samples, report.extras["taught_cases"]) for report in reports] == [(5, count)] * 3


def test_the_second_network_trains_as_a_first_one_would(alpha):
    weights = start(TWO)
    own = {name.removeprefix(SECOND): value for name, value in weights.items() if name.startswith(SECOND)}
    assert any(not np.array_equal(own[name], weights[name]) for name in own)
    wanted, _ = rounds(trainer_of(PLAN, alpha), own)
    found, _ = rounds(trainer_of(TWO, alpha, MixedSupervision()), weights)
    assert all(np.array_equal(found[SECOND + name], value) for name, value in wanted.items())


class Planted(MixedSupervision):
    """Both networks find what is planted, whatever the image; a cube of the first class, where nothing else is."""

    planted: tuple = (np.pad(np.ones((5, 5, 5), np.uint8), (4, 11)),) * 2

    def _pseudo_label(self, training, index):
        return PseudoLabel.of(training.task, self.labels(training, self.planted))


def test_each_network_learns_from_what_the_other_found(alpha):
    plan = {**TWO, "training": {**PLAN["training"], "augmentation": "none", "batch_size": 5}}
    mixed, hook = weak(alpha, "none"), Planted(least_agreement=0, from_round=0)
    first = np.zeros((20, 20, 20), np.uint8)
    first[4:9, 4:9, 4:9] = 1
    second = np.where(first, 2, 0).astype(np.uint8)
    hook.planted = (first, second)
    trainer = trainer_of(plan, mixed, hook)
    trainer._begin(start(plan), 0, 1, RoundSettings())
    hook.before_round(trainer, {}, 0)
    assert isinstance(trainer.training_cases, TaughtCases)
    (batch,) = trainer.batches(0, 0)
    rows = batch["pseudo"].flatten()
    assert int(rows.sum()) == 5 - len(mixed.labelled.training)
    assert set(batch["classes"][rows][:, 0].unique().tolist()) <= {0, 2}
    assert set(batch["classes"][rows][:, 1].unique().tolist()) <= {0, 1}
    assert torch.equal(batch["classes"][~rows][:, 0], batch["classes"][~rows][:, 1])
    seen = []
    trainer.loss = lambda logits, targets: seen.append((logits, targets)) or logits.square().mean()
    hook.step(trainer, batch)
    assert [torch.equal(targets, batch["classes"][:, i : i + 1]) for i, (_, targets) in enumerate(seen)] == [True] * 2
    hook.after_round(trainer, {}, 0)
    assert trainer.training_cases is trainer._labelled


def test_a_batch_of_masks_alone_teaches_both_networks_beside_batches_with_pseudo_labels(alpha):
    plan = {**TWO, "training": {**PLAN["training"], "augmentation": "none", "batch_size": 1}}
    mixed, hook = weak(alpha, "none"), Planted(least_agreement=0, from_round=0)
    trainer = trainer_of(plan, mixed, hook)
    trainer._begin(start(plan), 0, 1, RoundSettings())
    hook.before_round(trainer, {}, 0)
    masks = [batch for batch in trainer.batches(0, 0) if "pseudo" not in batch]
    assert len(masks) == len(mixed.labelled.training) > 0
    seen, loss = [], trainer.loss
    trainer.loss = lambda logits, targets: seen.append(targets) or loss(logits, targets)
    for batch in masks:
        assert torch.equal(batch["classes"][:, 0], batch["classes"][:, 1])
        hook.step(trainer, batch)
        assert [torch.equal(targets, batch["classes"][:, :1]) for targets in seen[-2:]] == [True] * 2
    _, report = site_round(trainer_of(plan, mixed, Planted(least_agreement=0, from_round=0)), start(plan), 0, 1)
    assert (report.num_steps, report.extras["taught_cases"]) == (5, 5)


def test_the_loss_weighs_pseudo_labels_by_strength(alpha):
    trainer, hook = trainer_of(PLAN, alpha), SelfTraining(strength=0.25)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 2, 4, 4, 4, generator=generator)
    targets = torch.randint(0, 3, (3, 1, 4, 4, 4), generator=generator)
    pseudo = torch.tensor([[True], [False], [True]])
    found = hook._loss(trainer, logits, targets, pseudo)
    rows = pseudo.flatten()
    own, others = (float(trainer.loss(logits[chosen], targets[chosen])) for chosen in (~rows, rows))
    assert float(found) == pytest.approx(own / 3 + 0.25 * others * 2 / 3, rel=1e-5)
    assert float(hook._loss(trainer, logits, targets, None)) == float(trainer.loss(logits, targets))


@pytest.mark.parametrize("method", [MixedSupervision, SelfTraining])
def test_no_voxel_outside_of_its_box_is_taught(method, alpha):
    plan = TWO if method is MixedSupervision else PLAN
    mixed = weak(alpha, "boxes")
    options = {"least_agreement": 0.0} if method is MixedSupervision else {}
    hook = method(box_overlap=0.0, from_round=0, **options)
    trainer = trainer_of(plan, mixed, hook)
    weights, _ = rounds(trainer_of(PLAN, alpha), start(PLAN), 6)
    if method is MixedSupervision:
        weights |= {SECOND + name: value for name, value in weights.items()}
    trainer.network.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    hook.before_round(trainer, {}, 0)
    count = len(mixed.labelled.training)
    taught = [trainer.training_cases[i] for i in range(count, len(trainer.training_cases))]
    assert taught
    for case in taught:
        for classes in case.classes.numpy():
            masks = to_regions(trainer.task, classes)
            assert masks.any()
            assert not (masks & ~case.possible.numpy()).any()


def test_a_site_without_any_mask_learns_from_the_others_and_reports_no_score(alpha):
    mixed = weak(alpha, "boxes", 1.0)
    assert not mixed.labelled.training + mixed.labelled.validation
    hook = MixedSupervision(box_overlap=0.0, least_agreement=0.0)
    trainer = trainer_of(TWO, mixed, hook)
    weights, _ = rounds(trainer_of(PLAN, alpha), start(PLAN), 6)
    weights |= {SECOND + name: value for name, value in weights.items()}
    update, report = site_round(trainer, weights, 0, 3)
    assert all(not value.any() for value in update.values())
    assert (report.train_loss, report.extras["taught_cases"], report.num_samples) == (None, 0, 5)
    assert (report.val_loss, report.val_cases, report.val_scores["mean"]) == (None, 0, None)
    update, report = site_round(trainer, weights, 1, 3)
    assert report.extras["taught_cases"] > 0
    assert report.train_loss > 0
    assert any(value.any() for value in update.values())


def test_image_level_labels_and_unlabelled_cases_teach_too(alpha):
    for kind in ("image", "none"):
        mixed = weak(alpha, kind)
        trainer = trainer_of(PLAN, mixed, SelfTraining(from_round=0))
        weights, _ = rounds(trainer_of(PLAN, alpha), start(PLAN), 6)
        _, report = site_round(trainer, weights, 0, 1)
        assert report.extras["taught_cases"] > len(mixed.labelled.training)


def test_images_that_are_known_to_be_empty_teach_from_the_start(alpha):
    absent = Supervision("image", present=(("inner", False), ("whole", False)))
    cases = tuple(replace(case, label=None, supervision=absent) for case in alpha.training[:2])
    mixed = replace(alpha, training=cases + alpha.training[2:])
    hook = MixedSupervision(from_round=0)
    trainer = trainer_of(TWO, mixed, hook)
    trainer.network.load_state_dict({name: torch.from_numpy(value) for name, value in start(TWO).items()})
    hook.before_round(trainer, {}, 0)
    assert len(trainer.training_cases) == 5
    assert not trainer.training_cases[4].classes.any()


def test_jobs_that_cannot_work_are_refused():
    with pytest.raises(ConfigurationError, match="second_network"):
        MixedSupervision().check_plan(parse_plan(PLAN))
    deep = {**PLAN, "network": {"name": "dynunet", "parts": [{"name": "deep_supervision"}]}}
    for hook in (MixedSupervision(), SelfTraining()):
        with pytest.raises(ConfigurationError, match="deep_supervision"):
            hook.check_plan(parse_plan(deep))
    with pytest.raises(ConfigurationError, match="objective"):
        SelfTraining().check_plan(parse_plan({**PLAN, "task": {**TASK, "objective": "reconstruction"}}))
    for options in ({"strength": -1}, {"from_round": -1}, {"box_overlap": 1.1}, {"box_form": "points"}):
        with pytest.raises(ConfigurationError, match=next(iter(options))):
            SelfTraining(**options)
    assert second_network(parse_plan(TWO).build_network())


@pytest.mark.parametrize("name", ["hippocampus_fedmix", "hippocampus_fedst"])
def test_a_federation_of_sites_with_masks_boxes_and_unlabelled_cases(name, alpha):
    job = read_job(Path(__file__).parents[3] / "jobs" / name)
    two = name == "hippocampus_fedmix"
    job.set("task", TASK)
    job.set("network", {**PLAN["network"], **(PARTS if two else {})})
    job.set("workflow.num_rounds", 3)
    hook = next(iter(job.client["components"]))["id"]
    for key, value in {"from_round": 1, "box_overlap": 0.0, **({"least_agreement": 0.0} if two else {})}.items():
        job.set(f"hook.{hook}.{key}", value)
    job.check()
    lists = {"alpha": alpha, "beta": weak(alpha, "boxes", 1.0), "gamma": weak(alpha, "none", 1.0)}
    federation = InProcessFederation(job, lists)
    federation.run()
    assert federation.events == []
    first, *_, last = federation.rounds
    assert [first["sites"][site]["taught_cases"] for site in lists] == [5, 0, 0]
    assert [first["sites"][site]["val_cases"] for site in lists] == [1, 0, 0]
    for entry in federation.rounds:
        assert [entry["sites"][site]["val_dice"]["mean"] for site in ("beta", "gamma")] == [None, None]
    if two:
        assert first["weights"] == {"alpha": 1.0, "beta": 0.0, "gamma": 0.0}
    assert last["sites"]["alpha"]["val_dice"]["mean"] is not None

"""Settings of split training, what they refuse, and the finished model."""

import numpy as np
import pytest
import torch

from fedseg.contract.split_settings import SplitSettings, parse_split
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.models.model_file import read_model, write_model
from fedseg.tasks.segmentation.losses import SegmentationLoss
from fedseg.training.split.checks import check_mean_over_samples
from fedseg.training.split.halves import (
    check_split,
    plan_cost,
    plan_loss,
    plan_parts,
    server_half,
    site_half,
    whole_weights,
)
from fedseg.training.split.server_half import ServerHalf
from fedseg.training.split.site_half import SiteHalf
from split_baselines import whole_network
from split_example import EXCLUSIVE, OVERLAPPING, batch, plan_of
from split_loops import splitavg_step


def test_defaults_and_their_json_form():
    assert parse_split({}) == SplitSettings()
    chosen = parse_split({"cut": "stem", "labels": "private", "feature_noise": 0.5, "site_update": "summed"})
    assert parse_split(chosen.to_dict()) == chosen


@pytest.mark.parametrize(
    ("declaration", "named"),
    [
        ([], "split is"),
        ({"surprise": 1}, r"split\.surprise is not known"),
        ({"labels": "none"}, r"split\.labels is 'none', but must be one of \['shared', 'private'\]"),
        ({"cut_gradient": "sum"}, r"split\.cut_gradient"),
        ({"site_update": "mean"}, r"split\.site_update"),
        ({"message": "int8"}, r"split\.message"),
        ({"feature_noise": -1}, r"split\.feature_noise"),
        ({"feature_noise": True}, r"split\.feature_noise"),
        ({"feature_noise": float("nan")}, r"split\.feature_noise"),
    ],
)
def test_wrong_settings_are_refused_by_name(declaration, named):
    with pytest.raises(ConfigurationError, match=named):
        parse_split(declaration)


def test_an_unknown_cut_is_refused_before_anything_runs():
    with pytest.raises(ConfigurationError, match=r"split\.cut is 'stem'.*'encoder1'"):
        check_split(SplitSettings(cut="stem"), plan_of())


PRIVATE = SplitSettings(labels="private")


@pytest.mark.parametrize("ask", [check_split, lambda s, p: site_half(p, s, "a"), lambda s, p: server_half(p, s)])
def test_batch_wise_dice_is_refused_where_labels_stay(ask):
    with pytest.raises(ConfigurationError, match=r"training\.batch_dice is True, but must be false where labels stay"):
        ask(PRIVATE, plan_of(batch_dice=True))
    ask(PRIVATE, plan_of(batch_dice=False))
    ask(SplitSettings(), plan_of(batch_dice=True))


class Unknown(SegmentationLoss):
    pass


def test_other_losses_are_refused_where_labels_stay():
    task = plan_of(EXCLUSIVE).task
    weighted = SegmentationLoss(task, batch_dice=False, class_weights=torch.ones(3))
    with pytest.raises(ConfigurationError, match="class weights"):
        check_mean_over_samples(weighted)
    for loss in (Unknown(task, batch_dice=False), torch.nn.MSELoss(), None):
        with pytest.raises(ConfigurationError, match="loss is"):
            check_mean_over_samples(loss)
    check_mean_over_samples(SegmentationLoss(task, dice_weight=0.0, batch_dice=True))
    plan = plan_of(EXCLUSIVE)
    with pytest.raises(ConfigurationError, match="class weights"):
        SiteHalf(plan_parts(plan, PRIVATE)[0], "a", plan.training, PRIVATE, loss=weighted)


@pytest.mark.parametrize("task", [OVERLAPPING, EXCLUSIVE], ids=["overlapping", "exclusive"])
def test_what_is_taken_is_a_mean_over_samples(task):
    """The loss of a batch is the mean of the losses of its samples, for what the check takes and for nothing else."""
    drawn = batch(0, 3)
    for batch_dice, is_mean in ((False, True), (True, False)):
        plan = plan_of(task, batch_dice=batch_dice)
        loss, channels = plan_loss(plan), plan.task.output_channels
        logits = torch.randn(3, channels, 8, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        single = [float(loss(logits[i : i + 1], drawn["classes"][i : i + 1])) for i in range(3)]
        assert (abs(float(loss(logits, drawn["classes"])) - np.mean(single)) < 1e-6) == is_mean


def test_shared_labels_need_a_loss():
    plan = plan_of()
    with pytest.raises(ConfigurationError, match="loss is missing"):
        ServerHalf(plan_parts(plan, SplitSettings())[1], plan.training, SplitSettings())


# ---------------------------------------------------------------------------- finished model


@pytest.mark.parametrize(
    ("network", "cut"),
    [
        ({"name": "residual_unet", "channels": [4, 8, 8], "strides": [2, 2]}, "encoder2"),
        ({"name": "dynunet", "filters": [4, 6, 8], "strides": [1, 2, 2]}, "bottom"),
        ({"name": "segresnet", "init_filters": 4, "blocks_down": [1, 1], "blocks_up": [1]}, "stem"),
    ],
)
def test_the_finished_model_of_a_site_is_an_ordinary_file(tmp_path, network, cut):
    plan, split = plan_of(network=network), SplitSettings(cut=cut)
    server, sites = server_half(plan, split), {s: site_half(plan, split, s) for s in "ab"}
    splitavg_step(server, sites, {s: batch(ord(s), 2) for s in "ab"}, 0.0)
    images = batch(5, 2)["image"].float()
    logits = {}
    for site, half in sites.items():
        path = write_model(tmp_path / f"{site}.safetensors", plan, whole_weights(plan, half, server), 0)
        network_of_file = read_model(path).build()
        with torch.no_grad():
            logits[site] = network_of_file.to(memory_format=torch.channels_last_3d)(half.to_device(images))
            assert torch.equal(logits[site], server.part(half.part(half.to_device(images))))
    assert not torch.equal(logits["a"], logits["b"]), "each site has its own part"


def test_parts_that_are_no_whole_network_are_refused():
    plan = plan_of()
    site, server = site_half(plan, SplitSettings(cut="encoder1"), "a"), server_half(plan, SplitSettings(cut="encoder2"))
    with pytest.raises(RefusalError, match="missing"):
        whole_weights(plan, site, server)


def test_all_halves_start_from_the_plans_network():
    plan, split = plan_of(), SplitSettings()
    joined = whole_weights(plan, site_half(plan, split, "b").weights(), server_half(plan, split).weights())
    expected = whole_network(plan).weights()
    assert joined.keys() == expected.keys()
    assert all(np.array_equal(joined[n], expected[n]) for n in expected)


def test_the_cost_of_a_plan_is_for_its_patch():
    cost = plan_cost(plan_of(), SplitSettings(cut="encoder2"))
    assert cost.shapes == {"encoder1": (4, 4, 4, 4), "encoder2": (8, 2, 2, 2)}
    assert (cost.prediction_values, cost.voxels) == (2 * 512, 512)

"""Statistics of batch normalisation from a site's own images, beside sums that a slow loop makes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fedseg.contract.plan import parse_plan
from fedseg.data.datalist import read_datalist
from fedseg.errors import DataError
from fedseg.networks.weights import get_weights, set_weights
from fedseg.tasks.task import parse_task
from fedseg.training.batch_statistics import adapt_statistics, batch_norms
from fedseg.training.inference import infer_logits
from fedseg.training.trainer import SiteTrainer, TrainerSetup
from tiny import EXCLUSIVE, PLAN, make_sites

TASK = parse_task({**EXCLUSIVE, "patch_size": [8, 8, 8]})
CPU = torch.device("cpu")
BATCH = {**PLAN, "network": {**PLAN["network"], "norm": "batch"}}


def images(*sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(1, *size, generator=generator) + 2 for size in sizes]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm3d(1), nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2), nn.Conv3d(2, 3, 1)).eval()


def test_the_first_layer_has_mean_and_variance_of_all_voxels():
    made, given = network(), images((8, 8, 8), (8, 8, 8))
    assert adapt_statistics(made, TASK, given, 0.25, CPU) == 2
    values = np.concatenate([image.numpy().ravel() for image in given]).astype(np.float64)
    mean = sum(values.tolist()) / len(values)
    variance = sum((v - mean) ** 2 for v in values.tolist()) / (len(values) - 1)
    assert float(made[0].running_mean) == pytest.approx(mean, rel=1e-5)
    assert float(made[0].running_var) == pytest.approx(variance, rel=1e-5)


def test_a_later_layer_has_those_of_what_reaches_it_window_by_window():
    made, (image,) = network(), images((16, 8, 8))
    before = [parameter.clone() for parameter in made.parameters()]
    adapt_statistics(made, TASK, [image], 0.0, CPU)
    windows = torch.stack([image[:, :8], image[:, 8:]])  # two windows without overlap, in one batch
    normal = (windows - windows.mean()) / (windows.var(unbiased=False) + 1e-5).sqrt()
    features = made[1](made[0].weight * normal + made[0].bias).detach()
    torch.testing.assert_close(made[2].running_mean, features.mean((0, 2, 3, 4)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made[2].running_var, features.transpose(0, 1).flatten(1).var(1), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(before, made.parameters(), strict=True))
    assert not any(module.training for module in made.modules())
    assert {layer.momentum for layer in batch_norms(made)} == {0.1}


def test_a_case_counts_by_its_windows():
    made, given = network(), images((8, 8, 8), (16, 8, 8))
    adapt_statistics(made, TASK, given, 0.0, CPU)
    values = torch.cat([image.flatten() for image in given])
    assert float(made[0].running_mean) == pytest.approx(float(values.mean()), rel=1e-5)


def test_a_scanner_that_stretches_intensities_changes_nothing_after_the_adaptation():
    made, other, (image,) = network(), network(), images((8, 8, 8))
    stretched = 5 * image + 40
    adapt_statistics(made, TASK, [image], 0.25, CPU)
    adapt_statistics(other, TASK, [stretched], 0.25, CPU)
    one, two = (infer_logits(n, TASK, i, 0.25, CPU) for n, i in ((made, image), (other, stretched)))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
    unadapted = infer_logits(network(), TASK, stretched, 0.25, CPU)
    assert (unadapted - one).abs().max() > 0.1


def test_no_image_is_refused_and_changes_nothing():
    made = network()
    with pytest.raises(DataError, match="no image"):
        adapt_statistics(made, TASK, [], 0.25, CPU)
    assert float(made[0].running_mean) == 0
    assert not any(module.training for module in made.modules())


def test_mirrors_have_no_part():
    mirrored = replace(TASK, mirrored=True)
    found = []
    for task in (TASK, mirrored):
        made = network()
        adapt_statistics(made, task, images((8, 8, 8)), 0.25, CPU)
        found.append(get_weights(made))
    assert all(np.array_equal(found[0][name], found[1][name]) for name in found[0])


def test_a_site_trains_and_sends_running_statistics(tmp_path):
    datalist = read_datalist(make_sites(tmp_path, {"a": (2, 1)}) / "a")
    trainer = SiteTrainer(parse_plan(BATCH), "a", datalist, TrainerSetup())
    weights = get_weights(trainer.plan.build_network())
    update = trainer.train_round(weights, 0, 3).update
    means = [name for name in update if name.endswith("running_mean")]
    assert means
    assert any(np.abs(update[name]).max() > 0 for name in means)
    assert not [name for name in update if name.endswith("num_batches_tracked")], "counters are not averaged"


def test_a_variance_that_noise_took_below_zero_counts_as_zero():
    made = nn.BatchNorm3d(2)
    weights = get_weights(made) | {"running_var": np.array([-0.5, 2.0], np.float32)}
    set_weights(made, weights)
    assert made.running_var.tolist() == [0.0, 2.0]
    assert torch.isfinite(made.eval()(torch.ones(1, 2, 2, 2, 2))).all()
    assert weights["running_var"][0] == -0.5, "what was given stays"

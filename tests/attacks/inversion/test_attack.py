"""The inversion probe: its scores against slow loops, its decoder against features whose content is known."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from fedseg.attacks.inversion.attack import PUBLIC, REFERENCES, VICTIM, Attack, central_box, features_as_sent, probe
from fedseg.attacks.inversion.decoder import Decoder, DecoderSettings, crop_size, cut_out, fit_decoder, scale_of
from fedseg.attacks.inversion.patches import ProbePatch, draw_patches
from fedseg.contract.plan import parse_plan
from fedseg.contract.split_settings import parse_split
from fedseg.data.datalist import read_datalist
from fedseg.errors import ConfigurationError, DataError
from fedseg.models.model_file import ModelFile
from fedseg.networks.split.parts import cut_network
from fedseg.networks.split.stages import cut_names
from fedseg.networks.weights import get_weights
from fedseg.tasks.reconstruction.metrics import Likeness, blurred, likeness, mean_likeness
from fedseg.tasks.task import parse_task
from fedseg.training.split.message import message_bytes, pack
from fedseg.training.split.site_half import SiteHalf
from tiny import PLAN, TASK, make_sites

SHORT = DecoderSettings(steps=12, width=4, blocks=1, crop=8, batch=2)
EVERYTHING = (slice(0, 16), slice(0, 16), slice(0, 16))


pytestmark = pytest.mark.usefixtures("one_thread")


def smooth_images(count, channels=1, size=16, seed=0):
    """Noise with neighbours alike, as in images: something that a guess misses and a copy at half resolution shows."""
    noise = torch.from_numpy(np.random.default_rng(seed).normal(size=(count, channels, size, size, size))).float()
    return functional.avg_pool3d(noise, 3, 1, 1) * 5


def patches(count, seed, channels=1, size=16):
    images = smooth_images(count, channels, size, seed)
    whole = (slice(0, size), slice(0, size), slice(0, size))
    return [ProbePatch(image, torch.ones(1, size, size, size, dtype=torch.uint8), whole) for image in images]


def model_of(plan):
    network = plan.build_network()
    return ModelFile(plan.task, plan.network, get_weights(network), {})


def attack(plan, channels=1, **changes):
    split = parse_split({"message": "float32", **changes.pop("split", {})})
    return Attack(
        split, plan.training, patches(4, 0, channels), patches(2, 1, channels), **{"settings": SHORT, **changes}
    )


# ------------------------------------------------------------------ scores


def slow_ssim(reference, guess):
    """Wang et al. (2004) voxel by voxel: a normalised Gaussian of deviation 1.5 over 11 voxels, K1 = .01, K2 = .03."""
    low, high = reference.min(), reference.max()
    x, y = (reference - low) / (high - low), (guess - low) / (high - low)
    sizes = [min(11, n if n % 2 else n - 1) for n in x.shape]
    one = [np.exp(-(((np.arange(n) - n // 2) / 1.5) ** 2) / 2) for n in sizes]
    weights = np.einsum("i,j,k->ijk", *(w / w.sum() for w in one))
    values = []
    for corner in np.ndindex(*(n - s + 1 for n, s in zip(x.shape, sizes, strict=True))):
        window = tuple(slice(c, c + s) for c, s in zip(corner, sizes, strict=True))
        a, b = x[window], y[window]
        mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
        var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
        both = (weights * (a - mean_a) * (b - mean_b)).sum()
        c1, c2 = 0.01**2, 0.03**2
        values.append(
            (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
        )
    return float(np.mean(values))


@pytest.mark.parametrize("size", [(13, 12, 14), (8, 13, 4)], ids=["the published window", "axes shorter than it"])
def test_ssim_is_that_of_a_slow_loop_and_does_not_depend_on_where_values_begin(size):
    generator = np.random.default_rng(0)
    image = generator.normal(-100, 20, size=(2, *size))
    other = image + generator.normal(0, 12, size=image.shape)
    expected = np.mean([slow_ssim(a, b) for a, b in zip(image, other, strict=True)])
    found = likeness(torch.from_numpy(image), torch.from_numpy(other))
    assert found is not None
    assert 0.2 < found.ssim < 0.95
    assert found.ssim == pytest.approx(expected, abs=1e-4)
    shifted = likeness(torch.from_numpy(image) + 5000, torch.from_numpy(other) + 5000)
    assert shifted is not None
    assert shifted.ssim == pytest.approx(found.ssim, abs=1e-5)


def test_psnr_and_correlation_by_hand():
    # Range 4; every voxel is off by 1: mean squared error 1, 10 log10(16 / 1) = 12.04 dB; a shift keeps correlation 1.
    image = torch.linspace(0, 4, 8**3).reshape(1, 8, 8, 8)
    found = likeness(image, image + 1)
    assert found is not None
    assert found.psnr == pytest.approx(10 * math.log10(16), abs=1e-4)
    assert found.correlation == pytest.approx(1)
    flipped = likeness(image, -image)
    assert flipped is not None
    assert flipped.correlation == pytest.approx(-1)


def test_limits_of_the_scores():
    image = smooth_images(1)[0]
    same, constant = likeness(image, image), likeness(image, torch.zeros_like(image))
    assert same is not None
    assert constant is not None
    assert (same.ssim, same.psnr, same.correlation) == pytest.approx((1, 120, 1), abs=1e-5)
    assert constant.correlation == 0
    assert constant.ssim < 0.2
    assert likeness(torch.ones(1, 8, 8, 8), image[:, :8, :8, :8]) is None, "without contrast nothing can be compared"
    # The channel without contrast is left out, and does not dilute the other one.
    two = torch.cat([image, torch.ones_like(image)])
    assert likeness(two, two + 0.1) == likeness(image, image + 0.1)
    assert mean_likeness([None, None]) is None
    assert mean_likeness([Likeness(0.2, 10, 0.4), None, Likeness(0.4, 20, 0.6)]) == Likeness(
        pytest.approx(0.3), 15, pytest.approx(0.5)
    )


def test_a_blurred_copy_is_the_mean_of_its_blocks_interpolated():
    image = torch.arange(4.0).repeat(4, 4, 1)[None]  # 0 1 2 3 along the last axis
    # Halves: .5 and 2.5; back on four voxels at a quarter and three quarters between their middles: .5, 1, 2, 2.5.
    assert blurred(image, 2)[0, 0, 0].tolist() == pytest.approx([0.5, 1.0, 2.0, 2.5])
    assert blurred(image, 4)[0, 0, 0].tolist() == pytest.approx([1.5] * 4)
    assert blurred(torch.ones(2, 7, 9, 5), 4).shape == (2, 7, 9, 5)


# ----------------------------------------------------------------- patches


def test_patches_come_from_every_case_first_and_say_where_the_image_lies(tmp_path):
    make_sites(tmp_path, {"alpha": (3, 1)})
    cases = read_datalist(tmp_path / "alpha").training
    small = parse_task({**TASK, "patch_size": [16, 24, 16]})  # the images have 20 voxels: four are padded on an axis
    found = draw_patches(small, cases, 4, np.random.default_rng(0))
    assert len(found) == 4
    middles = [
        float(patch.image[:, 4:12, 8:16, 4:12].sum())
        for patch in draw_patches(parse_task({**TASK, "patch_size": [20, 20, 20]}), cases, 4, np.random.default_rng(0))
    ]
    assert len(set(middles)) == 3, "every case has given a patch, and one of them two"
    for patch in found:
        assert patch.image.shape == (1, 16, 24, 16)
        assert patch.inside == (slice(0, 16), slice(2, 22), slice(0, 16))
        assert patch.image[:, :, :2].abs().max() == patch.image[:, :, 22:].abs().max() == 0
        assert patch.image[:, :, 2].abs().min() > 0
        assert patch.aspect == 1
    again = draw_patches(small, cases, 4, np.random.default_rng(0))
    assert all(torch.equal(a.image, b.image) for a, b in zip(found, again, strict=True))


def test_the_box_lies_in_the_middle_on_whole_strides():
    assert central_box((48, 64, 48), (8, 8, 8)) == (slice(0, 48), slice(0, 64), slice(0, 48))
    assert central_box((128, 96, 16), (16, 16, 16)) == (slice(32, 96), slice(16, 80), slice(0, 16))
    assert central_box((72, 72, 72), (24, 24, 24)) == (slice(0, 48),) * 3
    assert crop_size((48, 20, 64), (4, 20, 32), 16) == (16, 20, 32)


@pytest.mark.parametrize("scale", [(1, 1, 1), (2, 2, 2), (4, 2, 1)])
def test_crops_of_features_lie_where_crops_of_the_image_lie(scale):
    image = smooth_images(1)[0]
    features = functional.avg_pool3d(image, scale)
    assert scale_of(features[None], image[None]) == scale
    for corner in ((0, 0, 0), (4, 8, 0), (8, 4, 8)):
        crop = cut_out(image, corner, (8, 8, 4), (1, 1, 1))
        assert torch.allclose(cut_out(features, corner, (8, 8, 4), scale), functional.avg_pool3d(crop, scale))


# ----------------------------------------------------------------- decoder


def best(features, images, given, original, **changes):
    """SSIM of what a decoder that was trained on features and images makes of the features of another image."""
    settings = replace(DecoderSettings(steps=80, width=8, blocks=1, passes=1000, crop=8), **changes)
    decoder, _ = fit_decoder(features, images, (4, 4, 4), settings, 0)
    with torch.no_grad():
        return likeness(original[0], decoder(given)[0]).ssim


def subvoxels(images, factor=2):
    """Every voxel of a block as a feature of its own: everything is there, at a coarser grid."""
    n, _, x, y, z = images.shape
    parts = images.reshape(n, x // factor, factor, y // factor, factor, z // factor, factor)
    return parts.permute(0, 2, 4, 6, 1, 3, 5).reshape(n, factor**3, x // factor, y // factor, z // factor)


def test_features_that_are_the_image_give_it_back_also_from_a_coarser_grid():
    public, victim = smooth_images(6, seed=0), smooth_images(1, seed=9)
    assert best({"x": public}, public, {"x": victim}, victim) > 0.95
    assert best({"x": subvoxels(public)}, public, {"x": subvoxels(victim)}, victim, steps=200) > 0.95


def test_constant_features_give_no_more_than_the_guess():
    """All images have something in common here, so that a guess is worth something: where it lies only it knows."""
    common = smooth_images(1, seed=5)
    public, victim = common + 0.5 * smooth_images(6, seed=0), common + 0.5 * smooth_images(1, seed=9)
    guess = likeness(victim[0], public.mean(0)).ssim
    assert guess > 0.5
    assert best({"x": torch.ones(6, 3, 8, 8, 8)}, public, {"x": torch.ones(1, 3, 8, 8, 8)}, victim) < guess


def test_features_that_were_shifted_against_the_image_give_less():
    """The decoder sees four voxels at most beside each one, and learns where features lie: so crops must be aligned."""
    public, victim = smooth_images(6, seed=0), smooth_images(1, seed=9)
    decoder, _ = fit_decoder(
        {"x": public}, public, (4, 4, 4), DecoderSettings(steps=80, width=8, blocks=1, passes=1000, crop=8), 0
    )
    with torch.no_grad():
        aligned, shifted = (likeness(victim[0], decoder({"x": x})[0]).ssim for x in (victim, victim.roll(1, 2)))
    assert aligned > 0.95
    assert shifted < 0.8


def test_coarse_features_are_interpolated_and_named_freely():
    images = smooth_images(2)
    features = {"model.1": functional.avg_pool3d(images, 8), "b": images}
    decoder = Decoder(features, images, SHORT)
    assert decoder(features).shape == images.shape
    assert decoder.scales == {"model.1": (8, 8, 8), "b": (1, 1, 1)}


def test_a_small_set_ends_the_training_earlier():
    settings = DecoderSettings(steps=400, passes=20, batch=4)
    # 2 patches of 16^3 twenty times, 4 crops of 16^3 a step: 10 steps.
    assert settings.steps_for(2 * 16**3, (16, 16, 16)) == 10
    assert settings.steps_for(24 * 48 * 64 * 48, (16, 16, 16)) == 400
    assert replace(settings, steps=3).steps_for(2 * 16**3, (16, 16, 16)) == 3
    assert replace(settings, passes=None).steps_for(2 * 16**3, (16, 16, 16)) == 400


# ------------------------------------------------------------------- probe


@pytest.mark.parametrize("channels", [1, 4])
def test_every_cut_is_probed_and_told_in_plain_numbers(channels):
    task = {**TASK, "channels": [f"c{i}" for i in range(channels)]}
    plan = parse_plan({**PLAN, "task": task})
    inversion, views = probe(model_of(plan), attack(plan, channels))
    assert tuple(cut.cut for cut in inversion.cuts) == cut_names(plan.network)
    plain = json.loads(json.dumps(inversion.to_dict(), allow_nan=False))
    assert plain["cut"] == "encoder1"
    assert plain["box"] == [16, 16, 16]
    assert set(plain["references"]) == set(REFERENCES)
    assert plain["references"]["half"]["ssim"] > plain["references"]["quarter"]["ssim"]
    for cut in plain["cuts"]:
        assert cut["ssim"] == pytest.approx(np.mean(cut["ssim_of_patches"]))
        assert len(cut["ssim_of_patches"]) == 2
        assert cut["steps"] == SHORT.steps
    for view in views:
        assert {tuple(image.shape) for image in view.copies.values()} == {tuple(view.original.shape)}
        assert set(view.copies) == {*REFERENCES, *cut_names(plan.network)}


def test_the_same_seed_gives_the_same_numbers():
    plan = parse_plan(PLAN)
    model, noisy = model_of(plan), {"feature_noise": 0.3}
    first, again, other = (
        probe(model, attack(plan, split=noisy, seed=seed), ["encoder1"])[0].to_dict() for seed in (1, 1, 2)
    )
    assert first == again
    assert first["cuts"] != other["cuts"]


def test_noise_on_features_lowers_the_likeness():
    plan = parse_plan(PLAN)
    longer = replace(SHORT, steps=60, width=8)
    none, some, much = (
        probe(model_of(plan), attack(plan, split={"feature_noise": noise}, settings=longer), ["encoder1"])[0]
        for noise in (0.0, 1.0, 20.0)
    )
    assert none.cuts[0].likeness.ssim > some.cuts[0].likeness.ssim + 0.05
    assert some.cuts[0].likeness.ssim > much.cuts[0].likeness.ssim + 0.05
    assert none.references == much.references


@pytest.mark.parametrize("message", ["float16", "float32", "float64"])
def test_features_are_those_that_leave_a_site(message):
    """With the precision of the message, and of whole patches: a normalisation sees all of a patch, not of the box."""
    plan = parse_plan(PLAN)
    whole = model_of(plan).build()
    half = SiteHalf(
        cut_network(whole, plan.network, "encoder2")[0], VICTIM, plan.training, parse_split({"message": message})
    )
    images = torch.stack([patch.image for patch in patches(3, 0)])
    box = (slice(4, 12), slice(0, 8), slice(8, 16))
    found, size = features_as_sent(half, images, box, batch=2)
    sent = half.forward(images)
    assert size == pytest.approx(message_bytes(pack(sent, message)) / 3, abs=8)
    for name, value in sent.items():
        scale = 16 // value.shape[2]
        window = tuple(slice(part.start // scale, part.stop // scale) for part in box)
        expected = value[(slice(None), slice(None), *window)]
        assert found[name].dtype == torch.float32
        assert torch.allclose(found[name], expected, atol=2e-3 if message == "float16" else 1e-6)


def test_every_patch_has_noise_of_its_own():
    """Equal noise on all patches could be learnt and taken away."""
    plan = parse_plan(PLAN)
    split = parse_split({"feature_noise": 1.0})
    image = patches(1, 0)[0].image
    drawn = []
    for owner in (PUBLIC, VICTIM):
        part = cut_network(model_of(plan).build(), plan.network, "encoder1")[0]
        half = SiteHalf(part, owner, plan.training, split, seed=1, simulated=True)
        found, _ = features_as_sent(half, torch.stack([image] * 3), EVERYTHING, batch=1)
        drawn += list(found["encoder1"])
    for index, first in enumerate(drawn):
        for second in drawn[index + 1 :]:
            assert (first - second).std() == pytest.approx(math.sqrt(2), rel=0.1)


def test_only_what_lies_in_the_image_is_scored():
    """Padding is easy to reconstruct; with it every score would be better than it is."""
    plan = parse_plan(PLAN)
    victim = patches(1, 1)[0]
    padded = torch.zeros_like(victim.image)
    padded[:, 4:12, :, :13] = victim.image[:, 4:12, :, :13]
    inside = (slice(4, 12), slice(0, 16), slice(0, 13))
    given = replace(attack(plan), victims=[ProbePatch(padded, victim.classes, inside)])
    _, (view,) = probe(model_of(plan), given, ["encoder1"])
    assert torch.equal(view.original, victim.image[:, 4:12, :, :13])
    assert view.copies["encoder1"].shape == (1, 8, 16, 13)
    assert torch.equal(view.copies["half"], blurred(view.original, 2))


def test_an_unknown_cut_and_images_without_contrast_are_refused():
    plan = parse_plan(PLAN)
    with pytest.raises(ConfigurationError, match="cut is 'stem', but must be one of"):
        probe(model_of(plan), attack(plan), ["stem"])
    flat = [ProbePatch(torch.zeros(1, 16, 16, 16), torch.zeros(1, 16, 16, 16, dtype=torch.uint8), EVERYTHING)]
    with pytest.raises(DataError, match="no contrast"):
        probe(model_of(plan), replace(attack(plan), victims=flat), ["encoder1"])


def test_torchs_threads_and_generator_stay_as_they_were():
    plan = parse_plan(PLAN)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    probe(model_of(plan), attack(plan), ["encoder1"])
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)

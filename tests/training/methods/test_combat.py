"""ComBat over sites, against neuroCombat's formulae on all images in one place, written as slow loops."""

import json
import runpy
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from fedseg.aggregators.landmark_moments import LandmarkMoments
from fedseg.contract.plan import parse_plan
from fedseg.data.datalist import Datalist
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.jobs.job import read_job
from fedseg.networks.parts.combat import COMBAT_AFTER, COMBAT_BEFORE, SiteCurve
from fedseg.networks.weights import get_weights
from fedseg.tasks.landmarks import LEVELS
from fedseg.training.methods.combat import Combat, adjusted, grand, site_curve, site_effect
from fedseg.training.prepare import prepare_case
from fedseg.training.trainer import SiteTrainer, TrainerSetup
from tiny import PLAN, TASK

TWO = {**TASK, "channels": ["a", "b"], "optional_channels": ["b"], "sampling": {}}
PERCENTS = [1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 99]


def slow_combat(data, batches):
    """neuroCombat without covariates: data [features][images], batches [images]; the adjusted data."""
    features, images, names = len(data), len(batches), sorted(set(batches))
    adjusted_data = [[0.0] * images for _ in range(features)]
    means, deviations, standard = [], [], []
    for row in data:
        by = {b: [v for v, batch in zip(row, batches, strict=True) if batch == b] for b in names}
        mean = sum(len(v) / images * (sum(v) / len(v)) for v in by.values())
        residual = sum((v - sum(by[b]) / len(by[b])) ** 2 for v, b in zip(row, batches, strict=True)) / images
        means.append(mean)
        deviations.append(residual**0.5)
        standard.append([(v - mean) / residual**0.5 for v in row])
    for name in names:
        places = [j for j, b in enumerate(batches) if b == name]
        n = len(places)
        gamma_hat = [sum(row[j] for j in places) / n for row in standard]
        delta_hat = [
            sum((row[j] - g) ** 2 for j in places) / (n - 1) for row, g in zip(standard, gamma_hat, strict=True)
        ]
        gamma_bar = sum(gamma_hat) / features
        t2 = sum((g - gamma_bar) ** 2 for g in gamma_hat) / (features - 1)
        m = sum(delta_hat) / features
        s2 = sum((d - m) ** 2 for d in delta_hat) / (features - 1)
        a, b = (2 * s2 + m**2) / s2, (m * s2 + m**3) / s2
        for f in range(features):
            g, d = gamma_hat[f], delta_hat[f]
            for _ in range(5000):
                g_new = (t2 * n * gamma_hat[f] + d * gamma_bar) / (t2 * n + d)
                total = sum((standard[f][j] - g_new) ** 2 for j in places)
                d_new = (0.5 * total + b) / (n / 2 + a - 1)
                g, d = g_new, d_new
            for j in places:
                adjusted_data[f][j] = (standard[f][j] - g) / d**0.5 * deviations[f] + means[f]
    return np.array(adjusted_data)


def moments_of(values):
    """[3, F] of images [n, F]."""
    return np.stack([np.full(values.shape[1], len(values)), values.sum(0), ((values - values.mean(0)) ** 2).sum(0)])


def drawn(sizes, features, seed=0):
    generator = np.random.default_rng(seed)
    sites = []
    for i, n in enumerate(sizes):
        location, scale = 3 * i * generator.uniform(0.5, 1, features), 1 + i + generator.uniform(0, 1, features)
        sites.append(generator.normal(location, scale, (n, features)))
    return sites


@pytest.mark.parametrize(("sizes", "features"), [((5, 8, 2), 11), ((3, 3), 22), ((20, 4, 6, 2), 5)])
def test_moments_of_sites_give_what_neurocombat_gives_of_all_images(sizes, features):
    sites = drawn(sizes, features)
    total = sum(map(moments_of, sites))
    mean, deviation = grand(total)
    found = [adjusted(site_effect(moments_of(s), mean, deviation), mean, deviation, s) for s in sites]
    batches = [i for i, s in enumerate(sites) for _ in s]
    expected = slow_combat(np.concatenate(sites).T.tolist(), batches).T
    np.testing.assert_allclose(np.concatenate(found), expected, rtol=1e-6, atol=1e-6)
    apart = [np.ptp([part.mean() for part in parts]) for parts in (sites, found)]
    assert apart[1] < 0.2 * apart[0], "sites come together"


def test_many_images_are_hardly_shrunk_and_few_are():
    far = []
    for count in (3, 3000):
        sites = drawn((count, count), 11, seed=4)
        mean, deviation = grand(sum(map(moments_of, sites)))
        effect = site_effect(moments_of(sites[0]), mean, deviation)
        far.append(np.abs(effect.shrunk_location - effect.location).max())
    assert far[1] < 0.01 * far[0]


def test_a_federation_of_one_site_changes_nothing_on_average():
    (site,) = drawn((9,), 11)
    own = np.stack([moments_of(np.sort(site, axis=1))])
    before, after = site_curve(own, own)
    np.testing.assert_allclose(after, before, atol=1e-6)


def test_features_that_all_agree_have_nothing_between_them():
    own = np.stack([np.full(4, 3.0), np.full(4, 6.0), np.full(4, 2.0)])
    effect = site_effect(own, np.zeros(4), np.ones(4))
    np.testing.assert_allclose(effect.shrunk_location, 2)
    np.testing.assert_allclose(effect.shrunk_scale, 1)


def plan(task=TWO, parts=True):
    added = [{"name": "combat"}] if parts else []
    return parse_plan({**PLAN, "task": task, "network": {**PLAN["network"], "parts": added}})


def site(make_case, name, count, seed, power=1):
    cases = [make_case(f"{name}{n}", channels=2, low=1, high=20 + 9 * n, seed=seed + n) for n in range(count)]
    for image in (image for case in cases for image in case.images):
        values = nib.load(image).get_fdata() ** power
        nib.save(nib.Nifti1Image(values.astype(np.float32), np.eye(4)), image)
    return Datalist(tuple(cases), (cases[0],))


def trainer(datalist, name="a"):
    return SiteTrainer(plan(), name, datalist, TrainerSetup(hooks=[Combat()]))


def combined(*parts):
    shared, of = LandmarkMoments(), plan()
    shared.set_plan(of, get_weights(of.build_network()))
    shared.start(len(parts))
    for number, part in enumerate(parts):
        shared.accept(f"s{number}", {"combat/moments": part}, before_rounds=True)
    shared.finish_before_rounds({f"s{number}": 1 for number in range(len(parts))})
    return shared.outgoing("s0")


def test_a_site_sends_sums_over_its_images_and_gets_a_curve_of_its_own(make_case):
    """The features of all images in one place, by hand; and after a round the site's curve is in its model alone."""
    datalists = [site(make_case, "a", 3, 0), site(make_case, "b", 4, 40, power=3)]
    lacking = replace(datalists[0].training[2], images=datalists[0].training[2].images[:1], missing=(1,))
    datalists[0] = replace(datalists[0], training=(*datalists[0].training[:2], lacking))
    trainers = [trainer(each, name) for each, name in zip(datalists, "ab", strict=True)]
    sent = [each.arrays_before_rounds()["combat/moments"] for each in trainers]
    assert sent[0][:, 0, 0].tolist() == [3, 2]
    features, batches = [], []
    for number, each in enumerate(datalists):
        for case in each.training:
            if not case.missing:
                image = prepare_case(plan().task, case, training=False).image.numpy().astype(np.float64)
                features.append([p for channel in image for p in np.percentile(channel, PERCENTS)])
                batches.append(number)
    of_b = np.array(features)[np.array(batches) == 1]
    np.testing.assert_allclose(sent[1][:, 1].ravel(), of_b.sum(0), rtol=1e-5)
    shared = combined(*sent)
    np.testing.assert_allclose(shared["combat/moments"], sent[0] + sent[1])
    result = trainers[1].train_round(get_weights(plan().build_network()), 0, 2, shared)
    assert not {COMBAT_BEFORE, COMBAT_AFTER} & set(result.update), "the curve stays at the site"
    np.testing.assert_allclose(result.weights[COMBAT_BEFORE], of_b.mean(0).reshape(2, -1), rtol=1e-4)
    curve = site_curve(sent[1], sent[0] + sent[1])
    np.testing.assert_allclose(result.weights[COMBAT_AFTER], curve[1], rtol=1e-5)
    assert np.abs(curve[1] - curve[0]).max() > 0.1
    assert (np.diff(curve[1], axis=1) >= 0).all()


def test_the_curve_goes_through_its_points_and_on_beyond_them():
    part = SiteCurve(2).double()
    before = np.linspace(-2, 2, len(LEVELS))
    part.before.copy_(torch.from_numpy(np.stack([before, before])))
    part.after.copy_(torch.from_numpy(np.stack([before, before**3])))
    images = torch.from_numpy(np.stack([before, before])).reshape(1, 2, len(LEVELS), 1, 1)
    seen = part(images)[0].squeeze()
    np.testing.assert_allclose(seen[0], before)
    np.testing.assert_allclose(seen[1], before**3, atol=1e-12)
    beyond = part(torch.full((1, 2, 1, 1, 1), 3.0, dtype=torch.float64)).ravel()
    slope = (before[-1] ** 3 - before[-2] ** 3) / (before[-1] - before[-2])
    np.testing.assert_allclose(beyond, [3, 8 + slope], rtol=1e-12)
    assert not part(torch.zeros(1, 2, 2, 2, 2, dtype=torch.float64)).any()


def test_without_a_curve_images_stay_to_the_bit():
    images = torch.randn(2, 2, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(SiteCurve(2)(images), images)


def test_single_images_wrong_plans_and_missing_sums_are_refused(make_case):
    with pytest.raises(RefusalError, match="at least 2 training images"):
        trainer(site(make_case, "a", 1, 0)).arrays_before_rounds()
    with pytest.raises(RefusalError, match="lacks LandmarkMoments"):
        trainer(site(make_case, "b", 2, 0)).train_round(get_weights(plan().build_network()), 0, 1)
    with pytest.raises(ConfigurationError, match=r'network\.parts is \[\].*"combat"'):
        Combat().check_plan(plan(parts=False))
    with pytest.raises(ConfigurationError, match="normalisation is 'landmarks'"):
        Combat().check_plan(plan({**TWO, "normalisation": "landmarks"}))
    with pytest.raises(ConfigurationError, match=r'network\.parts is \[\].*"combat"'):
        LandmarkMoments().set_plan(plan(parts=False), {})


def test_moments_are_kept_over_rounds():
    hook, values = Combat(), np.arange(66.0).reshape(2, 3, 11)
    hook._own = values
    other = Combat()
    other.load_state(None)
    other.load_state(hook.state())
    np.testing.assert_array_equal(other._own, values)


@pytest.mark.parametrize("name", ["GaussianNoise", "LaplaceNoise", "SparseVector"])
def test_a_job_with_noise_is_refused(name):
    writer = runpy.run_path(str(Path(__file__).parents[3] / "scripts" / "write_combinations.py"))
    chosen = [part for part in writer["parts"]() if part.name in ("Combat", name)]
    said = writer["refusal"](*chosen)
    assert "Combat needs statistics of the sites' data" in said
    assert f"{name} withholds" in said


def test_the_job_is_whole():
    job = read_job(Path(__file__).parents[3] / "jobs" / "hippocampus_combat")
    job.check()
    assert json.loads((job.folder / "meta.json").read_text())["name"] == "hippocampus_combat"

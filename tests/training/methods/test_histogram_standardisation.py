"""Histogram standardisation over sites, against the method on all images in one place, written by hand."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from fedseg.aggregators.standard_landmarks import StandardLandmarks
from fedseg.contract.plan import parse_plan
from fedseg.data.case_reading import read_case
from fedseg.data.datalist import Datalist
from fedseg.errors import ConfigurationError, RefusalError
from fedseg.networks.parts.standard_scale import LANDMARK_SUMS, StandardScale
from fedseg.networks.weights import get_weights
from fedseg.tasks.landmarks import LEVELS, NORMAL, piecewise, to_normal
from fedseg.training.methods.histogram_standardisation import HistogramStandardisation
from fedseg.training.prepare import prepare_case
from fedseg.training.trainer import SiteTrainer, TrainerSetup
from tiny import PLAN, TASK

TWO = {**TASK, "channels": ["a", "b"], "optional_channels": ["b"], "normalisation": "landmarks", "sampling": {}}
PERCENTS = [1, 10, 20, 30, 40, 50, 60, 70, 80, 90, 99]


def plan(task=TWO, parts=True):
    added = [{"name": "standard_scale"}] if parts else []
    return parse_plan({**PLAN, "task": task, "network": {**PLAN["network"], "parts": added}})


def site(make_case, name, count, seed):
    """Cases with skewed values; the last one lacks the second channel."""
    cases = [make_case(f"{name}{n}", channels=2, low=1, high=20 + 9 * n, seed=seed + n) for n in range(count)]
    for number, image in enumerate(image for case in cases for image in case.images):
        values = nib.load(image).get_fdata() ** (1 + (number + seed) % 3)
        nib.save(nib.Nifti1Image(values.astype(np.float32), np.eye(4)), image)
    cases[-1] = replace(cases[-1], images=cases[-1].images[:1], missing=(1,))
    return Datalist(tuple(cases), (cases[0],))


def sums(datalist):
    trainer = SiteTrainer(plan(), "a", datalist, TrainerSetup(hooks=[HistogramStandardisation()]))
    return trainer.arrays_before_rounds()["landmarks/sums"]


def combined(*parts):
    shared, of = StandardLandmarks(), plan()
    shared.set_plan(of, get_weights(of.build_network()))
    shared.start(len(parts))
    for number, part in enumerate(parts):
        shared.accept(f"s{number}", {"landmarks/sums": part}, before_rounds=True)
    shared.finish_before_rounds({f"s{number}": 1 for number in range(len(parts))})
    return shared.model_arrays()[LANDMARK_SUMS]


def by_hand(datalists, channel):
    """The standard scale of all images in one place: percentiles where the first is 0 and the last 1, averaged."""
    found = []
    for case in (case for datalist in datalists for case in datalist.training):
        if channel not in case.missing:
            values = read_case(plan().task, case)[0][channel]
            of_image = np.percentile(values[values != 0].astype(np.float64), PERCENTS)
            found.append((of_image - of_image[0]) / (of_image[-1] - of_image[0]))
    mean = np.mean(found, axis=0)
    return (mean - mean[5]) * (NORMAL[-1] - NORMAL[0])


def test_the_scale_of_two_sites_is_that_of_all_images_in_one_place(make_case):
    datalists = [site(make_case, "a", 3, 0), site(make_case, "b", 2, 40)]
    part = StandardScale(2)
    part.sums.copy_(torch.from_numpy(combined(*map(sums, datalists))))
    for channel in range(2):
        np.testing.assert_allclose(part.scale()[channel], by_hand(datalists, channel), atol=1e-5)
    assert part.sums[:, -1].tolist() == [5, 3]


def test_one_site_is_the_method_of_nyul_and_udupa_on_its_own_images(make_case):
    """The two steps together map the landmarks of an image to the standard ones in one piecewise linear map."""
    datalist = site(make_case, "a", 3, 5)
    part = StandardScale(2).double()
    part.sums.copy_(torch.from_numpy(combined(sums(datalist))))
    for case in datalist.training[:2]:
        raw = read_case(plan().task, case)[0]
        seen = part(prepare_case(plan().task, case, training=False).image[None].double())[0].numpy()
        for channel in range(2):
            values = raw[channel].astype(np.float64)
            own, scale = np.percentile(values, PERCENTS), by_hand([datalist], channel)
            inside = (values >= own[0]) & (values <= own[-1])
            np.testing.assert_allclose(seen[channel][inside], np.interp(values, own, scale)[inside], atol=1e-4)
            low = values < own[0]
            slope = (scale[1] - scale[0]) / (own[1] - own[0])
            np.testing.assert_allclose(seen[channel][low], scale[0] + slope * (values[low] - own[0]), atol=1e-4)


def test_images_with_the_mean_landmarks_are_only_moved_and_stretched():
    generator = np.random.default_rng(0)
    values = generator.gamma(2.0, 50.0, 4000)
    of_image = np.quantile(values, LEVELS)
    part = StandardScale(1).double()
    share = (of_image - of_image[0]) / (of_image[-1] - of_image[0])
    part.sums.copy_(torch.from_numpy(np.append(share, 1.0))[None] * 7)
    seen = part(torch.from_numpy(to_normal(values)).reshape(1, 1, 20, 20, 10)).numpy().ravel()
    slope, offset = np.polyfit(values, seen, 1)
    np.testing.assert_allclose(seen, slope * values + offset, atol=2e-5)


def test_sites_that_are_alike_have_the_scale_of_each(make_case):
    datalist = site(make_case, "a", 3, 2)
    one, both = (StandardScale(2) for _ in range(2))
    one.sums.copy_(torch.from_numpy(combined(sums(datalist))))
    both.sums.copy_(torch.from_numpy(combined(sums(datalist), sums(datalist))))
    torch.testing.assert_close(one.scale(), both.scale(), rtol=0, atol=1e-6)


def test_normal_landmarks_change_nothing_and_so_does_a_scale_without_images():
    images = torch.randn(2, 1, 4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    part = StandardScale(1).double()
    assert torch.equal(part(images), images)
    share = (NORMAL - NORMAL[0]) / (NORMAL[-1] - NORMAL[0])
    part.sums.copy_(torch.from_numpy(np.append(3 * share, 3))[None])
    torch.testing.assert_close(part(images), images, rtol=0, atol=1e-12)


def test_what_is_nothing_stays_nothing(make_case):
    datalist = site(make_case, "a", 2, 3)
    part = StandardScale(2)
    part.sums.copy_(torch.from_numpy(combined(sums(datalist))))
    lacking = prepare_case(plan().task, datalist.training[1], training=False).image
    assert not lacking[1].any()
    assert not part(lacking[None])[0, 1].any()
    whole = prepare_case(plan().task, datalist.training[0], training=False).image
    assert whole.all(), "a voxel that counts never becomes 0"


def test_equal_landmarks_have_no_piece_between_them():
    values = np.array([1.0] * 50 + [2.0] * 50)
    assert np.isfinite(to_normal(values)).all()
    assert piecewise(np.array([0.0, 3.0]), np.array([1.0, 1.0]), np.array([5.0, 6.0])).tolist() == [5.0, 6.0]


def test_a_model_without_landmarks_and_plans_that_do_not_fit_are_refused(make_case):
    trainer = SiteTrainer(plan(), "a", site(make_case, "a", 2, 0), TrainerSetup(hooks=[HistogramStandardisation()]))
    with pytest.raises(RefusalError, match="has no landmarks"):
        trainer.train_round(get_weights(plan().build_network()), 0, 1)
    with pytest.raises(ConfigurationError, match=r'network\.parts is \[\].*"standard_scale"'):
        HistogramStandardisation().check_plan(plan(parts=False))
    with pytest.raises(ConfigurationError, match="normalisation is 'zscore', but must be landmarks"):
        HistogramStandardisation().check_plan(plan({**TWO, "normalisation": "zscore"}))
    with pytest.raises(ConfigurationError, match=r'network\.parts is \[\].*"standard_scale"'):
        StandardLandmarks().set_plan(plan(parts=False), get_weights(plan(parts=False).build_network()))

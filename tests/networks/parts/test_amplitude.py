import numpy as np
import pytest
import torch

from fedseg.contract.plan import parse_plan
from fedseg.contract.shapes import array_owners
from fedseg.networks.parts.amplitude import SPECTRUM, AmplitudeNormalisation, amplitude_of
from fedseg.networks.parts.part import FIXED, Place
from tiny import PLAN

SIZE = (8, 6, 5)
MODES = {"dc": 0, "window": 2, "full": None}


def images(count=2, seed=0, mean=0.4):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, *SIZE, generator=generator, dtype=torch.float64) + mean


def normalisation(mode="full", spectrum=None):
    part = AmplitudeNormalisation(Place(2, 1, SIZE), MODES[mode]).double()
    if spectrum is not None:
        part.spectrum.copy_(spectrum)
    return part


def with_spectrum_of(mode, other):
    part = normalisation(mode)
    return normalisation(mode, part.measure(other).mean(0, keepdim=True))


def test_the_formula_as_numpy_says_it():
    """x' = Re IFFT(A exp(i phase)), every amplitude replaced, written with numpy's own transform."""
    image, part = images(1), with_spectrum_of("full", images(5, seed=3))
    phases = np.angle(np.fft.fftn(image[0].numpy(), axes=(1, 2, 3)))
    amplitude = np.mean([np.abs(np.fft.fftn(x.numpy(), axes=(1, 2, 3))) for x in images(5, seed=3)], axis=0)
    expected = np.fft.ifftn(amplitude * np.exp(1j * phases), axes=(1, 2, 3))
    assert abs(expected.imag).max() < 1e-12
    np.testing.assert_allclose(part(image)[0].numpy(), expected.real, atol=1e-12)


def test_mode_dc_is_a_shift_of_the_mean():
    image, part = images(), normalisation("dc", torch.full((1, 2, 1, 1, 1), 0.7))
    shift = part(image) - image
    assert torch.allclose(shift, shift[:, :, :1, :1, :1].expand_as(shift), atol=1e-12)
    assert torch.allclose(part(image).mean((2, 3, 4)), torch.full((2, 2), 0.7, dtype=torch.float64))


def test_mode_dc_keeps_the_sign_of_the_mean_since_that_is_its_phase():
    part = normalisation("dc", torch.full((1, 2, 1, 1, 1), 0.7))
    assert torch.allclose(part(images(mean=-3)).mean((2, 3, 4)), torch.full((2, 2), -0.7, dtype=torch.float64))


@pytest.mark.parametrize("mode", MODES)
def test_an_images_own_amplitudes_change_nothing(mode):
    image = images(1)
    assert torch.allclose(with_spectrum_of(mode, image)(image), image, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_phases_stay_and_amplitudes_are_those_of_the_spectrum_inside_the_window(mode):
    image, part = images(1), with_spectrum_of(mode, images(4, seed=9))
    before, after = (torch.fft.fftn(x, dim=(-3, -2, -1), norm="forward") for x in (image, part(image)))
    assert torch.allclose(torch.polar(after.abs(), before.angle()), after, atol=1e-12)
    frequencies = np.meshgrid(*(np.fft.fftfreq(size, 1 / size) for size in SIZE), indexing="ij")
    window = MODES[mode] if MODES[mode] is not None else 99
    inside = torch.from_numpy(np.all([np.abs(f) <= window for f in frequencies], axis=0))
    assert torch.allclose(before.abs()[..., ~inside], after.abs()[..., ~inside], atol=1e-12)
    expected = torch.fft.fftn(images(4, seed=9), dim=(-3, -2, -1), norm="forward").abs().mean(0)
    assert torch.allclose(after.abs()[0][..., inside], expected[..., inside], atol=1e-12)


def test_a_window_holds_the_low_frequencies_and_no_more():
    assert normalisation("dc").spectrum.shape == (1, 2, 1, 1, 1)
    assert normalisation("window").spectrum.shape == (1, 2, 5, 5, 5)
    assert normalisation("full").spectrum.shape == (1, 2, *SIZE)


def test_until_the_amplitudes_are_known_images_stay_as_they_are():
    assert torch.equal(normalisation()(images()), images())


def test_an_image_of_another_size_than_the_patch_is_refused():
    with pytest.raises(ValueError, match=r"The image is \(4, 4, 4\), but amplitudes are of \(8, 6, 5\)"):
        with_spectrum_of("dc", images())(torch.zeros(1, 2, 4, 4, 4))


def test_gradients_pass_through_to_the_image():
    image, part, step = images(1).requires_grad_(), with_spectrum_of("full", images(3, seed=1)), 1e-6
    part(image)[0, 0, 0, 0, 0].backward()
    moved = image.detach().clone()
    moved[0, 0, 3, 2, 1] += step
    slope = (part(moved)[0, 0, 0, 0, 0] - part(image.detach())[0, 0, 0, 0, 0]) / step
    assert float(image.grad[0, 0, 3, 2, 1]) == pytest.approx(float(slope), abs=1e-6)


def test_a_plans_network_has_the_amplitudes_as_an_array_that_no_site_changes():
    plan = parse_plan({**PLAN, "network": {**PLAN["network"], "parts": [{"name": "amplitude", "mode": "full"}]}})
    network = plan.build_network()
    assert network.state_dict()[SPECTRUM].shape == amplitude_of(network).spectrum.shape == (1, 1, 16, 16, 16)
    assert array_owners(plan) == {SPECTRUM: FIXED}

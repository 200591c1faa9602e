"""What travels: rounding, refusals, noise, and what the gradient at a prediction tells."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedseg.contract.split_settings import SplitSettings
from fedseg.errors import RefusalError
from fedseg.training.split.halves import plan_parts
from fedseg.training.split.message import message_bytes, pack, unpack
from fedseg.training.split.site_half import SiteHalf
from split_example import EXCLUSIVE, batch, halves, plan_of

SEGRESNET = {"name": "segresnet", "init_filters": 4, "blocks_down": [1, 1], "blocks_up": [1]}
SHAPES = {"one": (2, 3, 1, 1)}


@settings(max_examples=50)
@given(
    st.lists(st.floats(-1, 1, width=32), min_size=6, max_size=24).filter(lambda v: len(v) % 6 == 0),
    st.integers(-60, 60),
)
def test_float16_keeps_eleven_bits_at_every_scale(values, exponent):
    """Relative to the value down to 2^-28 of the largest one, relative to that below."""
    tensor = torch.tensor(values, dtype=torch.float32).reshape(-1, 2, 3, 1, 1) * 2.0**exponent
    back = unpack(pack({"one": tensor}, "float16"), SHAPES, "float16")["one"]
    allowed = torch.maximum(tensor.abs() * 2.0**-11, tensor.abs().max() * 2.0**-39)
    assert back.dtype == torch.float32
    assert bool(((back - tensor).abs() <= allowed).all())


def test_small_gradients_survive_float16():
    """The gradient of a mean over a patch of 128^3 voxels is of this size; float16 itself ends at 6e-8."""
    tensor = torch.full((1, 2, 3, 1, 1), 3e-9)
    assert float(tensor.half().abs().max()) == 0
    assert torch.allclose(unpack(pack({"one": tensor}, "float16"), SHAPES, "float16")["one"], tensor, rtol=1e-3, atol=0)


@pytest.mark.parametrize(("precision", "kind"), [("float32", torch.float32), ("float64", torch.float64)])
def test_other_precisions_round_nothing(precision, kind):
    tensor = torch.randn(4, 2, 3, 1, 1, dtype=kind, generator=torch.Generator().manual_seed(0))
    back = unpack(pack({"one": tensor}, precision), SHAPES, precision)["one"]
    assert back.dtype == kind
    assert torch.equal(back, tensor)


def test_zeros_are_zeros():
    arrays = pack({"one": torch.zeros(1, 2, 3, 1, 1)}, "float16")
    assert float(arrays["scale:one"]) == 1.0
    assert float(unpack(arrays, SHAPES, "float16")["one"].abs().max()) == 0
    assert message_bytes(arrays) == 2 * 6 + 8


def test_a_tensor_that_is_not_finite_is_not_sent():
    with pytest.raises(RefusalError, match="one is not finite") as error:
        pack({"one": torch.full((1, 2, 3, 1, 1), float("nan"))}, "float16")
    assert error.value.reason == "loss"


GOOD = pack({"one": torch.ones(4, 2, 3, 1, 1)}, "float16")
LARGE = np.array(2.0**127)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"more": np.ones(1)}, "message holds"),
        ({"one": GOOD["one"].astype(np.float32)}, "one is float32"),
        ({"one": GOOD["one"][:, :1]}, r"not float16 with samples \(2, 3, 1, 1\)"),
        ({"one": GOOD["one"][:0]}, "one is float16"),
        ({"one": GOOD["one"] * np.float16("nan")}, "not finite"),
        ({"scale:one": LARGE}, "not finite"),
        ({"scale:one": np.array(0.0)}, "positive scale"),
        ({"scale:one": np.array([1.0])}, "positive scale"),
        ({"scale:one": np.array(1, np.float32)}, "positive scale"),
        ({"scale:one": np.array(np.inf)}, "positive scale"),
    ],
)
def test_messages_that_nobody_packed_are_refused(change, said):
    with pytest.raises(RefusalError, match=said) as error:
        unpack({**GOOD, **change}, SHAPES, "float16")
    assert error.value.reason == "data"


def test_a_missing_scale_is_refused():
    with pytest.raises(RefusalError, match="message holds"):
        unpack({"one": GOOD["one"]}, SHAPES, "float16")


def test_tensors_of_a_message_can_be_written():
    arrays = pack({"one": torch.ones(4, 2, 3, 1, 1)}, "float32")
    arrays["one"].flags.writeable = False
    unpack(arrays, SHAPES, "float32")["one"].add_(1)


# ------------------------------------------------------------------------------------ noise


def noisy(site="a", scale=0.5, **changes):
    _, sites = halves(plan_of(), site, feature_noise=scale, **changes)
    return sites[site]


def test_noise_has_the_scale_that_was_asked_for():
    images = batch(0, 8)["image"]
    clean = noisy(scale=0.0).forward(images)["encoder1"]
    drawn = noisy().forward(images)["encoder1"] - clean
    # 2048 draws: the standard deviation of their standard deviation is 0.5 / sqrt(2 * 2048) = 0.0078.
    assert drawn.numel() == 2048
    assert float(drawn.std()) == pytest.approx(0.5, abs=0.04)
    assert float(drawn.mean()) == pytest.approx(0.0, abs=0.06)


def test_simulated_noise_follows_site_and_step():
    images = batch(0, 1)["image"]
    first, again, other = noisy(), noisy(), noisy("b")
    sent = first.forward(images)["encoder1"]
    assert torch.equal(again.forward(images)["encoder1"], sent)
    assert not torch.equal(other.forward(images)["encoder1"], sent)
    before = first.weights()
    first.backward({"encoder1": torch.zeros_like(sent)})
    assert all(np.array_equal(value, before[name]) for name, value in first.weights().items())
    assert not torch.equal(first.forward(images)["encoder1"], sent), "the next step has other noise"


def test_real_noise_cannot_be_drawn_again():
    half, images = noisy(), batch(0, 1)["image"]
    real = SiteHalf(half.part, "a", half.settings, half.split, seed=1, simulated=False)
    assert not torch.equal(real.forward(images)["encoder1"], real.forward(images)["encoder1"])


def test_the_gradient_passes_noise_as_it_is():
    images, moved = batch(0, 2)["image"], []
    for scale in (0.0, 0.5):
        half = noisy(scale=scale)
        gradient = {"encoder1": torch.ones_like(half.forward(images)["encoder1"])}
        half.backward(gradient)
        moved.append(half.weights())
    assert all(np.array_equal(moved[0][name], moved[1][name]) for name in moved[0])


# ------------------------------------------------- what features and private labels hide


def test_the_gradient_at_the_prediction_tells_the_labels():
    """Labels stay at the site in form only: whoever has predictions and the gradient at them reads the labels off it.

    The cross-entropy of a voxel falls with the logit of its true class and with no other.
    """
    plan = plan_of(EXCLUSIVE, batch_dice=False)
    server, sites = halves(plan, "a", labels="private")
    drawn = batch(3, 2)
    predictions = server.forward({"a": sites["a"].forward(drawn["image"])})
    gradient, _ = sites["a"].loss_gradient(predictions["a"], drawn["classes"])
    guessed = gradient.argmin(dim=1, keepdim=True)
    assert float((guessed == drawn["classes"]).double().mean()) > 0.99


def test_features_behind_the_stem_are_the_image():
    """The stem is linear and gives more numbers than it takes: whoever knows its weights solves for the image."""
    stem, _ = plan_parts(plan_of(network=SEGRESNET), SplitSettings(cut="stem"))
    image = batch(1, 1)["image"]
    with torch.no_grad():
        unit = torch.eye(512, dtype=torch.float64).reshape(512, 1, 8, 8, 8)
        matrix = stem.double()(unit)["stem"].flatten(1).T
        sent = stem(image)["stem"].flatten()
    solved = torch.linalg.lstsq(matrix, sent[:, None]).solution.reshape(image.shape)
    assert float((solved - image).abs().max()) < 1e-10
